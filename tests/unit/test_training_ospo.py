"""The trainer: credit lands on the right tokens of the right game, and only where it should."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_shop import LetterReward, make_policy, small_config

from ospo.credit.advantages import EPSILON
from ospo.credit.engine import Credit, CreditEngine
from ospo.credit.segments import Segmentation, segment
from ospo.credit.tokens import Redistribution, token_advantages
from ospo.data.dataset import PreparedData
from ospo.errors import ConfigError
from ospo.policy.scratch import build_tokenizer
from ospo.reward.costs import PricedReward, known_words
from ospo.training.ospo import OSPOTrainer, Scored, SearchRewardFunction
from ospo.training.rl import build_trainer
from ospo.training.run import TrainingRun


@pytest.fixture(scope="module")
def policy(esci_tiny: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(small_config(), esci_tiny, tmp_path_factory.mktemp("policy") / "model")


def trainer_for(
    data: PreparedData,
    policy: Path,
    out: Path,
    algorithm: Any = "ospo",
    *overrides: str,
    reward: Any = None,
) -> OSPOTrainer:
    out.mkdir(parents=True, exist_ok=True)
    config = small_config(*overrides)
    return build_trainer(
        TrainingRun(config, data, out, policy, reward or LetterReward()), algorithm
    )


def scored(tokenizer: Any, completions: list[list[int]]) -> Scored:
    return SearchRewardFunction(LetterReward(), tokenizer).score(
        completions, [0] * len(completions)
    )


def fake_credit(answer: str, phi: list[float]) -> Credit:
    added = np.array(phi)
    return Credit(segment(answer, "delimiters"), added, sum(phi), len(phi) + 2, 0.0, added_N=added)


# --- credit lands on the right tokens
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["<answer>", "<think>hm, größe?</think> <answer>", "日本 👟<answer>", ""]
)
def test_credit_lands_on_the_answers_own_tokens(prefix: str) -> None:
    tokenizer = build_tokenizer(["red dress, linen", "größe", "hm"] * 3, 500)
    answer = "red café 👟, linen"
    ids = tokenizer(f"{prefix}{answer}</answer>", add_special_tokens=False)["input_ids"]
    special = len(tokenizer(prefix, add_special_tokens=False)["input_ids"])
    # A special token inside the completion takes no characters and must not shift what follows.
    ids = [*ids[:special], tokenizer.bos_token_id, *ids[special:], tokenizer.eos_token_id]
    completions = scored(tokenizer, [ids]).completions
    assert completions.answers == [answer]
    credit = fake_credit(answer, [1.0, -1.0])
    how = Redistribution("additive", alpha=1.0, clip=9.0)
    result = token_advantages(
        how,
        [credit],
        completions,
        torch.ones(1, len(ids)),
        [0],
        torch.tensor([0.5]),
        torch.tensor([1.0]),
    )[0]
    text, spans = completions.texts[0], completions.spans[0]
    first, second = text.index("red"), text.index("linen")
    for t, (start, end) in enumerate(spans):
        if end == start or end <= first or text[start:end] == "</answer>":
            assert result[t] == pytest.approx(0.5)  # outside the answer: GRPO's advantage
        elif end <= second - 1:
            assert result[t] > 0.5, text[start:end]
        elif start >= second:
            assert result[t] < 0.5, text[start:end]
    assert result.mean() == pytest.approx(0.5)


def test_the_rewarded_text_is_decoded_from_the_completions_own_ids() -> None:
    tokenizer = build_tokenizer(["red dress"] * 3, 400)
    ids = tokenizer("<answer>aei</answer>", add_special_tokens=False)["input_ids"]
    found = scored(tokenizer, [[*ids, tokenizer.eos_token_id], [tokenizer.eos_token_id]])
    assert found.completions.answers == ["aei", ""]
    assert found.rewards_B.tolist() == [1.0, 0.0]


# --- credit and reward are of one game
# -------------------------------------------------------------------------------------


def test_the_credits_of_a_step_sum_up_the_very_rewards(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(esci_tiny, policy, tmp_path)
    trainer.train()
    frame = trainer.table.frame()
    assert len(frame) == 4 * 2 * 4
    rl = small_config().preset.rl
    reward = PricedReward(LetterReward(), rl.repeat_cost, rl.word_cost, known_words(esci_tiny))
    for row in frame.iter_rows(named=True):
        assert row["reward"] == reward([row["answer"]], [0])[0]
        assert "".join(row["segments"]) in ("", row["answer"])
        assert len(row["segments"]) == len(row["credit"])


def test_credit_from_another_game_than_the_reward_is_an_error(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(esci_tiny, policy, tmp_path)
    assert trainer.engine is not None
    trainer.engine = CreditEngine(
        lambda texts, rows: np.full(len(texts), 0.123), segments="delimiters"
    )
    with pytest.raises(ValueError, match="not the one the rewards come from"):
        trainer.train()


# --- poor completions get negative advantages
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", ["paper-prop", "paper-rank", "hybrid", "signed-prop", "additive", "to-go"]
)
def test_a_completion_of_reward_0_gets_a_negative_advantage(mode: Any) -> None:
    tokenizer = build_tokenizer(["red dress"] * 3, 400)
    ids = tokenizer("<answer>xyz, qrs</answer>", add_special_tokens=False)["input_ids"]
    found = scored(tokenizer, [ids])
    assert found.rewards_B.tolist() == [0.0]
    result = token_advantages(
        Redistribution(mode, alpha=0.7),
        [fake_credit("xyz, qrs", [0.0, 0.0])],
        found.completions,
        torch.ones(1, len(ids)),
        [0],
        torch.tensor([-1.2]),
        torch.tensor([0.3]),
    )
    assert result.squeeze().tolist() == pytest.approx([-1.2] * len(ids))


# --- padding, and sequence-level ratios
# -------------------------------------------------------------------


def test_padding_gets_0_and_groups_without_spread_are_skipped() -> None:
    tokenizer = build_tokenizer(["red dress"] * 3, 400)
    long = tokenizer("<answer>red, dress</answer>", add_special_tokens=False)["input_ids"]
    short = tokenizer("<answer>red</answer>", add_special_tokens=False)["input_ids"]
    mask = torch.zeros(2, len(long))
    mask[0], mask[1, : len(short)] = 1, 1
    completions = scored(tokenizer, [long, short]).completions
    skipped = Credit(Segmentation("red", ((0, 3),)), np.zeros(1), 0.3, 0, 0.0, True)
    result = token_advantages(
        Redistribution("additive"),
        [fake_credit("red, dress", [0.3, -0.1]), skipped],
        completions,
        mask,
        [0, 1],
        torch.tensor([1.0, 0.0]),
        torch.tensor([0.5, 0.0]),
    )
    assert torch.isfinite(result).all()
    assert (result[mask == 0] == 0).all()
    assert (result[1] == 0).all()
    assert result[0].std() > 0


def test_sequence_level_ratios_are_refused_with_the_reason(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="erases token credit"):
        small_config("presets.nano.rl.importance_sampling_level=sequence")
    trainer = trainer_for(esci_tiny, policy, tmp_path)
    args = copy.deepcopy(trainer.args)
    args.importance_sampling_level = "sequence"
    with pytest.raises(ValueError, match="erases token credit"):
        OSPOTrainer(
            model=trainer.model,
            args=args,
            reward_funcs=trainer.reward_function,
            train_dataset=trainer.train_dataset,
            processing_class=trainer.processing_class,
            engine=trainer.engine,
            redistribution=Redistribution("paper-prop"),
        )


# --- length; the loss
# -------------------------------------------------------------------------------------


def loss_of(
    trainer: OSPOTrainer, advantages: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = {
        "prompt_ids": torch.full((len(ids), 2), trainer.processing_class.bos_token_id),
        "prompt_mask": torch.ones(len(ids), 2, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": advantages,
        "num_items_in_batch": mask.sum(),
    }
    return trainer._compute_loss(trainer.model, inputs)


IDS = torch.tensor([[40, 41, 42], [43, 44, 45]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
ADVANTAGES = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.25, 0.0]])


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        # On policy every ratio is 1, so each token's loss is −A. Two completions of 3 and 2 tokens,
        # 8 tokens at most.
        ("dapo", -(1.0 - 2.0 + 0.5 + 3.0 + 0.25) / 5),
        ("grpo", -((1.0 - 2.0 + 0.5) / 3 + (3.0 + 0.25) / 2) / 2),
        ("bnpo", -(1.0 - 2.0 + 0.5 + 3.0 + 0.25) / 5),
        ("dr_grpo", -(1.0 - 2.0 + 0.5 + 3.0 + 0.25) / (2 * 8)),
    ],
)
def test_the_loss_by_hand(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, loss_type: str, expected: float
) -> None:
    overrides = [f"presets.nano.rl.loss_type={loss_type}"]
    # Two completions in all: the same generation batch that the loss is normalised over.
    overrides += ["presets.nano.rl.prompts_per_step=1", "presets.nano.rl.generations=2"]
    trainer = trainer_for(esci_tiny, policy, tmp_path, "ospo", *overrides)
    assert loss_of(trainer, ADVANTAGES, IDS, MASK).item() == pytest.approx(expected, rel=1e-5)


def test_each_tokens_gradient_follows_its_own_advantage(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(esci_tiny, policy, tmp_path)

    def gradient(advantages: torch.Tensor) -> torch.Tensor:
        trainer.model.zero_grad()
        loss_of(trainer, advantages, IDS, MASK).backward()
        return torch.cat(
            [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        ).clone()

    # The gradient of the whole is the sum over tokens of A_t times what token t alone gives:
    # nothing is averaged.
    whole = gradient(ADVANTAGES)
    alone = torch.zeros_like(whole)
    for b in range(2):
        for t in range(3):
            unit = torch.zeros(2, 3)
            unit[b, t] = 1.0
            alone += ADVANTAGES[b, t] * gradient(unit)
    torch.testing.assert_close(whole, alone, rtol=1e-3, atol=1e-6)
    averaged = gradient(torch.tensor([[-1 / 6] * 3, [1.625, 1.625, 0.0]]))
    assert (whole - averaged).norm() > 0.1 * whole.norm()


def test_ospo_moves_tokens_of_one_completion_apart_and_grpo_does_not(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    for algorithm in ("grpo", "ospo"):
        trainer = trainer_for(esci_tiny, policy, tmp_path / algorithm, algorithm)
        trainer.model.train()
        batch = [trainer.train_dataset[i] for i in (0, 0, 0, 0, 1, 1, 1, 1)]
        out = trainer._generate_and_score_completions(batch)
        advantages, mask = out["advantages"], out["completion_mask"].bool()
        if algorithm == "grpo":
            assert advantages.shape == (8,)
            continue
        assert advantages.shape == mask.shape
        rewards = torch.tensor(trainer.table.frame()["reward"].to_list()).view(2, 4)
        sequence = (rewards - rewards.mean(1, keepdim=True)) / (
            rewards.std(1, keepdim=True) + EPSILON
        )
        lengths = mask.sum(1)
        means = (advantages * mask).sum(1) / lengths
        torch.testing.assert_close(
            means, sequence.flatten(), rtol=1e-4, atol=1e-5
        )  # (1/T) Σ A_t = A
        answers = trainer.table.frame()["answer"].to_list()
        several = [b for b in range(8) if "," in answers[b]]
        if several:
            assert max(advantages[b][mask[b]].std().item() for b in several) > 0


def test_evaluation_is_left_as_it_is(esci_tiny: PreparedData, policy: Path, tmp_path: Path) -> None:
    trainer = trainer_for(esci_tiny, policy, tmp_path)
    trainer.model.eval()
    out = trainer._generate_and_score_completions([trainer.train_dataset[i] for i in (0, 0, 0, 0)])
    assert out["advantages"].shape == (4,)
    assert not len(trainer.table.frame())
    assert not trainer._metrics["train"]


def test_an_engine_and_a_redistribution_come_together(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(esci_tiny, policy, tmp_path, "grpo")
    common: dict[str, Any] = {
        "model": trainer.model,
        "args": trainer.args,
        "train_dataset": trainer.train_dataset,
    }
    common["processing_class"] = trainer.processing_class
    with pytest.raises(ValueError, match="credit engine"):
        OSPOTrainer(
            **common,
            reward_funcs=trainer.reward_function,
            redistribution=Redistribution("paper-prop"),
        )
    with pytest.raises(ValueError, match="SearchRewardFunction"):
        OSPOTrainer(**common, reward_funcs=lambda **_: [0.0])


def test_only_two_methods_of_the_library_are_overridden() -> None:
    from trl import GRPOTrainer

    shared = {n for n in vars(OSPOTrainer) if n in dir(GRPOTrainer) and not n.startswith("__")}
    assert shared == {"_calculate_rewards", "_generate_and_score_completions"}


def test_the_reward_is_learned(esci_tiny: PreparedData, policy: Path, tmp_path: Path) -> None:
    gains = {}
    for algorithm in ("grpo", "ospo"):
        overrides = [
            "presets.nano.rl.steps=25",
            "presets.nano.rl.prompts_per_step=4",
            "presets.nano.rl.learning_rate=1.0e-2",
            "presets.nano.rl.word_cost=0.0",  # the reward is about letters, not words
        ]
        trainer = trainer_for(esci_tiny, policy, tmp_path / algorithm, algorithm, *overrides)
        trainer.train()
        rewards = trainer.table.frame()["reward"].to_numpy().reshape(25, -1).mean(axis=1)
        gains[algorithm] = np.mean(rewards[-5:]) - np.mean(rewards[:5])
    assert min(gains.values()) > 0.1, gains
