"""The result of a run is its best policy by validation requests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_shop import LetterReward, make_policy, small_config, weights
from transformers import TrainerCallback

from ospo.data.dataset import PreparedData
from ospo.files import read_json
from ospo.retrieval.base import RetrieverError
from ospo.training.looks import LOOKS
from ospo.training.rl import train_rl
from ospo.training.run import TrainingRun


class Looked(LetterReward):
    """Letters for training requests; for others the look's number decides."""

    def __init__(self, data: PreparedData, *looks: float, fails_at: int = -1):
        self.training = set(data.rows("train").tolist())
        self.looks, self.seen, self.fails_at = looks, [], fails_at

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        if self.training.issuperset(rows):
            return super().__call__(texts, rows)
        self.seen.append(list(rows))
        if len(self.seen) - 1 == self.fails_at:
            raise RetrieverError("engine", "is away", "start it")
        return np.full(len(texts), self.looks[len(self.seen) - 1])


class Kept(TrainerCallback):
    """Copies of the weights by step; stops the run, as a kill would, at a step of choice."""

    def __init__(self, stop: int = -1):
        self.stop, self.at = stop, {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        copies = {k: v.detach().clone() for k, v in kwargs["model"].state_dict().items()}
        self.at[state.global_step] = copies

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.stop:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def policy(esci_tiny: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(small_config(), esci_tiny, tmp_path_factory.mktemp("policy") / "model")


def run(
    data: PreparedData,
    policy: Path,
    out: Path,
    reward: Any,
    kept: Kept,
    logs: Any,
    *overrides: str,
) -> None:
    config = small_config(
        "presets.nano.rl.steps=5",
        "presets.nano.rl.validate_every=2",
        "presets.nano.rl.validation_requests=7",
        "presets.nano.rl.repeat_cost=0.5",
        *overrides,
    )
    train_rl(TrainingRun(config, data, out, policy, reward, on_log=logs, callbacks=(kept,)), "grpo")


def nothing(step: int, metrics: dict[str, float]) -> None:
    pass


@pytest.mark.parametrize(
    ("looks", "best"),
    [((0.125, 0.5, 0.875, 0.25), 4), ((0.125, 0.5, 0.5, 0.25), 2), ((0.5, 0.25, 0.25, 0.75), 5)],
    ids=["an earlier one", "the earliest of equals", "the last"],
)
def test_the_best_look_is_the_result(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, looks: tuple[float, ...], best: int
) -> None:
    reward, kept, logged = Looked(esci_tiny, *looks), Kept(), []
    run(
        esci_tiny,
        policy,
        tmp_path,
        reward,
        kept,
        lambda step, metrics: logged.append((step, metrics.get("validation/ndcg"))),
    )
    found = weights(tmp_path / "model")
    assert all(torch.equal(found[key], kept.at[best][key]) for key in found)
    assert not all(torch.equal(kept.at[2][key], kept.at[4][key]) for key in found)
    written = [(look["step"], look["ndcg"]) for look in read_json(tmp_path / LOOKS)]
    assert written == list(zip((0, 2, 4, 5), looks, strict=True))
    assert [(step, value) for step, value in logged if value is not None] == written
    assert not (tmp_path / "best").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_looks_are_at_the_same_few_validation_requests(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    reward = Looked(esci_tiny, 0.1, 0.2, 0.3, 0.4)
    run(esci_tiny, policy, tmp_path, reward, Kept(), nothing)
    assert len(reward.seen) == 4
    assert all(rows == reward.seen[0] for rows in reward.seen)
    assert len(set(reward.seen[0])) == 7
    assert set(reward.seen[0]) <= set(esci_tiny.rows("validation").tolist())


def test_a_policy_that_nothing_improves_is_the_one_it_began_with(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    run(esci_tiny, policy, tmp_path, Looked(esci_tiny, 0.9, 0.4, 0.9, 0.2), Kept(), nothing)
    found, began = weights(tmp_path / "model"), weights(policy)
    assert all(torch.equal(found[key], began[key]) for key in began)


@pytest.mark.parametrize("best", [2, 4, 5])
@pytest.mark.parametrize("every", [2, 3], ids=["at a look", "between looks"])
def test_an_interrupted_run_repeats_no_look_and_ends_with_the_same_policy(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, best: int, every: int
) -> None:
    """Wherever its checkpoint lies, it looks where an unbroken run does, and nowhere else."""
    saved = f"presets.nano.rl.checkpoint_every={every}"
    looks = {0: 0.1, 2: 0.2, 4: 0.3, 5: 0.15} | {best: 0.9}
    kept = Kept()
    run(esci_tiny, policy, tmp_path / "whole", Looked(esci_tiny, *looks.values()), kept, nothing)
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        first = Looked(esci_tiny, *looks.values())
        run(esci_tiny, policy, out, first, Kept(every), nothing, saved)
    assert not (out / "model").exists()
    again = Looked(esci_tiny, looks[4], looks[5])
    run(esci_tiny, policy, out, again, Kept(), nothing, saved)
    assert len(again.seen) == 2
    whole, resumed = weights(tmp_path / "whole" / "model"), weights(out / "model")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert read_json(out / LOOKS) == read_json(tmp_path / "whole" / LOOKS)


@pytest.mark.parametrize(("looks", "best"), [((0.1, 0.2, 0.9), 8), ((0.1, 0.9, 0.2), 4)])
def test_a_run_that_collapses_leaves_the_best_of_its_looks(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, looks: tuple[float, ...], best: int
) -> None:
    """It stops between two looks; the last look is not the last policy."""
    kept = Kept()
    run(
        esci_tiny, policy, tmp_path, Looked(esci_tiny, *looks), kept, nothing,
        "presets.nano.rl.steps=14", "presets.nano.rl.validate_every=4",
        "presets.nano.rl.collapse_entropy=50",
    )  # fmt: skip
    assert read_json(tmp_path / "collapse.json")["step"] == 10
    found = weights(tmp_path / "model")
    assert all(torch.equal(found[key], kept.at[best][key]) for key in found)
    assert not (tmp_path / "best").exists()


def test_a_retriever_that_fails_in_a_look_loses_no_step(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    looks, kept = (0.1, 0.2, 0.3, 0.4), Kept()
    run(esci_tiny, policy, tmp_path / "whole", Looked(esci_tiny, *looks), kept, nothing)
    out = tmp_path / "failed"
    with pytest.raises(RetrieverError, match="checkpoint-4 is taken"):
        run(esci_tiny, policy, out, Looked(esci_tiny, *looks, fails_at=2), Kept(), nothing)
    again = Looked(esci_tiny, 0.3, 0.4)
    run(esci_tiny, policy, out, again, Kept(), nothing)
    assert len(again.seen) == 2
    whole, resumed = weights(tmp_path / "whole" / "model"), weights(out / "model")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
