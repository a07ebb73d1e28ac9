"""What one training step makes of its completions: the group they are compared with, the decision
to stop, the figures that are logged, and which requests the policy has seen.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training_shop import LetterReward, make_policy, small_config

from ospo.credit.tokens import group_advantages, token_advantages
from ospo.data.dataset import PreparedData
from ospo.files import write_manifest
from ospo.policy.seen import read_seen, request_keys, write_seen
from ospo.reward import as_reward
from ospo.training.ospo import KeepStep, OSPOTrainer
from ospo.training.rl import build_trainer, training_engine
from ospo.training.run import TrainingRun
from ospo.training.train import train

ANSWERS = ["aei, xyz", "bcdf, oua", "xyz, aei", "xyz, bcd, aaa"]
PAIRS = ["presets.nano.rl.generations=2"]  # two prompts of two completions each


@pytest.fixture(scope="module")
def policy(esci_tiny: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(small_config(), esci_tiny, tmp_path_factory.mktemp("policy") / "model")


def trainer_for(data: PreparedData, policy: Path, out: Path, *overrides: str) -> OSPOTrainer:
    run = TrainingRun(small_config(*overrides), data, out, policy, LetterReward())
    return build_trainer(run, "ospo")


def completion_ids(trainer: OSPOTrainer, answers: list[str]) -> list[list[int]]:
    tokenizer: Any = trainer.processing_class
    texts = [f"<answer>{answer}</answer>" for answer in answers]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_to_go_compares_with_the_completions_of_the_same_prompt(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(esci_tiny, policy, tmp_path, *PAIRS, "credit.redistribution=to-go")
    assert trainer.engine is not None
    assert trainer.scale_rewards != "none"
    ids = completion_ids(trainer, ANSWERS)
    scored = trainer.reward_function.score(ids, [0, 0, 1, 1])
    mask = torch.zeros(4, max(map(len, ids)))
    for b, row in enumerate(ids):
        mask[b, : len(row)] = 1
    sequence, std = group_advantages(torch.tensor(scored.rewards_B), [0, 0, 1, 1])
    assert (std > 0).all()
    rewards = torch.tensor(scored.rewards_B)
    credits, found = trainer._redistribute(trainer.engine, scored, rewards, sequence, mask)

    def advantages(groups: list[int]) -> torch.Tensor:
        how = trainer.redistribution
        return token_advantages(how, credits, scored.completions, mask, groups, sequence, std)

    torch.testing.assert_close(found, advantages([0, 0, 1, 1]))
    assert (found - advantages([0, 1, 2, 3])).abs().max() > 0.01
    assert (found - advantages([0, 0, 0, 0])).abs().max() > 0.01


def test_each_completion_gets_the_std_of_its_own_group() -> None:
    rewards = torch.tensor([0.1, 0.5, 0.3, 0.3, 0.7, 0.8])
    first, last = np.std([0.1, 0.5], ddof=1), np.std([0.7, 0.8], ddof=1)
    expected = [first, first, 0.0, 0.0, last, last]
    _, std = group_advantages(rewards, [0, 0, 1, 1, 2, 2])
    assert std.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_decision_to_stop_is_the_closing_tag(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(esci_tiny, policy, tmp_path)
    whole, spaced = completion_ids(trainer, ["aei", "aei "])
    scored = trainer.reward_function.score([whole, spaced, whole[:-1]], [0, 0, 0])
    assert scored.completions.closings == ["</answer>", " </answer>", ""]


def test_to_go_alone_asks_what_each_segment_added() -> None:
    for mode, added in (("to-go", True), ("additive", False)):
        config = small_config(f"credit.redistribution={mode}")
        engine = training_engine(config, "ospo", as_reward(LetterReward()), "en")
        assert engine is not None
        assert engine.added is added


def test_the_logged_ndcg_is_the_reward_before_its_price(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(esci_tiny, policy, tmp_path, "presets.nano.rl.repeat_cost=0.5")
    answers = ["aei, aei, aei", "bcd"]
    scored = trainer.reward_function.score(completion_ids(trainer, answers), [0, 0])
    plain = LetterReward()(answers, [0, 0])
    assert scored.rewards_B[0] < plain[0]
    trainer._record(scored, torch.zeros(2), None, {})
    assert trainer._metrics["train"]["ndcg"] == [pytest.approx(plain.mean())]


def test_a_resumed_run_counts_its_forward_passes_on() -> None:
    trainer: Any = SimpleNamespace(_step=0)
    arguments = SimpleNamespace(gradient_accumulation_steps=2)
    KeepStep(trainer).on_train_begin(arguments, SimpleNamespace(global_step=3), None)
    assert trainer._step == 6


@pytest.mark.parametrize("algorithm", ["ospo", "rft", "dpo"])
def test_a_policy_has_seen_what_it_started_from_has_seen(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, algorithm: str
) -> None:
    start = tmp_path / "start"
    shutil.copytree(policy, start)
    write_seen(start, ["0123456789abcdef"])  # of another dataset, say
    write_manifest(start)
    overrides = [f"presets.nano.{part}.steps=1" for part in ("rl", "rft", "dpo")]
    overrides += ["presets.nano.rft.threshold=0.01", "presets.nano.dpo.gap=0.01"]
    config = small_config(*overrides, "presets.nano.dpo.floor=0.01")
    train(TrainingRun(config, esci_tiny, tmp_path / "out", start, LetterReward()), algorithm)
    seen = {"0123456789abcdef", *request_keys(esci_tiny, esci_tiny.rows("train"))}
    assert read_seen(tmp_path / "out" / "model") == seen
