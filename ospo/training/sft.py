"""Supervised warm start: the policy learns to write well-formed search texts from a noisy
teacher.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ospo.config import Answer, Config, Rft, Sft
from ospo.data.dataset import PreparedData, Request
from ospo.policy.prompts import (
    completion_text,
    fit_messages,
    opens_thinking,
    prompt_messages,
)
from ospo.policy.seen import seen_after
from ospo.policy.text import SearchText
from ospo.policy.weights import create_policy, quiet
from ospo.training.best import BestPolicy
from ospo.training.names import NameTeacher
from ospo.training.prompts import training_rows
from ospo.training.run import OnLog, TrainingRun
from ospo.training.teacher import Teacher
from ospo.training.trainer import run_trainer, update_arguments
from ospo.training.warm_start import WarmStart, give_up, given_up

IGNORE = -100  # label of a token that is not trained on
_SHORT = 0.4  # share of a scratch policy's steps that show requests without history
_REDRAW = 1_000_003  # between the seeds of a scratch policy's draws
_BUCKET = 8  # batches sorted by length together: less padding, and still random batches


def teacher_of(config: Config, data: PreparedData, rule: SearchText) -> Teacher | NameTeacher:
    """The writer of the warm start's targets, by ``sft.targets``.

    Raises InputError where the data has nothing of the kind that is imitated.
    """
    sft = config.preset.sft
    if sft.targets == "history":
        return NameTeacher(data, sft.teacher_noise, config.seed, rule)
    numbers = (sft.min_attributes, sft.max_attributes)
    return Teacher(data, sft.teacher_noise, config.seed, rule, numbers)


def prompt_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation, ready for the policy's answer."""
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]


