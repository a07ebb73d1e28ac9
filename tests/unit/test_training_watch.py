"""What is watched while a policy trains: collapse stops it and keeps the last good policy; tables
of completions.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_shop import LetterReward, make_policy, small_config, weights
from transformers import TrainerCallback

from ospo.data.dataset import PreparedData
from ospo.errors import OspoError
from ospo.training.callbacks import last_checkpoint
from ospo.training.collapse import WINDOW, CollapseStop
from ospo.training.rl import train_rl
from ospo.training.run import TrainingRun
from ospo.training.train import train


@pytest.fixture(scope="module")
def policy(esci_tiny: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(small_config(), esci_tiny, tmp_path_factory.mktemp("policy") / "model")


class FallingReward(LetterReward):
    """Worth something for the first ``good`` calls, next to nothing afterwards."""

    def __init__(self, good: int):
        super().__init__()
        self.good, self.calls = good, 0

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        self.calls += 1
        values = super().__call__(texts, rows)
        return values + 0.5 if self.calls <= self.good else values * 1e-3


def run(data: PreparedData, policy: Path, out: Path, reward: Any, *overrides: str) -> list[int]:
    steps: list[int] = []
    config = small_config("presets.nano.rl.steps=40", "presets.nano.rl.repeat_cost=0", *overrides)
    train_rl(
        TrainingRun(
            config, data, out, policy, reward, on_log=lambda step, metrics: steps.append(step)
        ),
        "grpo",
    )
    return steps


def test_a_falling_reward_stops_the_run_and_the_good_policy_stays(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    steps = run(
        esci_tiny, policy, tmp_path, FallingReward(WINDOW + 2), "presets.nano.rl.checkpoint_every=4"
    )
    assert WINDOW + 2 < steps[-1] < 40
    report = json.loads((tmp_path / "collapse.json").read_text())
    assert report["step"] == steps[-1]
    assert (
        report["kept_step"] == WINDOW + 2
    )  # a multiple of 4, the last whole window of good rewards
    assert "reward" in report["reason"]
    start, kept = weights(policy), weights(tmp_path / "model")
    assert any(not torch.equal(start[key], kept[key]) for key in start)
    assert not (tmp_path / "good").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_a_collapse_before_any_checkpoint_leaves_the_policy_it_began_with(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    run(esci_tiny, policy, tmp_path, FallingReward(WINDOW), "presets.nano.rl.checkpoint_every=40")
    start, kept = weights(policy), weights(tmp_path / "model")
    assert all(torch.equal(start[key], kept[key]) for key in start)


def test_entropy_that_is_gone_stops_the_run(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    # The untrained policy's entropy is about log(vocabulary): a floor above that is crossed as soon
    # as it is looked at.
    steps = run(esci_tiny, policy, tmp_path, LetterReward(), "presets.nano.rl.collapse_entropy=50")
    assert steps[-1] == WINDOW
    assert "entropy" in json.loads((tmp_path / "collapse.json").read_text())["reason"]


def test_both_can_be_switched_off(esci_tiny: PreparedData, policy: Path, tmp_path: Path) -> None:
    off = [
        "presets.nano.rl.collapse_reward=0",
        "presets.nano.rl.collapse_entropy=0",
        "presets.nano.rl.steps=16",
    ]
    assert run(esci_tiny, policy, tmp_path, FallingReward(WINDOW), *off)[-1] == 16
    assert not (tmp_path / "collapse.json").exists()


def test_what_was_seen_before_an_interruption_counts(tmp_path: Path) -> None:
    # Steps after the checkpoint are gone through again: what they logged does not count.
    rows = [{"step": s, "reward": 0.6 if s <= 12 else 0.9, "entropy": 1.0} for s in range(1, 15)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small_config()
    stop = CollapseStop(config.preset.rl, config.preset.model, tmp_path, tmp_path, [])
    state = type("State", (), {"global_step": 12, "is_world_process_zero": True})()
    stop.on_train_begin(type("Arguments", (), {"save_steps": 4})(), state, None)
    assert len(stop.rewards) == WINDOW
    assert stop.best == pytest.approx(0.6)
    assert list(stop.rewards) == [0.6] * WINDOW
    assert stop.kept_step == 12


def test_tables_of_completions_come_with_each_phrases_credit(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    tables: list[tuple[int, list[dict[str, Any]]]] = []
    config = small_config("presets.nano.rl.table_every=2")
    train_rl(TrainingRun(config, esci_tiny, tmp_path, policy, LetterReward(), on_table=lambda step, rows: tables.append((step, rows))), "ospo")  # fmt: skip
    assert [step for step, _ in tables] == [1, 2, 4]
    for step, rows in tables:
        assert len(rows) == 8
        assert {row["step"] for row in rows} == {step}
        assert set(rows[0]) == {
            "step",
            "request",
            "answer",
            "reward",
            "advantage",
            "credit",
            "completion",
        }
    assert any(row["credit"] for _, rows in tables for row in rows)


class Poison(TrainerCallback):
    """Makes one step's gradient NaN, as an overflow would."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            parameter = next(iter(kwargs["model"].parameters()))
            parameter.register_hook(lambda gradient: gradient * float("nan"))


@pytest.mark.parametrize("algorithm", ["grpo", "rft"])
def test_a_gradient_that_is_not_finite_ends_the_run_and_the_checkpoint_stays(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, algorithm: str
) -> None:
    config = small_config(
        *(f"presets.nano.{part}.steps=4" for part in ("rl", "rft")),
        "presets.nano.rft.threshold=0.05",
        "presets.nano.rft.batch_size=2",
    )
    logged: list[dict[str, float]] = []
    run = TrainingRun(
        config,
        esci_tiny,
        tmp_path,
        policy,
        LetterReward(),
        on_log=lambda step, metrics: logged.append(metrics),
        callbacks=[Poison(4)],
    )
    with pytest.raises(OspoError, match="the gradient of step 4 is not finite; checkpoint-2 is ke"):
        train(run, algorithm)
    assert not (tmp_path / "model").exists()
    assert len(logged) == 3
    assert all(np.isfinite(list(row.values())).all() for row in logged)
    checkpoint = last_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    tensors = load_file(checkpoint / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    # The same command resumes; without the fault it comes to the end.
    train(replace(run, callbacks=()), algorithm)
    assert (tmp_path / "model" / "config.json").is_file()
