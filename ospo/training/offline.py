"""Completions of the SFT policy, with their rewards: what rft and dpo learn from.

As many as an online algorithm samples in the same budget (steps × prompts × generations), for the
same prompts in the same order and under the same temperature; only that the policy that writes them
stays what it was.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from tqdm import tqdm

from ospo.config import Config, Updates
from ospo.errors import ConfigError, InputError
from ospo.files import atomic_file
from ospo.policy.generate import Decoding, Generator
from ospo.policy.prompts import extract_answer, opens_thinking
from ospo.policy.weights import quiet
from ospo.training.prompts import prompt_rows
from ospo.training.run import TrainingRun

T = TypeVar("T")
_SCHEMA: dict[str, Any] = {
    "group": pl.Int64,
    "row": pl.Int64,
    "prompt_ids": pl.List(pl.Int32),
    "completion_ids": pl.List(pl.Int32),
    "answer": pl.String,
    "reward": pl.Float64,
}


@dataclass(frozen=True)
class Completion:
    """One completion: token ids without padding, the end token included where it was reached."""

    group: int
    row: int
    prompt_ids: list[int]
    completion_ids: list[int]
    answer: str
    reward: float


def sample_offline(run: TrainingRun) -> list[Completion]:
    """Completions in groups of ``generations``, in order.

    Written part by part under ``run.out/offline``; parts that are there already are read. Raises
    InputError for a part that cannot be read.
    """
    rl = run.config.preset.rl
    rows = prompt_rows(
        run.data,
        rl.steps * rl.prompts_per_step,
        run.config.seed,
        run.config.training.only_with_history,
    )
    starts = range(0, len(rows), rl.prompts_per_step)
    parts = [rows[start : start + rl.prompts_per_step] for start in starts]
    writer: _Writer | None = None
    result: list[Completion] = []
    title = f"completions {run.data.name}"
    for number, part in enumerate(tqdm(parts, desc=title, unit="batch", mininterval=5)):
        file = run.out / "offline" / f"part-{number:05d}.parquet"
        if not file.is_file():
            writer = writer or _Writer(run)
            frame = writer.write(number, part)
            with atomic_file(file) as temporary:
                frame.write_parquet(temporary)
        result += _read(file)
    return result


def _read(file: Path) -> Iterator[Completion]:
    try:
        frame = pl.read_parquet(file, glob=False).select(list(_SCHEMA))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            file, "", f"is not a readable part ({error})", "delete it; it is made again"
        ) from None
    return (Completion(**row) for row in frame.iter_rows(named=True))


class _Writer:
    """Samples parts; loads the policy once. A part depends on its number and prompts alone."""

    def __init__(self, run: TrainingRun):
        quiet()
        self.config, self.data, self.reward = run.config, run.data, run.scorer
        self.generator = Generator.load(run.policy, run.config.preset.model)
        self.thinking = opens_thinking(self.generator.tokenizer)

    def write(self, number: int, rows: np.ndarray) -> pl.DataFrame:
        rl = self.config.preset.rl
        size = rl.generations
        decoding = Decoding(rl.max_completion_tokens, rl.temperature, self.config.seed)
        distinct = [
            self.generator.render(self.data.requests[row], rl.max_prompt_tokens)
            for row in rows.tolist()
        ]
        prompts = [prompt for prompt in distinct for _ in range(size)]
        # Every completion of the run is a draw of its own: requests come again in later shuffles.
        first = number * rl.prompts_per_step * size
        completions = self.generator(prompts, decoding, range(first, first + len(prompts)))
        answers = [
            extract_answer(self.generator.decode(ids), self.thinking)[0] for ids in completions
        ]
        all_rows = np.repeat(rows, size)
        return pl.DataFrame(
            {
                "group": number * len(rows) + np.arange(len(all_rows)) // size,
                "row": all_rows,
                "prompt_ids": [prompt.ids for prompt in prompts],
                "completion_ids": completions,
                "answer": answers,
                "reward": np.asarray(self.reward(answers, all_rows.tolist()), dtype=np.float64),
            },
            schema=_SCHEMA,
        )


def groups(completions: list[Completion]) -> Iterator[list[Completion]]:
    """Completions of one prompt each."""
    start = 0
    for end in range(1, len(completions) + 1):
        if end == len(completions) or completions[end].group != completions[start].group:
            yield completions[start:end]
            start = end


def enough_of(
    items: list[T], updates: Updates, config: Config, key: str, lacking: str, fix: str
) -> list[T]:
    """``items`` in seeded shuffles, as many as all ``updates`` take. ConfigError on the preset's
    ``key`` where none.
    """
    if not items:
        raise ConfigError("params.yaml", f"presets.{config.policy}.{key}", lacking, fix)
    return in_shuffles(items, updates.examples, config.seed)


def in_shuffles(items: list[T], count: int, seed: int) -> list[T]:
    """``count`` items: seeded shuffles of all of them, end to end."""
    rng = np.random.default_rng([seed, 5])
    order = np.concatenate(
        [rng.permutation(len(items)) for _ in range(math.ceil(count / len(items)))]
    )[:count]
    return [items[i] for i in order]
