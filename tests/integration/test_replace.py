"""A step's old result stays until the new one stands: through errors, typing mistakes and kills at
any moment.
"""

import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from conftest import MICRO, ROOT, micro_config

from ospo import tracking
from ospo.files import read_json, write_manifest
from ospo.steps.replace import attempt, settle
from ospo.steps.step import Step, StepResult, finished, policy_damage, run_step

HOME = Path("runs/hm/toy")


def toy(text: str) -> Step:
    return Step(name="toy", kind="sft", inputs={"text": text}, params={}, damage=policy_damage)


def write(text: str, directory: Path) -> None:
    model = directory / "model"
    model.mkdir(exist_ok=True)
    (model / "weights").write_text(text)
    write_manifest(model)


def run(text: str) -> StepResult:
    return run_step(micro_config(), "hm", toy(text), lambda directory, _: write(text, directory))


def weights() -> str:
    return (HOME / "model" / "weights").read_text()


def test_a_step_that_fails_leaves_the_result_of_before(workspace: Path) -> None:
    first = run("one")

    def fail(directory: Path, _run: tracking.Recorder) -> None:
        write("half", directory)
        raise ValueError("no such weights")

    with pytest.raises(ValueError, match="no such weights"):
        run_step(micro_config(), "hm", toy("two"), fail)
    assert weights() == "one"
    assert finished("hm", "toy")["run_id"] == first.run_id
    assert run("one").skipped, "and is still good"
    second = run("two")
    assert (weights(), second.skipped) == ("two", False)
    assert sorted(path.name for path in HOME.parent.iterdir()) == ["toy"]


def test_an_attempt_of_other_parameters_is_not_resumed(workspace: Path) -> None:
    seen: list[list[str]] = []

    def stop(directory: Path, _run: tracking.Recorder) -> None:
        seen.append(sorted(path.name for path in directory.iterdir() if path.is_file()))
        (directory / "part").write_text("1")
        raise KeyboardInterrupt

    for text in ("one", "one", "two"):
        with pytest.raises(KeyboardInterrupt):
            run_step(micro_config(), "hm", toy(text), stop)
    assert seen == [["step.json"], ["part", "step.json"], ["step.json"]]
    assert not HOME.exists()


KILLED = """
import os, pathlib, shutil, sys
from pathlib import Path
sys.path[:0] = {tests!r}
from test_replace import run
from ospo.steps import replace

number, names = int(sys.argv[1]), []

def step(name, function):
    def counted(*args, **kwargs):
        if sys._getframe(1).f_code.co_filename != replace.__file__:
            return function(*args, **kwargs)  # of temporary folders elsewhere
        if len(names) == number:
            os._exit(9)
        names.append(name)
        return function(*args, **kwargs)
    return counted

replace.remove_leftovers = step("leftovers", replace.remove_leftovers)
Path.rename = step("rename", Path.rename)
replace.shutil.rmtree = step("rmtree", shutil.rmtree)
run("two")
print(len(names))
"""


@pytest.mark.timeout(600)
def test_kills_while_the_new_result_takes_its_place(workspace: Path) -> None:
    """Before the first rename, between the two, and before the old result is removed."""
    script = KILLED.format(tests=[str(ROOT / "tests"), str(ROOT / "tests" / "integration")])
    moments = []
    for number in range(8):
        run("one")
        done = subprocess.run(
            [sys.executable, "-c", script, str(number)], capture_output=True, text=True
        )
        if done.returncode == 0:
            break
        assert done.returncode == 9, done.stderr[-2000:]
        moments.append((HOME.exists(), attempt(HOME).exists()))
        state = finished("hm", "toy")  # what later steps ask for is there at every moment
        assert state["finished"]
        assert weights() == {True: "two", False: "one"}[number >= 3]
        new = run("two")
        assert (weights(), new.skipped) == ("two", True), "what was finished is not done again"
        assert sorted(path.name for path in HOME.parent.iterdir()) == ["toy"]
    assert (False, True) in moments, "one kill came between the two renames"
    assert len(moments) == 4


def test_settling_prefers_the_new_result(tmp_path: Path) -> None:
    home = tmp_path / "sft"
    for name in ("sft", ".sft.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    settle(home)
    assert (home / "who").read_text() == "sft"
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]
    home.rename(tmp_path / ".sft.old")
    settle(home)
    assert (home / "who").read_text() == "sft"


def test_records_that_wait_for_mlflow_move_with_the_result(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow is away while the step runs, and again while its result is replaced."""
    config = micro_config()

    def work(text: str) -> None:
        def make(directory: Path, recorder: tracking.Recorder) -> None:
            write(text, directory)
            recorder.log_artifact(directory / "model", "policy")
            recorder.log_dict("config.json", {"text": text})

        run_step(config, "hm", toy(text), make)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    work("one")
    work("two")
    assert weights() == "two"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.sync(config, "runs") == 2
    client = mlflow.MlflowClient(tracking.tracking_uri(config, workspace))
    [experiment] = client.search_experiments(filter_string="name = 'ospo'")
    files = {}
    for found in client.search_runs([experiment.experiment_id]):
        config_file = client.download_artifacts(found.info.run_id, "config.json")
        files[read_json(config_file)["text"]] = {
            item.path for item in client.list_artifacts(found.info.run_id)
        }
    assert files["two"] == {"config.json", "facts.json", "policy"}
    assert "config.json" in files["one"], "the records of the replaced result moved along"


def test_a_typing_mistake_costs_no_policy(workspace: Path) -> None:
    """`ospo sft` with weights that are not there: one line, and the finished policy stays."""
    home = Path("runs/hm/sft")
    home.mkdir(parents=True)
    write("finished", home)
    arguments = [part for override in MICRO for part in ("--set", override)]
    command = [sys.executable, "-m", "ospo.cli", "sft", "--dataset", "hm", *arguments]
    done = subprocess.run(
        [*command, "--params", str(ROOT / "params.yaml"), "--set", "presets.nano.model.source=path:/nope"],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("ospo: ")]
    assert "/nope" in line
    assert (home / "model" / "weights").read_text() == "finished"
