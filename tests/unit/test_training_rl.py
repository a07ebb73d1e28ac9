"""Reinforcement learning: every key reaches the trainer, runs repeat themselves, and survive being
killed.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from training_shop import ROOT, LetterReward, make_policy, small_config, weights
from transformers import TrainerCallback

from ospo.config import Config, load_config
from ospo.credit.engine import CreditEngine
from ospo.data.dataset import PreparedData
from ospo.errors import ConfigError, InputError
from ospo.files import write_manifest
from ospo.policy.prompts import clean, prompt_messages
from ospo.policy.seen import read_seen, request_keys
from ospo.retrieval.base import RetrieverError
from ospo.reward.costs import PricedReward, strange_words, wasted_share
from ospo.reward.credit import credit_engine
from ospo.steps.train import _search_reward
from ospo.training.arguments import batch_shape, trainer_arguments
from ospo.training.callbacks import MetricsLog, last_checkpoint, read_metrics
from ospo.training.completions import CompletionTable
from ospo.training.prompts import prompt_dataset, prompt_rows, training_rows
from ospo.training.rl import build_trainer, train_rl
from ospo.training.run import TrainingRun
from ospo.training.sft import train_sft
from ospo.training.train import train


@pytest.fixture(scope="module")
def policy(esci_tiny: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(small_config(), esci_tiny, tmp_path_factory.mktemp("policy") / "model")


# --- trap 10: values that never reach the trainer
# -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "argument", "expected"),
    [
        ("steps", "7", "max_steps", 7),
        ("prompts_per_step", "4", "generation_batch_size", 16),
        ("generations", "8", "num_generations", 8),
        ("per_device_batch_size", "2", "per_device_train_batch_size", 2),
        ("gradient_accumulation", "2", "gradient_accumulation_steps", 2),
        ("learning_rate", "3.0e-5", "learning_rate", 3e-5),
        ("scheduler", "cosine", "lr_scheduler_type", "cosine"),
        ("warmup", "3", "warmup_steps", 3),
        ("weight_decay", "0.5", "weight_decay", 0.5),
        ("optimizer", "sgd", "optim", "sgd"),
        ("beta", "0.07", "beta", 0.07),
        ("temperature", "0.7", "temperature", 0.7),
        ("max_completion_tokens", "11", "max_completion_length", 11),
        ("loss_type", "dr_grpo", "loss_type", "dr_grpo"),
        ("loss_type", "dr_grpo", "scale_rewards", "none"),
        ("use_vllm", "true", "use_vllm", True),
        ("gradient_checkpointing", "true", "activation_checkpointing", True),
        ("checkpoint_every", "9", "save_steps", 9),
    ],
)
def test_each_rl_key_changes_the_trainer_argument_it_names(
    tmp_path: Path, key: str, value: str, argument: str, expected: Any
) -> None:
    before = getattr(trainer_arguments(small_config(), "ospo", tmp_path), argument)
    after = getattr(
        trainer_arguments(small_config(f"presets.nano.rl.{key}={value}"), "ospo", tmp_path),
        argument,
    )
    assert after == expected
    assert before != expected


def test_the_keys_that_do_not_go_through_the_trainers_arguments(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    # max_prompt_tokens cuts prompts, repeat_cost and word_cost change the reward, validate_every
    # and validation_requests choose the result;
    # importance_sampling_level has one legal value.
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        make_policy(small_config(), esci_tiny, tmp_path / "model")
    )
    rows = np.array([0, 1])
    short = prompt_dataset(esci_tiny, rows, tokenizer, 8)
    assert all(
        len(
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)[
                "input_ids"
            ]
        )
        <= 8
        for p in short["prompt"]
    )
    assert prompt_dataset(esci_tiny, rows, tokenizer, 500)["prompt"][0] == prompt_messages(
        esci_tiny.requests[0]
    )
    covered = set(small_config().preset.rl.model_fields_set)
    assert covered <= {
        "steps",
        "prompts_per_step",
        "generations",
        "per_device_batch_size",
        "gradient_accumulation",
        "learning_rate",
        "scheduler",
        "warmup",
        "weight_decay",
        "optimizer",
        "beta",
        "temperature",
        "repeat_cost",
        "word_cost",
        "validate_every",
        "validation_requests",
        "max_prompt_tokens",
        "max_completion_tokens",
        "loss_type",
        "importance_sampling_level",
        "use_vllm",
        "gradient_checkpointing",
        "checkpoint_every",
        "table_every",
        "collapse_reward",
        "collapse_entropy",  # in _watch
        "share_prompts",  # in test_training_shared_prompts.py
    }, "a new rl key needs a test that it reaches the trainer"


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("segments", "tokens", lambda engine: engine.segments),
        ("unions", "clauses", lambda engine: engine.unions),
        ("window", "2", lambda engine: engine.estimator.window),
        ("budget", "9", lambda engine: engine.budget),
    ],
)
def test_each_credit_key_reaches_the_engine(key: str, value: str, read: Any) -> None:
    def engine(*overrides: str) -> CreditEngine:
        return credit_engine(
            small_config("credit.estimator=contiguous", *overrides), LetterReward()
        )

    assert str(read(engine(f"credit.{key}={value}"))) == value
    assert str(read(engine())) != value


def test_the_seed_reaches_the_engine() -> None:
    for seed in (0, 7):
        assert credit_engine(small_config(f"seed={seed}"), LetterReward()).seed == seed


def test_the_papers_table_reaches_the_trainer(tmp_path: Path) -> None:
    config = load_config(ROOT / "params.yaml", ["policy=paper"])
    args = trainer_arguments(config, "ospo", tmp_path)
    assert {
        "learning_rate": args.learning_rate,
        "scheduler": args.lr_scheduler_type,
        "warmup": args.warmup_steps,
        "weight decay": args.weight_decay,
        "optimizer": args.optim,
        "batch": args.per_device_train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
        "generations": args.num_generations,
        "generation batch": args.generation_batch_size,
        "steps": args.max_steps,
        "beta": args.beta,
        "completion": args.max_completion_length,
        "temperature": args.temperature,
        "seed": args.seed,
    } == {
        "learning_rate": 5e-6,
        "scheduler": "cosine",
        "warmup": 100,
        "weight decay": 0.05,
        "optimizer": "paged_adamw_32bit",
        "batch": 8,
        "accumulation": 2,
        "generations": 8,
        "generation batch": 64,
        "steps": 2000,
        "beta": 0.0,
        "completion": 356,
        "temperature": 1.0,
        "seed": 0,
    }
    model = config.preset.model
    assert (model.quantization, model.lora_rank, model.lora_alpha, model.lora_dropout) == (
        "nf4",
        32,
        16,
        0.05,
    )


def test_the_resolved_arguments_are_written(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    config = small_config("presets.nano.rl.steps=1", "credit.redistribution=paper-rank")
    train_rl(TrainingRun(config, esci_tiny, tmp_path, policy, LetterReward()), "ospo")
    written = json.loads((tmp_path / "trainer_args.json").read_text())
    assert written["algorithm"] == "ospo"
    assert written["credit"]["redistribution"] == "paper-rank"
    assert written["trainer"]["learning_rate"] == config.preset.rl.learning_rate
    assert str(tmp_path) not in json.dumps(written)


# --- batches and prompts
# ------------------------------------------------------------------------------------------


def test_batches_divide_or_say_what_to_change() -> None:
    config = small_config("presets.nano.rl.prompts_per_step=8", "presets.nano.rl.generations=8")
    assert batch_shape(config, 1).per_device == 64
    assert batch_shape(config, 2).per_device == 32
    split = small_config(
        "presets.nano.rl.prompts_per_step=8",
        "presets.nano.rl.generations=8",
        "presets.nano.rl.gradient_accumulation=8",
    )
    assert (batch_shape(split, 1).per_device, batch_shape(split, 1).steps_per_generation) == (8, 8)
    with pytest.raises(ConfigError, match="do not divide"):
        batch_shape(small_config("presets.nano.rl.prompts_per_step=3"), 2)
    with pytest.raises(ConfigError, match="do not divide"):
        batch_shape(small_config("presets.nano.rl.gradient_accumulation=16"), 1)


def test_prompts_come_in_seeded_passes_over_the_training_split(esci_tiny: PreparedData) -> None:
    train = sorted(esci_tiny.rows("train").tolist())
    n = len(train)
    rows = prompt_rows(esci_tiny, 2 * n + 1, 5)
    assert sorted(rows[:n].tolist()) == sorted(rows[n : 2 * n].tolist()) == train
    assert rows[:n].tolist() != rows[n : 2 * n].tolist()
    assert rows.tolist() == prompt_rows(esci_tiny, 2 * n + 1, 5).tolist()
    assert rows.tolist() != prompt_rows(esci_tiny, 2 * n + 1, 6).tolist()


def test_only_requests_with_something_to_go_on_are_trained_on(
    esci_tiny: PreparedData, hm_tiny: PreparedData
) -> None:
    every, some = (training_rows(hm_tiny, only).tolist() for only in (False, True))
    assert every == hm_tiny.rows("train").tolist()
    assert 0 < len(some) < len(every)
    for row in every:
        asked = hm_tiny.requests[row]
        names = [p.name for p in asked.history if clean(p.type) in clean(asked.query)]
        assert not (row in some and not names)
    assert set(prompt_rows(hm_tiny, 3 * len(some), 0, True).tolist()) == set(some)
    with pytest.raises(InputError, match=r"training\.only_with_history"):
        training_rows(esci_tiny, True)  # its requests have no history


def test_every_kind_of_training_asks_which_requests_it_may_use(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    config = small_config("training.only_with_history=true")
    with pytest.raises(InputError, match=r"training\.only_with_history"):
        train_sft(TrainingRun(config, esci_tiny, tmp_path / "sft"))
    for algorithm in ("rft", "dpo", "ospo"):
        with pytest.raises(InputError, match=r"training\.only_with_history"):
            train(
                TrainingRun(config, esci_tiny, tmp_path / algorithm, policy, LetterReward()),
                algorithm,
            )


def test_the_step_hands_on_how_much_of_the_reward_is_the_whole_pool_s(
    esci_tiny: PreparedData,
) -> None:
    config = small_config("reward.whole=0.25")
    assert _search_reward(config, esci_tiny).whole == 0.25


# --- a price for what the retriever never sees
# --------------------------------------------------------------------


def test_repeats_cost_and_their_credit_is_negative() -> None:
    assert wasted_share("red dress, linen") == 0
    assert wasted_share("red, red, red, red") == pytest.approx(15 / 18)
    assert wasted_share("red,,,,,,,") == pytest.approx(7 / 10)
    assert wasted_share("") == 0
    reward = PricedReward(LetterReward(), 0.4)
    plain = LetterReward()(["red, red, red, red"], [0])[0]
    assert reward(["red, red, red, red"], [0])[0] == pytest.approx(plain - 0.4 * 15 / 18)
    engine = CreditEngine(reward, segments="delimiters")
    credit = engine.credit(["eee, eee"], [0], reward(["eee, eee"], [0]))[0]
    whole = CreditEngine(LetterReward(), segments="delimiters").credit(["eee, eee"], [0])[0]
    assert credit.phi_N.sum() < whole.phi_N.sum()


def test_strange_words_cost_and_their_credit_bears_it() -> None:
    known = frozenset({"red", "dress", "ooo"})
    assert strange_words("Red dress, dottedssic, dottedssic", known) == 2
    assert strange_words("", known) == strange_words("RED", known) == 0
    text, plain = "red dress, ooo, ooos", LetterReward()
    assert PricedReward(plain, 0.4, 0.01, known).price([text, "red", ""]) == pytest.approx(
        [0.01, 0, 0]
    )
    reward = PricedReward(plain, 0.0, 0.01, known)
    assert reward([text], [0])[0] == pytest.approx(plain([text], [0])[0] - 0.01)
    [whole] = CreditEngine(plain, segments="delimiters", estimator="exact").credit([text], [0])
    [priced] = CreditEngine(reward, segments="delimiters", estimator="exact").credit([text], [0])
    assert priced.phi_N - whole.phi_N == pytest.approx([0, 0, -0.01])


def test_the_price_of_strange_words_reaches_the_reward(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    config = small_config("presets.nano.rl.word_cost=0.25", "presets.nano.rl.repeat_cost=0.0")
    trainer = build_trainer(
        TrainingRun(config, esci_tiny, tmp_path, policy, LetterReward()), "ospo"
    )
    item = esci_tiny.catalogue["text"][int(esci_tiny.pools_RP[0, 0])]
    texts = [f"{esci_tiny.requests[0].query}, {item}", "xyloq"]
    assert LetterReward()(texts, [0, 0]) - trainer.reward_function.reward(
        texts, [0, 0]
    ) == pytest.approx([0, 0.25])
    assert json.loads((tmp_path / "trainer_args.json").read_text())["reward"]["word_cost"] == 0.25


# --- what is left behind, and resuming
# ----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        train_rl(
            TrainingRun(small_config(), esci_tiny, tmp_path / name, policy, LetterReward()), "ospo"
        )
    assert read_seen(tmp_path / "a" / "model") == set(
        request_keys(esci_tiny, esci_tiny.rows("train"))
    )
    first, second = weights(tmp_path / "a" / "model"), weights(tmp_path / "b" / "model")
    assert all(torch.equal(first[key], second[key]) for key in first)
    start = weights(policy)
    assert any(not torch.equal(first[key], start[key]) for key in first)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "completions.parquet",
        "metrics.jsonl",
        "model",
        "trainer_args.json",
    ]


class FailingReward(LetterReward):
    """Fails for good from its ``calls``-th call on, as a search engine that went away."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        self.calls -= 1
        if self.calls < 0:
            raise RetrieverError("engine", "score() failed 4 times", "start it")
        return super().__call__(texts, rows)


