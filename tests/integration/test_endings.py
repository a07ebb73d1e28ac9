"""How commands end on machines that refuse: read-only folders, full disks, SIGTERM; and what killed
ones leave is removed by the next.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from conftest import MICRO, ROOT, micro_config

from ospo import steps, tracking
from ospo.data.prepare import prepare
from ospo.files import atomic_directory, atomic_file, read_json, remove_leftovers

SETTINGS = [part for override in MICRO for part in ("--set", override)]


def ospo(*arguments: str, settings: bool = True) -> list[str]:
    extra = ["--params", str(ROOT / "params.yaml"), *SETTINGS] if settings else []
    return [sys.executable, "-m", "ospo.cli", arguments[0], *extra, *arguments[1:]]


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def mounted(workspace: Path) -> Iterator[Path]:
    """``runs/`` and ``reports/`` as small file systems of their own."""
    folders = [workspace / "runs", workspace / "reports"]
    for folder in folders:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
        if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a file system of its own needs the right to mount one")
    yield workspace
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def one_line(command: list[str], environment: dict[str, str]) -> str:
    """The line of a command that must fail with exactly one."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("ospo: ")]
    assert "Fix:" in line
    return line


def test_read_only_folders_are_one_line(mounted: Path, environment: dict[str, str]) -> None:
    steps.run_sft(micro_config(), "hm")
    for folder in ("runs", "reports"):
        subprocess.run(["mount", "-o", "remount,ro", str(mounted / folder)], check=True)
    policy = "sft=runs/hm/sft/model"
    for command in (
        ospo("sft", "--dataset", "hm", "--set", "seed=5"),
        ospo("evaluate", "--dataset", "hm", "--policy", policy, "--out", "reports/e"),
        ospo("data", "describe", "hm", settings=False),
    ):
        assert "read-only file system" in one_line(command, environment)


def test_a_full_disk_under_an_evaluation_is_one_line(
    mounted: Path, environment: dict[str, str]
) -> None:
    steps.run_sft(micro_config(), "hm")
    filler = mounted / "reports" / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as stream:
        while True:
            if stream.write(b"x" * 65536) < 65536:
                raise OSError(28, "No space left on device")
    policy = "sft=runs/hm/sft/model"
    command = ospo("evaluate", "--dataset", "hm", "--policy", policy, "--out", "reports/e")
    assert "the disk is full" in one_line(command, environment)
    assert not list((mounted / "reports").rglob("*.parquet"))
    assert not list((mounted / "reports").rglob(".*"))


def test_sigterm_says_one_line_and_the_next_run_resumes(
    workspace: Path, environment: dict[str, str]
) -> None:
    long = "presets.nano.sft.steps=400"
    command = ospo(
        "sft", "--dataset", "hm", "--set", long, "--set", "presets.nano.rl.checkpoint_every=5"
    )
    log = workspace / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        attempt = Path("runs/hm/.sft.next")
        deadline = time.monotonic() + 200
        while not list(attempt.glob("checkpoints/checkpoint-*/manifest.json")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    lines = log.read_text().splitlines()
    assert lines[-1] == "ospo: terminated; run the same command again to resume"
    assert "Traceback" not in log.read_text()
    state = read_json(attempt / "step.json")
    config = micro_config(long, "presets.nano.rl.checkpoint_every=5")
    client = mlflow.MlflowClient(tracking.tracking_uri(config, workspace))
    assert client.get_run(state["run_id"]).info.status == "KILLED"
    assert steps.run_sft(config, "hm").run_id == state["run_id"]


def test_sigterm_of_make_up_is_one_line(tmp_path: Path, environment: dict[str, str]) -> None:
    """While it waits for another `make up`: nothing has been started yet."""
    from filelock import FileLock

    for name in ("prefect.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".run").mkdir()
    with FileLock(tmp_path / ".run" / "lock"):
        process = subprocess.Popen(
            [sys.executable, "-m", "servers", "up"],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(8)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    [line] = errors.splitlines()
    assert line.startswith("ospo: terminated; ")


KILLED = """
import os, sys
from pathlib import Path
from ospo import files
{body}
"""


@pytest.mark.parametrize(
    "body",
    [
        "with files.atomic_file(Path('a.parquet')) as t: t.write_text('half'); os._exit(9)",
        "with files.atomic_directory(Path('a')) as t: (t / 'b').write_text('half'); os._exit(9)",
    ],
)
def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(
    tmp_path: Path, environment: dict[str, str], body: str
) -> None:
    command = [sys.executable, "-c", KILLED.format(body=body)]
    assert subprocess.run(command, cwd=tmp_path, env=environment).returncode == 9
    [left] = tmp_path.iterdir()
    waiting = body.replace("os._exit(9)", "print(1, flush=True); sys.stdin.read()")
    living = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(body=waiting)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert living.stdout is not None
    assert living.stdout.readline() == b"1\n"
    assert not left.exists(), "the next write removes it"
    [other] = tmp_path.iterdir()
    assert remove_leftovers(tmp_path) == []
    with atomic_file(tmp_path / "new") as temporary:
        temporary.write_text("1")
    assert other.exists(), "that of a living process stays"
    living.communicate(b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a" if "directory" in body else "a.parquet",
        "new",
    ]


def test_names_that_only_look_alike_stay(tmp_path: Path) -> None:
    names = (".env", ".a.tmp", "a.abcdefgh.tmp", ".a.abcdefgh.tmpx", ".a.ABCDEFGH.tmp")
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / ".a.abcdefgh.tmp.json").write_text("")
    assert [path.name for path in remove_leftovers(tmp_path)] == [".a.abcdefgh.tmp.json"]
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_the_next_preparation_and_step_remove_what_killed_ones_left(
    workspace: Path, hm_raw: Path
) -> None:
    """Temporary folders of `prepare`, and files of an evaluation or a training at any depth."""
    old = [
        workspace / "data" / "prepared" / ".hm.abcdefgh.tmp" / "catalogue.parquet",
        workspace / "runs" / "hm" / ".sft.next" / "deep" / ".weights.abcdefgh.tmp.json",
    ]
    for file in old:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("half")
    prepare("hm", hm_raw, workspace / "data" / "prepared" / "hm", micro_config())
    assert not old[0].parent.exists()

    step = steps.Step(name="sft", kind="sft", inputs={}, params={})
    file = old[1]

    def work(directory: Path, _run: tracking.Recorder) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("half")

    from ospo.steps.step import run_step

    result = run_step(micro_config(), "hm", step, work)
    assert [path.name for path in result.directory.rglob("*")] == ["step.json", "deep"]


def test_a_directory_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "a") as temporary:
        (temporary / "b").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
