"""Every algorithm by one key: what it changes, its loss by hand, and that it trains and goes on
after a kill.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from training_shop import ROOT, LetterReward, make_policy, small_config, weights

from ospo.config import Algorithm, load_config
from ospo.config.algorithms import ALGORITHMS
from ospo.credit.advantages import Mode
from ospo.data.dataset import PreparedData
from ospo.errors import ConfigError
from ospo.training.algorithms import redistribution
from ospo.training.arguments import trainer_arguments
from ospo.training.callbacks import read_metrics
from ospo.training.dpo import preference_pairs
from ospo.training.grpo_lambda import LAMBDA, GRPOLambdaTrainer, trace
from ospo.training.offline import Completion, groups, in_shuffles, sample_offline
from ospo.training.rft import accepted
from ospo.training.rl import build_trainer
from ospo.training.run import TrainingRun
from ospo.training.train import train

QUICK = [f"presets.nano.{part}.steps=3" for part in ("rl", "rft", "dpo")] + [
    "presets.nano.rft.batch_size=4",
    "presets.nano.rft.threshold=0.1",
    "presets.nano.dpo.batch_size=2",
    "presets.nano.dpo.gap=0.01",
    "presets.nano.dpo.floor=0.0",
]


@pytest.fixture(scope="module")
def policy(esci_tiny: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(small_config(), esci_tiny, tmp_path_factory.mktemp("policy") / "model")


def ignore(step: int, metrics: dict[str, float]) -> None:
    return None


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
def test_each_algorithm_trains_from_the_same_policy(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, algorithm: Algorithm
) -> None:
    config = small_config(*QUICK, f"algorithms=[{algorithm}]")
    assert config.policies == ["sft", algorithm]
    train(TrainingRun(config, esci_tiny, tmp_path, policy, LetterReward()), algorithm)
    before, after = weights(policy), weights(tmp_path / "model")
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_the_algorithms_key_is_checked() -> None:
    with pytest.raises(ConfigError, match="algorithms"):
        small_config("algorithms=[ppo]")
    with pytest.raises(ConfigError, match="twice"):
        small_config("algorithms=[grpo, grpo]")
    with pytest.raises(ConfigError, match="algorithms"):
        small_config("algorithms=[]")


@pytest.mark.parametrize(
    ("algorithm", "changed"),
    [
        ("grpo", {}),
        ("dr_grpo", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        ("dapo", {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True}),
        ("ospo", {}),
        ("shapley_tokens", {}),
        ("grpo_lambda", {}),
    ],
)
def test_only_what_an_algorithm_names_differs(
    tmp_path: Path, algorithm: Any, changed: dict[str, Any]
) -> None:
    config = small_config("presets.nano.rl.loss_type=bnpo")
    plain = trainer_arguments(config, "grpo", tmp_path).to_dict()
    own = trainer_arguments(config, algorithm, tmp_path).to_dict()
    different = {key for key in own if own[key] != plain[key]}
    assert different == set(changed)
    assert {key: own[key] for key in changed} == changed


def test_which_credit_each_algorithm_uses() -> None:
    config = small_config(
        "credit.redistribution=paper-rank", "credit.alpha=0.3", "credit.discount=0.25"
    )
    assert redistribution(config, "ospo").mode == "paper-rank"
    assert redistribution(config, "ospo").alpha == 0.3
    assert redistribution(config, "ospo").discount == 0.25
    assert redistribution(config, "shapley_tokens").mode == "to-go"
    assert {a for a, spec in ALGORITHMS.items() if spec.online and not spec.credit} == {
        "grpo",
        "dr_grpo",
        "dapo",
        "grpo_lambda",
    }
    assert all(
        redistribution(config, a).mode == "none"
        for a, spec in ALGORITHMS.items()
        if not spec.credit
    )
    for mode in set(get_args(Mode)) - {"none"}:
        config = small_config(f"credit.redistribution={mode}", "credit.alpha=0.7")
        assert config.credit.redistribution == mode


def test_shapley_tokens_plays_with_words(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    trainer = build_trainer(
        TrainingRun(small_config(), esci_tiny, tmp_path, policy, LetterReward()), "shapley_tokens"
    )
    assert trainer.engine is not None
    assert trainer.engine.segments == "tokens"


# --- GRPO-λ
# --------------------------------------------------------------------------------------------------


def test_the_trace_by_hand_and_by_loop() -> None:
    assert trace(torch.tensor([[1.0, 2.0, 4.0]]), 0.5).tolist() == [[1.0, 2.5, 5.25]]
    x = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    carried, expected = torch.zeros(3, dtype=torch.float64), []
    for t in range(50):
        carried = LAMBDA * carried + x[:, t]
        expected.append(carried)
    torch.testing.assert_close(trace(x, LAMBDA), torch.stack(expected, dim=1))


def test_grpo_lambdas_loss_by_hand(esci_tiny: PreparedData, policy: Path, tmp_path: Path) -> None:
    config = small_config("presets.nano.rl.prompts_per_step=1", "presets.nano.rl.generations=2")
    trainer = build_trainer(
        TrainingRun(config, esci_tiny, tmp_path, policy, LetterReward()), "grpo_lambda"
    )
    assert isinstance(trainer, GRPOLambdaTrainer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    ids = torch.tensor([[40, 41, 42], [43, 44, 45]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    advantages = torch.tensor([1.0, -0.5])
    ratio_of = torch.tensor([[0.1, -0.05, 0.02], [0.03, 0.04, 9.0]])  # padding must not matter
    inputs = {
        "prompt_ids": torch.full((2, 2), trainer.processing_class.bos_token_id),
        "prompt_mask": torch.ones(2, 2, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": advantages,
        "num_items_in_batch": mask.sum(),
    }
    full = torch.cat([inputs["prompt_ids"], ids], dim=1)
    attention = torch.cat([inputs["prompt_mask"], mask], dim=1)
    with torch.no_grad():
        filtered, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, full, attention, 3
        )
    inputs["old_per_token_logps"] = filtered - trace(ratio_of * mask, LAMBDA)
    loss = trainer._compute_loss(trainer.model, inputs).item()
    rho = [
        [0.1, 0.99 * 0.1 - 0.05, 0.99 * (0.99 * 0.1 - 0.05) + 0.02],
        [0.03, 0.99 * 0.03 + 0.04],
    ]
    # All ratios lie within 1 ± 0.2, so nothing is clipped: loss = −Σ A ρ / 5 tokens.
    expected = -(sum(np.exp(r) for r in rho[0]) - 0.5 * sum(np.exp(r) for r in rho[1])) / 5
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("key", "words"), [("beta=0.1", "KL"), ("use_vllm=true", "vLLM")])
def test_grpo_lambda_refuses_what_its_traces_would_break(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, key: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        config = small_config(f"presets.nano.rl.{key}")
        build_trainer(
            TrainingRun(config, esci_tiny, tmp_path, policy, LetterReward()), "grpo_lambda"
        )


# --- rft and dpo
# --------------------------------------------------------------------------------------------------


def completion(group: int, answer: str, reward: float) -> Completion:
    return Completion(group, group, [1], [2], answer, reward)


def test_what_rejection_sampling_keeps() -> None:
    rows = [
        completion(0, "a", 0.6),
        completion(0, "a", 0.6),
        completion(0, "b", 0.5),
        completion(1, "a", 0.7),
    ]
    assert [(c.group, c.answer) for c in accepted(rows, 0.5)] == [(0, "a"), (1, "a")]


def test_which_pairs_dpo_learns_from() -> None:
    dpo = load_config(ROOT / "params.yaml", ["policy=paper"]).preset.dpo
    assert (dpo.gap, dpo.floor, dpo.beta, dpo.steps) == (0.05, 0.1, 0.1, 30)
    rows = [
        *[completion(0, name, r) for name, r in (("a", 0.3), ("b", 0.5), ("c", 0.1))],
        *[completion(1, name, r) for name, r in (("d", 0.30), ("e", 0.34))],  # too close
        *[completion(2, name, r) for name, r in (("f", 0.10), ("g", 0.0))],  # both poor
    ]
    assert [len(group) for group in groups(rows)] == [3, 2, 2]
    assert [(better.answer, worse.answer) for better, worse in preference_pairs(rows, dpo)] == [
        ("b", "c")
    ]


def test_the_offline_budget_is_the_online_one_and_parts_are_kept(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    config = small_config(*QUICK)
    first = sample_offline(TrainingRun(config, esci_tiny, tmp_path, policy, LetterReward()))
    rl = config.preset.rl
    assert len(first) == rl.steps * rl.prompts_per_step * rl.generations
    assert {len(group) for group in groups(first)} == {rl.generations}
    assert [len({c.row for c in group}) for group in groups(first)] == [
        1
    ] * rl.steps * rl.prompts_per_step
    parts = sorted((tmp_path / "offline").iterdir())
    parts[1].unlink()
    again = sample_offline(TrainingRun(config, esci_tiny, tmp_path, policy, LetterReward()))
    assert again == first
    rewards = LetterReward()([c.answer for c in first], [c.row for c in first])
    assert [c.reward for c in first] == rewards.tolist()


def _logps(policy: Path, completions: list[Completion]) -> list[torch.Tensor]:
    """Log-probabilities of each completion's tokens, one completion at a time."""
    from ospo.policy.weights import load_policy

    model, _ = load_policy(policy, small_config().preset.model)
    found = []
    for c in completions:
        ids = torch.tensor([[*c.prompt_ids, *c.completion_ids]])
        with torch.no_grad():
            every = torch.log_softmax(model.eval()(input_ids=ids).logits[0, :-1].double(), dim=-1)
        picked = every.gather(1, ids[0, 1:, None])[:, 0]
        found.append(picked[len(c.prompt_ids) - 1 :])
    return found


