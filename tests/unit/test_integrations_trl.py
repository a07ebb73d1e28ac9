"""Phrase credit in TRL's own trainer, with a reward function and a data set of the user's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from documentation import python_blocks
from policy_shop import TEXTS, TINY
from trl import GRPOConfig, GRPOTrainer

from ospo.credit import CreditEngine, Redistribution
from ospo.integrations.trl import PhraseCredit, PhraseCreditTrainer
from ospo.policy.weights import create_policy, save_policy

torch.set_num_threads(1)


def vowels(prompts: list[Any], completions: list[Any], wanted: list[str], **_: Any) -> list[float]:
    """How often a row's letter stands among a completion's first sixty characters."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(a == w for a in t[:60]) / 10 for t, w in zip(texts, wanted, strict=True)]


def length(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    assert len(texts) == len(completion_ids)
    return [-len(text) / 100 for text in texts]


def unsure(completions: list[Any], **_: Any) -> list[float | None]:
    """No opinion on completions with an e."""
    return [None if "e" in str(c) else 0.1 for c in completions]


def trainer_of(
    folder: Path,
    kind: type = PhraseCreditTrainer,
    talk: bool = False,
    rewards: Any = (vowels, length),
    config: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    network, tokenizer = create_policy(TINY, TEXTS, 1)
    prompts = ["red dress", "blue"]
    asked = [[{"role": "user", "content": p}] for p in prompts] if talk else prompts
    data = Dataset.from_dict({"prompt": asked, "wanted": ["e", "a"]})
    settings = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 8,
        "num_generations": 4, "max_completion_length": 12, "use_cpu": True, "report_to": "none",
        "logging_steps": 1, "save_strategy": "no", "seed": 3, "disable_tqdm": True,
        "learning_rate": 1e-3, "bf16": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    args = GRPOConfig(**settings | (config or {}))
    return kind(
        model=network, args=args, reward_funcs=list(rewards), train_dataset=data,
        processing_class=tokenizer, **options,
    )  # fmt: skip


def seen_advantages(trainer: Any) -> list[dict[str, torch.Tensor]]:
    """What each generation hands to the loss."""
    kept: list[dict[str, torch.Tensor]] = []
    plain = trainer._generate_and_score_completions

    def keep(inputs: Any) -> dict[str, Any]:
        out = plain(inputs)
        kept.append({k: v for k, v in out.items() if isinstance(v, torch.Tensor)})
        return out

    trainer._generate_and_score_completions = keep
    trainer.train()
    return kept


@pytest.mark.parametrize("talk", [False, True])
@pytest.mark.parametrize("mode", ["to-go", "additive"])
def test_the_real_trainer_trains_with_token_advantages(tmp_path: Path, talk: bool, mode) -> None:
    how = PhraseCredit(Redistribution(mode), segments="tokens", budget=16)
    ours = seen_advantages(trainer_of(tmp_path / "a", talk=talk, credit=how))
    plain = seen_advantages(trainer_of(tmp_path / "b", GRPOTrainer, talk=talk))
    first, theirs = ours[0], plain[0]
    assert torch.equal(first["completion_ids"], theirs["completion_ids"])  # same draws
    mask_BT = first["completion_mask"]
    mean_B = (first["advantages"] * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)
    assert torch.allclose(mean_B, theirs["advantages"], atol=1e-5)
    assert (first["advantages"][mask_BT == 0] == 0).all()
    spread_B = first["advantages"].amax(1) - first["advantages"].amin(1)
    assert float(spread_B.max()) > 0.05
    assert len(ours) == 2


def test_mode_none_is_grpo_to_the_last_bit(tmp_path: Path) -> None:
    trained = []
    for kind, options in (
        (PhraseCreditTrainer, {"credit": PhraseCredit(Redistribution("none"))}),
        (GRPOTrainer, {}),
    ):
        trainer = trainer_of(tmp_path, kind, **options)
        trainer.train()
        trained.append(dict(trainer.model.named_parameters()))
    ours, theirs = trained
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_credit_is_that_of_the_users_own_reward(tmp_path: Path, monkeypatch) -> None:
    """Found again by an engine that is given the same sums."""
    found: list[tuple[list[str], list[int], list[Any]]] = []
    plain = CreditEngine.credit

    def keep(engine: CreditEngine, answers: Any, rows: Any, *more: Any) -> Any:
        credits = plain(engine, answers, rows, *more)
        found.append((list(answers), list(rows), credits))
        return credits

    monkeypatch.setattr(CreditEngine, "credit", keep)
    how = PhraseCredit(segments="tokens", estimator="exact", budget=64)
    trainer_of(tmp_path, credit=how).train()
    answers, _, credits = found[0]
    played = [
        (a, c) for a, c in zip(answers, credits, strict=True) if len(c.phi_N) > 1 and not c.skipped
    ]
    assert played
    for answer, credit in played:
        totals = [vowels([], [answer], [w])[0] - len(answer) / 100 for w in "ea"]
        assert any(credit.total == pytest.approx(total, abs=1e-6) for total in totals)
        assert float(credit.phi_N.sum()) == pytest.approx(credit.total - credit.empty_value)


def tagged(text: str) -> tuple[int, int, int]:
    """The answer is what follows the first three characters."""
    start = min(3, len(text))
    return start, len(text), len(text)


def test_what_stands_around_the_answer_stays_in_every_value(tmp_path: Path) -> None:
    asked: list[str] = []

    def listening(completions: list[Any], **_: Any) -> list[float]:
        asked.extend(completions)
        return [sum(c in "aeiou" for c in t) / 10 for t in completions]

    how = PhraseCredit(segments="tokens", find=tagged, budget=8)
    trainer_of(tmp_path, rewards=[listening], credit=how, config={"max_steps": 1}).train()
    sampled, coalitions = asked[:8], asked[8:]
    assert coalitions
    heads = {text[:3] for text in sampled}
    assert all(any(text.startswith(head) for head in heads) for text in coalitions)


def test_a_completion_without_a_reward_has_no_advantage(tmp_path: Path) -> None:
    kept = seen_advantages(trainer_of(tmp_path, rewards=[unsure]))
    assert all(torch.isfinite(out["advantages"]).all() for out in kept)


async def later(completions: list[Any], **_: Any) -> list[float]:
    return [sum(c in "aeiou" for c in t) / 10 for t in completions]


def test_asynchronous_reward_functions_are_asked_too(tmp_path: Path) -> None:
    how = PhraseCredit(segments="tokens", budget=8)
    kept = seen_advantages(trainer_of(tmp_path, rewards=[later], credit=how))
    assert np.isfinite(kept[0]["advantages"].numpy()).all()
    assert kept[0]["advantages"].ndim == 2


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"importance_sampling_level": "sequence"}, "erases token credit"),
        ({"scale_rewards": "batch"}, "scale_rewards 'batch'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "needs one reward"),
    ],
)
def test_settings_that_lose_credit_are_refused(tmp_path: Path, config, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        trainer_of(tmp_path, config=config)
    assert "\n" not in str(caught.value)


def test_a_reward_that_gives_another_number_the_second_time_is_refused(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)

    def moody(completions: list[Any], **_: Any) -> list[float]:
        return draws.random(len(completions)).tolist()

    with pytest.raises(ValueError, match="not the one the rewards come from"):
        trainer_of(tmp_path, rewards=[moody]).train()


def test_the_example_of_the_documentation_trains(tmp_path: Path, monkeypatch) -> None:
    """As it stands, in at most 15 lines."""
    network, tokenizer = create_policy(TINY, TEXTS, 1)
    save_policy(network, tokenizer, TINY, tmp_path / "runs/esci/sft/model")
    monkeypatch.chdir(tmp_path)
    first, *rest = python_blocks(ROOT / "docs/howto/trainer.md")
    assert len([line for line in first.splitlines() if line.strip()]) <= 15
    space: dict[str, Any] = {"__name__": "documentation"}
    for block in (first, *rest):
        exec(compile(block, "trainer.md", "exec"), space)
    assert space["trainer"].state.global_step == 2
    assert space["advantages"].shape == space["mask"].shape