def _calls_of_first_steps(config: Config, data: PreparedData, policy: Path, folder: Path) -> int:
    """How often three steps call the reward; the next call scores the fourth's completions."""
    reward = FailingReward(10**6)
    after: list[int] = []

    class Count(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            after.append(10**6 - reward.calls)

    train_rl(TrainingRun(config, data, folder, policy, reward, callbacks=[Count()]), "ospo")
    return after[2]


@pytest.mark.parametrize("later", [0, 1], ids=["rewards", "credit"])
def test_a_retriever_that_fails_for_good_loses_no_step(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, later: int
) -> None:
    config = small_config("presets.nano.rl.checkpoint_every=100")
    calls = _calls_of_first_steps(config, esci_tiny, policy, tmp_path / "whole")
    run, reward = tmp_path / "failed", FailingReward(calls + later)
    with pytest.raises(RetrieverError) as raised:
        train_rl(TrainingRun(config, esci_tiny, run, policy, reward), "ospo")
    assert str(raised.value) == (
        "retriever 'engine': score() failed 4 times; checkpoint-3 is taken. Fix: start it; the "
        "same command then resumes from the checkpoint"
    )
    assert last_checkpoint(run / "checkpoints") == run / "checkpoints" / "checkpoint-3"
    steps: list[int] = []
    again = TrainingRun(
        config, esci_tiny, run, policy, LetterReward(), on_log=lambda step, _: steps.append(step)
    )
    train_rl(again, "ospo")
    assert steps == [4]
    whole, resumed = weights(tmp_path / "whole" / "model"), weights(run / "model")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    frames = [
        pl.read_parquet(folder / "completions.parquet") for folder in (tmp_path / "whole", run)
    ]
    assert frames[0].equals(frames[1])


def test_a_retriever_that_fails_at_once_leaves_no_checkpoint(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    run = TrainingRun(small_config(), esci_tiny, tmp_path, policy, FailingReward(0))
    with pytest.raises(RetrieverError, match=r"there is no checkpoint yet\. Fix: start it$"):
        train_rl(run, "ospo")
    assert last_checkpoint(tmp_path / "checkpoints") is None


def test_every_step_is_logged_once_with_its_phases(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    train_rl(
        TrainingRun(
            small_config(),
            esci_tiny,
            tmp_path,
            policy,
            LetterReward(),
            on_log=lambda s, m: logged.append((s, m)),
        ),
        "ospo",
    )
    assert [step for step, _ in logged] == [1, 2, 3, 4]
    for _, metrics in logged:
        assert {
            "reward",
            "ndcg",
            "entropy",
            "length",
            "clip_ratio",
            "zero_std_groups",
            "truncated",
            "empty_answers",
            "cache_hit_rate",
            "seconds/step",
            "seconds/generate",
            "seconds/reward",
            "seconds/credit",
            "seconds/update",
        } <= set(metrics)
        assert all(np.isfinite(value) for value in metrics.values())
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    frame = pl.read_parquet(tmp_path / "completions.parquet")
    assert frame["step"].to_list() == [step for step in (1, 2, 3, 4) for _ in range(8)]
    known = {request.request_id for request in esci_tiny.requests if request.split == "train"}
    assert set(frame["request_id"]) <= known


def test_kl_is_logged_where_it_is_used(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path
) -> None:
    logged: list[dict[str, float]] = []
    config = small_config("presets.nano.rl.beta=0.1", "presets.nano.rl.steps=2")
    train_rl(
        TrainingRun(
            config,
            esci_tiny,
            tmp_path,
            policy,
            LetterReward(),
            on_log=lambda s, m: logged.append(m),
        ),
        "grpo",
    )
    assert logged[1]["kl"] > 0


def test_half_written_checkpoints_are_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (2, 10, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-4" / "weights").write_text("w")
    write_manifest(tmp_path / "checkpoint-4")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-10").exists()


def test_a_torn_last_line_of_the_metrics_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    log = MetricsLog(tmp_path, lambda step, metrics: None)
    assert log.last == 1
    assert file.read_text() == '{"step": 1, "loss": 0.5}\n'


def test_steps_gone_through_again_replace_their_rows(tmp_path: Path) -> None:
    row = {
        "row": 0,
        "answer": "a",
        "completion": "a",
        "reward": 0.5,
        "advantage": 0.1,
        "segments": [],
        "credit": [],
        "empty_value": None,
    }
    table = CompletionTable(tmp_path / "t.parquet", ["r0"])
    table.add(1, [row])
    table.add(2, [row])
    table.write()
    again = CompletionTable(tmp_path / "t.parquet", ["r0"])
    again.add(2, [row | {"answer": "b"}])
    assert again.frame().select("step", "answer").rows() == [(1, "a"), (2, "b")]


SCRIPT = """
import json, os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from training_shop import LetterReward, small_config
from ospo.data.dataset import load_prepared
from ospo.training.run import TrainingRun
from ospo.training.rl import train_rl
log = open(sys.argv[1] + "/forwarded.txt", "a")
def on_log(step, metrics):
    log.write(f"{{step}}\\n"); log.flush()
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
config = small_config("presets.nano.rl.steps=7", "presets.nano.rl.checkpoint_every=2", *sys.argv[3:])
data = load_prepared({prepared!r})
train_rl(TrainingRun(config, data, Path(sys.argv[1]), Path({policy!r}), LetterReward(), on_log), "ospo")
"""


@pytest.mark.parametrize("kill_at", [1, 5])
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, kill_at: int
) -> None:
    script = SCRIPT.format(
        tests=str(ROOT / "tests"), prepared=str(esci_tiny.directory), policy=str(policy)
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def run(out: Path, kill: int) -> int:
        out.mkdir(exist_ok=True)
        command = [sys.executable, "-c", script, str(out), str(kill)]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, check=False
        ).returncode

    assert run(tmp_path / "whole", 0) == 0
    assert run(tmp_path / "killed", kill_at) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model").exists()
    assert run(tmp_path / "killed", 0) == 0
    whole, killed = weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model")
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    seconds = ("seconds/", "cache_hit_rate")

    def stable(out: Path) -> list[dict[str, float]]:
        rows = read_metrics(out / "metrics.jsonl")
        return [
            {key: value for key, value in row.items() if not key.startswith(seconds)}
            for row in rows
        ]

    assert stable(tmp_path / "whole") == stable(tmp_path / "killed")
    if kill_at > 2:  # before the first checkpoint a run starts over, and says its steps again
        forwarded = [
            int(line) for line in (tmp_path / "killed" / "forwarded.txt").read_text().split()
        ]
        assert forwarded == [1, 2, 3, 4, 5, 6, 7]
    frames = [
        pl.read_parquet(tmp_path / name / "completions.parquet") for name in ("whole", "killed")
    ]
    assert frames[0].equals(frames[1])
