"""The flows' own part: which parameters a run has, whose turn it is, what DVC's failures mean."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from flows import common, demo
from flows.presented import AS_IN_PARAMS, _preset
from ospo.config import load_config, set_overrides
from ospo.errors import ConfigError, OspoError

PARAMS = str(ROOT / "params.yaml")


def test_a_forms_fields_become_parameters() -> None:
    config = common.flow_config(
        PARAMS,
        ["reward.k=20", "policy=smollm2-135m"],
        None,
        seed=0,
        preset__sft__steps=3,
        evaluation__max_requests=None,
        data__hm__history=4,
    )
    assert config.dataset("hm").history == 4
    plain = load_config(PARAMS)
    assert config.policy == "smollm2-135m"
    assert config.preset.sft.steps == 3
    assert config.presets["nano"].sft.steps == plain.presets["nano"].sft.steps != 3
    assert config.reward.k == 20
    assert config.evaluation.max_requests == plain.evaluation.max_requests
    named = common.flow_config(PARAMS, ["policy=smollm2-135m"], "nano", preset__rl__steps=5)
    assert (named.policy, named.preset.rl.steps) == ("nano", 5)


def test_a_data_sets_own_parameters_hold_in_its_runs(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(Path(PARAMS).read_text())
    set_overrides("hm", ["policy=smollm2-135m", "reward.k=20"], params)
    own = common.flow_config(str(params), None, AS_IN_PARAMS, "hm", preset__rl__steps=7)
    assert (own.policy, own.reward.k, own.preset.rl.steps) == ("smollm2-135m", 20, 7)
    assert common.flow_config(str(params), ["reward.k=5"], "nano", "hm").reward.k == 5
    assert common.flow_config(str(params), None, dataset="esci").policy == "nano"
    assert _preset({"params": str(params), "dataset": "hm"}) == "smollm2-135m"
    assert _preset({"params": str(params), "datasets": []}) == "nano"


def test_zero_is_a_value_of_a_form(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    values = yaml.safe_load(Path(PARAMS).read_text()) | {"seed": 4}
    params.write_text(yaml.safe_dump(values))
    assert common.flow_config(str(params), None, seed=None).seed == 4
    assert common.flow_config(str(params), None, seed=0).seed == 0
    with pytest.raises(ConfigError, match=r"presets\.nano\.sft\.steps"):
        common.flow_config(str(params), None, preset__sft__steps=0)


def test_within_a_pipeline_nothing_is_waited_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    def lock(dataset: str, **_: Any) -> Any:
        taken.append(dataset)
        return nullcontext()

    class Logger:
        warning = print

    monkeypatch.delenv("OSPO_LIMIT", raising=False)
    monkeypatch.setattr(common.steps, "dataset_lock", lock)
    monkeypatch.setattr(common, "get_run_logger", Logger)
    monkeypatch.setattr(common, "dvc_repro", lambda dataset: taken.append(f"repro {dataset}"))
    with common.dataset_ready("esci"):
        assert taken == ["esci", "repro esci"]
        with common.within("parent-run"):
            assert common._PARENT.get() == "parent-run"
            with common.dataset_ready("esci"):
                assert taken == ["esci", "repro esci"]
        assert common._PARENT.get() is None
    with common.one_at_a_time("hm"):
        assert taken == ["esci", "repro esci", "hm"]
    with common.data_is_ready(), common.dataset_ready("hm"):  # its turn, and no DVC
        assert taken == ["esci", "repro esci", "hm", "hm"]
    with common.dataset_ready("hm"):
        assert taken[-1] == "repro hm"


@pytest.mark.parametrize(
    "line", ["ERROR: Unable to acquire lock. Most likely another DVC process", "'/a' is busy, by 3"]
)
def test_a_dvc_that_another_one_holds_up_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    answers = [(1, line), (1, line), (0, "done")]
    warned: list[Any] = []
    asked: list[Any] = []

    class Logger:
        def warning(self, *words: Any) -> None:
            warned.append(words)

    def run_dvc(*words: str) -> tuple[int, str]:
        asked.append(words)
        return answers.pop(0)

    monkeypatch.setattr(common, "get_run_logger", Logger)
    monkeypatch.setattr(common, "run_dvc", run_dvc)
    monkeypatch.setattr(common.time, "sleep", lambda _seconds: None)
    common.dvc_repro.fn("hm")
    assert asked == [("repro", "vectors@hm")] * 3
    assert len(warned) == 1
    answers.append((1, "ospo: a.csv: is missing. Fix: add it"))
    with pytest.raises(OspoError, match=r"`dvc repro vectors@hm` failed: a.csv: is missing. Fix:"):
        common.dvc_repro.fn("hm")


def test_the_demo_says_which_commit_it_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert demo.commit() == "unknown"
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    (tmp_path / "a").write_text("1")
    for arguments in (["init", "-q"], ["add", "a"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    clean = demo.commit()
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert demo.commit() == f"{clean}-dirty"


def test_sigterm_of_the_demo_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefect turns it into an exception of its own while a flow runs."""
    from prefect.exceptions import TerminationSignal

    def ended(*_: object, **__: object) -> None:
        raise TerminationSignal(signal=15)

    monkeypatch.setattr("flows.pipeline.pipeline", ended)
    monkeypatch.setattr(demo, "exit_on_sigterm", lambda: None)
    monkeypatch.setattr(sys, "argv", ["demo", "--dataset", "esci"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as left:
        demo.main()
    assert left.value.code == 143
    assert capsys.readouterr().err.startswith("ospo: terminated; ")
