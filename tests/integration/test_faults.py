"""What goes wrong on real machines, done for real: full disks, damaged files. State stays
consistent, a rerun goes on.

Kills of servers and workers are in test_operations.py and test_tracking.py.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import micro_config
from training_shop import weights

from ospo import registry, steps, tracking
from ospo.errors import InputError, OspoError
from ospo.files import read_json
from ospo.policy.weights import load_policy
from ospo.steps.replace import attempt
from ospo.training.callbacks import last_checkpoint

LONG = "presets.nano.rl.steps=4"


def spoil(file: Path) -> None:
    """Flip one bit of the last byte, as a bad disk does."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def train_until(monkeypatch: pytest.MonkeyPatch, step: int, then: type[BaseException]) -> None:
    """Train GRPO; ``then`` is raised at ``step``, as Ctrl-C raises it: in the middle of whatever is
    running.
    """
    write = tracking.Run.log_metrics

    def interrupt(self: tracking.Run, number: int, metrics: dict[str, float]) -> None:
        write(self, number, metrics)
        if number == step:
            raise then

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Run, "log_metrics", interrupt)
        with pytest.raises(then):
            steps.run_rl(micro_config(LONG), "hm", "grpo")


def test_a_damaged_checkpoint_is_found_and_the_one_before_taken(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = steps.run_rl(micro_config(LONG), "hm", "grpo")
    expected = {key: value.clone() for key, value in weights(whole.model).items()}
    (whole.directory / "step.json").unlink()
    train_until(monkeypatch, 4, KeyboardInterrupt)
    checkpoints = attempt(whole.directory) / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
    ]
    spoil(checkpoints / "checkpoint-3" / "optimizer.pt")
    again = steps.run_rl(micro_config(LONG), "hm", "grpo")
    assert "optimizer.pt: sha256: differs" in caplog.text
    assert "checkpoint-2 is taken instead" in caplog.text
    assert all(torch.equal(value, weights(again.model)[key]) for key, value in expected.items())


def test_a_clock_that_is_set_back_costs_no_checkpoint(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Old checkpoints then look newer than new ones; they are told apart by their step."""
    expected = steps.run_rl(micro_config(LONG), "hm", "grpo")
    values = {key: value.clone() for key, value in weights(expected.model).items()}
    (expected.directory / "step.json").unlink()
    write = tracking.Run.log_metrics

    def set_back(self: tracking.Run, number: int, metrics: dict[str, float]) -> None:
        write(self, number, metrics)
        for checkpoint in Path("runs/hm/.grpo.next/checkpoints").glob("checkpoint-*"):
            if checkpoint.stat().st_mtime < time.time() + 3600:
                ahead = time.time() + 86_400 - number
                os.utime(checkpoint, (ahead, ahead))
        if number == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Run, "log_metrics", set_back)
        with pytest.raises(KeyboardInterrupt):
            steps.run_rl(micro_config(LONG), "hm", "grpo")
    kept = sorted(path.name for path in Path("runs/hm/.grpo.next/checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-3"]
    again = steps.run_rl(micro_config(LONG), "hm", "grpo")
    assert all(torch.equal(value, weights(again.model)[key]) for key, value in values.items())


def test_all_checkpoints_damaged_means_from_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "manifest.json").write_text('{"weights": "0"}')
        (folder / "weights").write_text("w")
    assert last_checkpoint(tmp_path) is None
    assert "training starts again" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_damaged_policy_is_never_loaded_and_its_step_done_again(
    workspace: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = steps.run_sft(micro_config(), "hm")
    expected = {
        key: value.clone() for key, value in weights(first.model).items()
    }  # safetensors maps the file
    spoil(first.model / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: sha256: differs"):
        load_policy(first.model)
    with pytest.raises(InputError, match=r"model\.safetensors: sha256: differs"):
        registry.register(
            micro_config(),
            "hm",
            registry.Candidate(
                algorithm="sft",
                model_dir=first.model,
                run_id=first.run_id,
                summary={"sft": {"bm25": 0.1}},
                data_md5="0",
            ),
        )
    again = steps.run_sft(micro_config(), "hm")
    assert not again.skipped
    assert "the step is done again" in caplog.text
    assert all(torch.equal(value, weights(again.model)[key]) for key, value in expected.items())
    assert steps.run_sft(micro_config(), "hm").skipped


@pytest.fixture
def small_disk(workspace: Path) -> Iterator[Path]:
    """``runs/`` on a file system of its own of 24 MB."""
    folder = workspace / "runs"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system of its own needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk to the last byte."""
    file = folder / "filler"
    with pytest.raises(OSError, match="No space left"), file.open("wb", buffering=0) as stream:
        while True:
            if stream.write(b"x" * 65536) < 65536:
                raise OSError(28, "No space left on device")
    return file


def test_a_full_disk_at_a_checkpoint_keeps_the_last_good_one(
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps.run_sft(micro_config(), "hm")
    write = tracking.Run.log_metrics

    def fill_at_three(self: tracking.Run, number: int, metrics: dict[str, float]) -> None:
        write(self, number, metrics)
        if number == 3:
            fill(small_disk)

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Run, "log_metrics", fill_at_three)
        with pytest.raises(
            OspoError, match=r"runs/hm/grpo: the disk is full; checkpoint-2 is whole\. Fix: free"
        ):
            steps.run_rl(micro_config(LONG), "hm", "grpo")
    folder = small_disk / "hm" / ".grpo.next"
    assert last_checkpoint(folder / "checkpoints") == folder / "checkpoints" / "checkpoint-2"
    state = read_json(folder / "step.json")
    assert not state["finished"]
    assert not (folder / "model").exists()
    (small_disk / "filler").unlink()
    done = steps.run_rl(micro_config(LONG), "hm", "grpo")
    assert done.run_id == state["run_id"]
    load_policy(done.model)
