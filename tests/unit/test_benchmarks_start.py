"""Benchmarks on a clone without data: one line that says what to run, and no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    "call",
    [
        "additions --dataset hm",
        "credit --quick",
        "learning --dataset esci --seeds 0 --jobs 1",
        "serving --requests 4",
    ],
)
def test_without_prepared_data_a_benchmark_says_what_to_run(tmp_path: Path, call: str) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{call.split()[0]}", *call.split()[1:]],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ospo: ")
    assert "Fix: " in last
    assert "`" in last, "the next command"


def test_without_a_gpu_its_benchmark_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().splitlines()[-1].startswith("ospo: benchmarks.gpu: no GPU here. Fix")