def test_rfts_first_loss_is_the_mean_negative_log_likelihood_of_what_it_kept(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    config = small_config(*QUICK)
    kept = accepted(
        sample_offline(TrainingRun(config, esci_tiny, tmp_path / "x", policy, LetterReward())), 0.1
    )
    first = in_shuffles(kept, 3 * 4, config.seed)[:4]
    losses: list[float] = []
    train(
        TrainingRun(
            config,
            esci_tiny,
            tmp_path / "rft",
            policy,
            LetterReward(),
            on_log=lambda s, m: losses.append(m["loss"]),
        ),
        "rft",
    )
    expected = -torch.cat(_logps(policy, first)).mean().item()
    assert losses[0] == pytest.approx(expected, rel=1e-4)


def test_dpos_first_loss_is_log_2_and_then_falls(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    # −log σ(β · 0) before the first update, where policy and reference are the same.
    config = small_config(
        *QUICK, "presets.nano.dpo.learning_rate=1.0e-3", "presets.nano.dpo.steps=8"
    )
    losses: list[float] = []
    run = TrainingRun(
        config,
        esci_tiny,
        tmp_path,
        policy,
        LetterReward(),
        on_log=lambda s, m: losses.append(m["loss"]),
    )
    pairs = preference_pairs(sample_offline(run), config.preset.dpo)
    train(run, "dpo")
    assert losses[0] == pytest.approx(np.log(2), rel=1e-4)
    assert np.mean(losses[-3:]) < losses[0] - 0.001

    def margin(model: Path) -> float:
        """How much likelier the better completions are than the worse ones."""
        better, worse = (_logps(model, [*part]) for part in zip(*pairs, strict=True))
        return sum(p.sum().item() for p in better) - sum(p.sum().item() for p in worse)

    assert margin(tmp_path / "model") > margin(policy) + 0.01


def test_nothing_to_learn_from_is_one_clear_line(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    config = small_config(*QUICK, "presets.nano.rft.threshold=1.0", "presets.nano.dpo.gap=1.0")
    for algorithm, key in (("rft", "rft.threshold"), ("dpo", "dpo.gap")):
        with pytest.raises(ConfigError, match=key):
            train(TrainingRun(config, esci_tiny, tmp_path, policy, LetterReward()), algorithm)  # type: ignore[arg-type]
        assert not (tmp_path / "model").exists()


def test_shuffles_use_everything_before_anything_again() -> None:
    drawn = in_shuffles(list("abc"), 7, 0)
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == ["a", "b", "c"]
    assert len(drawn) == 7
    assert drawn == in_shuffles(list("abc"), 7, 0)


SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from training_shop import LetterReward, small_config
from ospo.data.dataset import load_prepared
from ospo.training.run import TrainingRun
from ospo.training.train import train
config = small_config(*{overrides!r}, "presets.nano.rl.steps=5", "presets.nano.rft.steps=5", "presets.nano.dpo.steps=5",
                      "presets.nano.rl.checkpoint_every=2")
def on_log(step, metrics):
    if step == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
data = load_prepared({prepared!r})
train(TrainingRun(config, data, Path(sys.argv[2]), Path({policy!r}), LetterReward(), on_log), sys.argv[1])
"""


@pytest.mark.parametrize("algorithm", ["rft", "dpo"])
def test_a_killed_offline_run_goes_on_and_ends_with_the_same_weights(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, algorithm: str
) -> None:
    script = SCRIPT.format(
        tests=str(ROOT / "tests"),
        prepared=str(esci_tiny.directory),
        policy=str(policy),
        overrides=QUICK,
    )

    def run(out: Path, kill: int) -> int:
        command = [sys.executable, "-c", script, algorithm, str(out), str(kill)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, check=False
        ).returncode

    assert run(tmp_path / "whole", 0) == 0
    assert run(tmp_path / "killed", 3) == -signal.SIGKILL
    assert run(tmp_path / "killed", 0) == 0
    whole, killed = weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model")
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    steps = [
        [row["step"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "killed")
    ]
    assert steps == [[1, 2, 3, 4, 5]] * 2