def sft_examples(
    config: Config, data: PreparedData, tokenizer: Any, teacher: Teacher | NameTeacher, count: int
) -> list[dict[str, list[int]]]:
    """``count`` examples in training order: ``input_ids`` (prompt, answer, end) and ``labels`` (the
    prompt ignored).

    Requests come in seeded shuffles of the training split, each pass with newly drawn teacher
    texts. A scratch policy is shown requests without their history first: among few words it learns
    to copy, and short steps are cheap. Not where answers add to the request: there the history is
    what is copied, and without it a policy learns to add at random (H&M's shop, nDCG@10 .16 in
    place of .48).
    """
    rl = config.preset.rl
    copies = config.preset.model.source == "scratch" and not teacher.answer.keeps_request
    short = round(_SHORT * count) if copies else 0
    thinking = opens_thinking(tokenizer)
    rows = training_rows(data, config.training.only_with_history)
    requests, texts = [], []
    for number, (row, draw) in enumerate(_order(rows, count, config.seed)):
        request, text = teacher.example(row, draw)
        requests.append(replace(request, history=()) if number < short else request)
        texts.append(completion_text(text, thinking))
    answers = tokenizer(texts, add_special_tokens=False)["input_ids"]
    examples = []
    prompts = _prompts(requests, tokenizer, rl.max_prompt_tokens, config.answer)
    for prompt, answer in zip(prompts, answers, strict=True):
        answer = [*answer[: rl.max_completion_tokens - 1], tokenizer.eos_token_id]
        examples.append({"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer})
    return _bucketed(examples, config.preset.sft.batch_size, config.seed)


def _prompts(
    requests: list[Request], tokenizer: Any, limit: int, answer: Answer
) -> list[list[int]]:
    """Token ids of the requests' prompts, each at most ``limit``: all at once, those too long again
    one by one.
    """
    conversations = [prompt_messages(request, answer=answer) for request in requests]
    texts = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for number, prompt in enumerate(prompts):
        if len(prompt) > limit:
            prompts[number] = prompt_ids(
                tokenizer, fit_messages(requests[number], tokenizer, limit, answer=answer)[0]
            )
    return prompts


def _order(rows: np.ndarray, count: int, seed: int) -> Iterator[tuple[int, int]]:
    rng = np.random.default_rng([seed, 1])
    for draw in range(math.ceil(count / len(rows))):
        left = count - draw * len(rows)
        yield from ((int(row), draw) for row in rng.permutation(rows)[:left])


def _bucketed(
    examples: list[dict[str, list[int]]], batch: int, seed: int
) -> list[dict[str, list[int]]]:
    rng = np.random.default_rng([seed, 2])
    ordered: list[dict[str, list[int]]] = []
    for start in range(0, len(examples), batch * _BUCKET):
        part = sorted(
            examples[start : start + batch * _BUCKET], key=lambda example: len(example["input_ids"])
        )
        batches = [part[i : i + batch] for i in range(0, len(part), batch)]
        for i in rng.permutation(len(batches)):
            ordered += batches[i]
    return ordered


def collate(examples: list[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Pad examples on the right: ``input_ids``, ``attention_mask`` and ``labels``, each (B, T)."""
    width = max(len(example["input_ids"]) for example in examples)

    def rows(key: str, filler: int) -> torch.Tensor:
        return torch.tensor(
            [example[key] + [filler] * (width - len(example[key])) for example in examples]
        )

    lengths_B1 = torch.tensor([[len(example["input_ids"])] for example in examples])
    return {
        "input_ids": rows("input_ids", pad),
        "attention_mask": (torch.arange(width)[None, :] < lengths_B1).long(),
        "labels": rows("labels", IGNORE),
    }


def supervised_arguments(config: Config, settings: Sft | Rft, out: Path) -> Any:
    """The Trainer's arguments for ``settings``."""
    from transformers import TrainingArguments

    return TrainingArguments(
        **update_arguments(config, settings, out),
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup if isinstance(settings, Sft) else 0,
        optim="adamw_torch",
        remove_unused_columns=False,
    )


def run_supervised(
    run: TrainingRun,
    settings: Sft | Rft,
    network: Any,
    tokenizer: Any,
    examples: list[dict[str, list[int]]],
    title: str,
    seen: Iterable[str],
    best: BestPolicy | None = None,
) -> None:
    """Train ``network`` on ``examples`` in their order, as ``run_trainer`` does."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, set_seed

    class InOrder(Trainer):
        """Takes the examples as they come: they are shuffled already, and sorted into batches of
        like length.
        """

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(examples)

    quiet()
    set_seed(run.config.seed)
    pad = tokenizer.pad_token_id
    trainer = InOrder(
        model=network,
        args=supervised_arguments(run.config, settings, run.out),
        train_dataset=examples,
        data_collator=lambda batch: collate(batch, pad),
    )
    run_trainer(run, trainer, tokenizer, title, seen, best)


def train_sft(run: TrainingRun) -> None:
    """Train a new policy on teacher texts of the training split. Resumes after a kill.

    With ``sft.validate_every`` it ends once it has learned, its result is its best policy by
    validation requests, and a scratch policy that learns nothing begins again from other weights
    (:mod:`ospo.training.warm_start`); draws given up are in ``run.out/attempts.json``.

    Raises InputError where the data has no request to train on, OspoError where
    ``sft.validate_every`` is set and ``run`` has no reward.
    """
    config, data = run.config, run.data
    training_rows(data, config.training.only_with_history)  # refused before weights are made
    sft = config.preset.sft
    quiet()
    teacher = teacher_of(config, data, run.rule)
    seen = seen_after(data)
    draws = sft.attempts if config.preset.model.source == "scratch" and sft.validate_every else 1
    lost = given_up(run.out)
    steps = sum(int(look["step"]) for look in lost)
    for draw in range(len(lost), draws):
        seed = config.seed + draw * _REDRAW
        network, tokenizer = create_policy(config.preset.model, teacher.tokenizer_texts(), seed)
        examples = sft_examples(config, data, tokenizer, teacher, sft.examples)
        attempt = replace(run, on_log=_later(run.on_log, steps))
        warm = WarmStart(attempt, tokenizer, seen, last_draw=draw == draws - 1)
        run_supervised(attempt, sft, network, tokenizer, examples, "sft", seen, warm)
        if not warm.lost:
            return
        give_up(run.out, warm)
        steps += int(warm.looks[-1]["step"])


def _later(on_log: OnLog, steps: int) -> OnLog:
    """``on_log`` with steps counted on from those of draws given up."""
    return lambda step, metrics: on_log(step + steps, metrics)
