"""When the warm start ends, which of its policies is the result, and when it begins again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_shop import LetterReward, small_config, weights
from transformers import TrainerCallback

from ospo.data.dataset import PreparedData
from ospo.errors import OspoError
from ospo.files import read_json
from ospo.metrics import read_metrics
from ospo.training.looks import LOOKS
from ospo.training.run import TrainingRun
from ospo.training.sft import train_sft
from ospo.training.warm_start import ATTEMPTS, Verdict, verdict

RAW = 0.25


@pytest.mark.parametrize(
    ("looks", "last", "expected"),
    [
        ([], False, "go on"),
        ([0.2], False, "go on"),  # early
        ([0.2, 0.34], False, "again"),  # late, and .35 would have been learned
        ([0.2, 0.34], True, "go on"),
        ([0.2, 0.35], False, "go on"),
        ([0.2, 0.35, 0.3], False, "go on"),
        ([0.2, 0.35, 0.3, 0.35], False, "done"),  # an equal is no new best
        ([0.2, 0.35, 0.3, 0.36], False, "go on"),
        ([0.34, 0.3, 0.3, 0.3], True, "go on"),  # patience is for those that have learned
        ([0.4, 0.3, 0.3], True, "done"),
    ],
)
def test_the_warm_start_ends_by_what_it_has_learned(
    looks: list[float], last: bool, expected: Verdict
) -> None:
    sft = small_config(
        "presets.nano.sft.learned=0.1",
        "presets.nano.sft.patience=2",
        "presets.nano.sft.restart_after=20",
    ).preset.sft
    made = [{"step": 10 * (n + 1), "ndcg": ndcg} for n, ndcg in enumerate(looks)]
    assert verdict(made, RAW, sft, last) == expected


def test_without_patience_or_a_step_to_restart_after_all_steps_are_taken() -> None:
    sft = small_config("presets.nano.sft.learned=0.1").preset.sft
    sft = sft.model_copy(update={"patience": 0, "restart_after": 0})
    made = [{"step": step, "ndcg": ndcg} for step, ndcg in ((1, 0.5), (2, 0.1), (3, 0.1))]
    assert verdict(made, RAW, sft, False) == "go on"
    assert verdict(made[1:], RAW, sft, False) == "go on"


class Looked(LetterReward):
    """The raw query earns RAW; what each look finds is told beforehand."""

    def __init__(self, data: PreparedData, *looks: float):
        self.queries = [request.query for request in data.requests]
        self.looks, self.made = list(looks), 0
        self.rows: set[int] = set()

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        self.rows |= set(rows)
        if list(texts) == [self.queries[row] for row in rows]:
            return np.full(len(texts), RAW)
        self.made += 1
        return np.full(len(texts), self.looks[self.made - 1])


class Kept(TrainerCallback):
    """Weights by draw and step; stops the run, as a kill would, at the n-th step of all: before it
    is logged, or once its checkpoint is written (``saved``).
    """

    def __init__(self, stop: int = -1, saved: bool = True):
        self.stop, self.saved, self.steps = stop, saved, 0
        self.draws: list[dict[int, dict[str, torch.Tensor]]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.draws.append({})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        copies = {k: v.detach().clone() for k, v in kwargs["model"].state_dict().items()}
        self.draws[-1][state.global_step] = copies
        self.steps += 1
        if self.steps == self.stop and not self.saved:
            raise KeyboardInterrupt

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.steps == self.stop:
            raise KeyboardInterrupt


def warm(
    data: PreparedData, out: Path, reward: Any, kept: Kept, logs: Any = None, *more: str
) -> None:
    config = small_config(
        "presets.nano.sft.steps=10",
        "presets.nano.sft.validate_every=2",
        "presets.nano.sft.learned=0.1",
        "presets.nano.sft.patience=2",
        "presets.nano.sft.restart_after=4",
        "presets.nano.sft.attempts=3",
        "presets.nano.rl.validation_requests=7",
        *more,
    )
    listener = logs or (lambda step, metrics: None)
    train_sft(TrainingRun(config, data, out, reward=reward, on_log=listener, callbacks=(kept,)))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_it_ends_when_learned_and_the_best_look_is_the_result(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    reward, kept, logged = Looked(esci_tiny, 0.3125, 0.5, 0.375, 0.4375), Kept(), []
    warm(
        esci_tiny,
        tmp_path,
        reward,
        kept,
        lambda step, metrics: logged.append((step, metrics.get("validation/ndcg"))),
    )
    assert max(kept.draws[0]) == 8  # of 10 steps
    assert same(weights(tmp_path / "model"), kept.draws[0][4])
    assert not same(kept.draws[0][4], kept.draws[0][8])
    looks = [(2, 0.3125), (4, 0.5), (6, 0.375), (8, 0.4375)]
    assert [(look["step"], look["ndcg"]) for look in read_json(tmp_path / LOOKS)] == looks
    assert [row for row in logged if row[1] is not None] == looks
    assert reward.rows <= set(esci_tiny.rows("validation").tolist())
    assert len(reward.rows) == 7
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "model", LOOKS}


def test_a_draw_that_learns_nothing_is_given_up_for_another_but_not_the_last(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    looks = [0.3125, 0.3125, 0.3125, 0.34375, 0.1875, 0.1875, 0.1875, 0.34375, 0.3125]
    reward, kept, logged = Looked(esci_tiny, *looks), Kept(), []
    warm(esci_tiny, tmp_path, reward, kept, lambda step, metrics: logged.append(step))
    assert [max(draw) for draw in kept.draws] == [4, 4, 10]
    assert not same(kept.draws[0][1], kept.draws[1][1])
    assert not same(kept.draws[1][1], kept.draws[2][1])
    assert same(weights(tmp_path / "model"), kept.draws[2][8])
    assert [draw["ndcg"] for draw in read_json(tmp_path / ATTEMPTS)] == [0.3125, 0.34375]
    assert sorted(set(logged)) == list(range(1, 19))  # steps of all draws, counted on
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 11))


@pytest.mark.parametrize(
    ("stop", "saved"),
    [(2, True), (4, True), (5, False), (12, True)],
    ids=["first draw", "given up, not recorded", "second draw, no checkpoint", "done"],
)
def test_an_interrupted_warm_start_ends_with_the_same_policy(
    esci_tiny: PreparedData, tmp_path: Path, stop: int, saved: bool
) -> None:
    looks = [0.3, 0.3, 0.3, 0.5, 0.4, 0.45]  # the second draw's step 4 is the best; ends at step 8
    warm(esci_tiny, tmp_path / "whole", Looked(esci_tiny, *looks), Kept())
    out, first = tmp_path / "stopped", Looked(esci_tiny, *looks)
    with pytest.raises(KeyboardInterrupt):
        warm(esci_tiny, out, first, Kept(stop, saved))
    assert not (out / "model").exists()
    again, kept = Looked(esci_tiny, *looks[first.made :]), Kept()
    warm(esci_tiny, out, again, kept)
    assert first.made + again.made == len(looks)  # no look twice
    assert same(weights(tmp_path / "whole" / "model"), weights(out / "model"))
    for name in (LOOKS, ATTEMPTS):
        assert read_json(out / name) == read_json(tmp_path / "whole" / name)
    assert len(kept.draws) == (1 if stop > 4 else 2)


def test_a_warm_start_interrupted_after_its_last_look_looks_no_more(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    often = ("presets.nano.sft.validate_every=1", "presets.nano.rl.checkpoint_every=1")
    kept = Kept(3)
    with pytest.raises(KeyboardInterrupt):
        warm(esci_tiny, tmp_path, Looked(esci_tiny, 0.5, 0.4, 0.4), kept, None, *often)
    again = Looked(esci_tiny, 0.9)
    warm(esci_tiny, tmp_path, again, Kept(), None, *often)
    assert again.made == 0
    assert same(weights(tmp_path / "model"), kept.draws[0][1])


def test_looks_without_a_reward_are_refused(esci_tiny: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(OspoError, match="no reward"):
        warm(esci_tiny, tmp_path, None, Kept())
