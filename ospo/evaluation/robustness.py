"""Every policy under every retriever on held-out requests: one table from which all figures are derived.

Answers are written once a policy and stream through each retriever in chunks, so memory does not grow with the number
of requests beyond the prepared data itself. The split decides what a figure is for: ``test`` makes the tables,
``validation`` (training retriever only) chooses the policy to register, so that neither test requests nor unseen
retrievers have a say in the choice.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ospo.config import Config
from ospo.data.dataset import PreparedData
from ospo.evaluation import leaks
from ospo.evaluation.answers import Answers, choose_requests, plan, write_answers
from ospo.evaluation.demo_table import best_policy
from ospo.evaluation.examples import write_examples
from ospo.evaluation.lineage import lineage
from ospo.evaluation.measures import MEASURES
from ospo.evaluation.policies import open_policy
from ospo.evaluation.rollouts import CACHE
from ospo.evaluation.scoring import score_chunk
from ospo.evaluation.slices import slice_table
from ospo.files import atomic_file, write_json
from ospo.retrieval import build_retriever
from ospo.retrieval.base import Retriever

__all__ = ["best_policy", "evaluate"]

RAW = "raw"
CHUNK = 2048  # requests scored at once: (chunk x policies) texts and their pools are all that is in memory

_TABLE = pa.schema(
    [
        ("policy", pa.string()),
        ("retriever", pa.string()),
        ("split", pa.string()),
        ("scope", pa.string()),
        ("decoding", pa.string()),
        ("sample", pa.int32()),
        ("request_id", pa.string()),
        ("query", pa.string()),
        ("answer", pa.string()),
        *((name, pa.float64()) for name in MEASURES),
    ]
)


@dataclass
class _Means:
    """Running sums of nDCG@10: (split, policy, retriever) → sum and count, greedy answers within pools."""

    sums: dict[tuple[str, str, str], float]
    counts: dict[tuple[str, str, str], int]

    def add(self, key: tuple[str, str, str], values: np.ndarray) -> None:
        self.sums[key] = self.sums.get(key, 0.0) + float(values.sum())
        self.counts[key] = self.counts.get(key, 0) + len(values)

    def table(self, split: str) -> dict[str, dict[str, float]]:
        out: dict[str, dict[str, float]] = {}
        for (part, policy, retriever), total in self.sums.items():
            if part == split:
                out.setdefault(policy, {})[retriever] = total / self.counts[part, policy, retriever]
        return out


def _write_scores(
    writer: pq.ParquetWriter,
    retriever: Retriever,
    name: str,
    data: PreparedData,
    answers: Answers,
    split: str,
    scope: str,
    means: _Means,
    bar: Any,
) -> None:
    for part, jobs, tables in answers.chunks(split, scope):
        values = score_chunk(retriever, data, part, tables, scope)
        joined = pa.concat_tables(tables)
        n = len(joined)
        columns = {column: joined[column] for column in joined.column_names if column in _TABLE.names}
        columns |= {"retriever": pa.repeat(name, n), "scope": pa.repeat(scope, n)}
        columns |= {measure_name: pa.array(value) for measure_name, value in values.items()}
        writer.write_table(pa.table([columns[field.name] for field in _TABLE], schema=_TABLE))
        if scope == "pool":
            for j, job in enumerate(jobs):
                if job.decoding_name == "greedy":
                    means.add((split, job.policy, name), values["ndcg@10"][j * len(part) : (j + 1) * len(part)])
        bar.update(n)


def evaluate(
    config: Config,
    data: PreparedData,
    policies: Mapping[str, str | Path | None],
    out: Path,
    *,
    cache: Path | None = CACHE,
    chunk: int = CHUNK,
) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluate ``policies`` and write everything under ``out``.

    ``policies``: name → policy directory, file of answers (``policies.AnswerFile``) or None, the raw query.

    - ``answers.parquet``: one row a policy × request × sample: answer, completion, tokens, whether it ended by itself.
    - ``evaluation.parquet``: one row a policy × retriever × request × sample, all ``MEASURES``, ``scope`` pool or
      catalogue.
    - ``summary.json`` (also returned): mean nDCG@10 of greedy answers within pools, ``{"test": {policy: {retriever:
      value}}, "validation": the same for the training retriever only}``.
    - ``examples.json``: requests that improved and worsened most, with per-phrase credit.
    - ``slices.parquet``: properties of each test request, and the shopper it comes from.
    - ``details.json``: counts (empty, unfinished answers), requests, policy hashes, leak checks, seconds.

    Raises InputError for an empty split or a directory without a policy, LeakError, OspoError for a retriever that
    breaks its contract.
    """
    named: dict[str, Path | None] = {RAW: None}
    named |= {name: Path(model) if model is not None else None for name, model in policies.items()}
    started = time.perf_counter()
    limit = config.evaluation.max_requests
    rows = {split: choose_requests(data, split, limit) for split in ("validation", "test")}
    checked = leaks.check_split(data)
    logs = {
        name: leaks.check_training_log(data, np.concatenate(list(rows.values())), name, model)
        for name, model in named.items()
        if model is not None
    }
    opened = {name: open_policy(model, config, cache) for name, model in named.items()}
    jobs = plan(config, opened)
    out.mkdir(parents=True, exist_ok=True)
    counts = write_answers(opened, data, jobs, rows, out / "answers.parquet", chunk)
    seconds = {"rewrite": time.perf_counter() - started}

    answers = Answers(out / "answers.parquet", jobs, rows, chunk)
    means = _Means({}, {})
    names = [config.retrievers.training, *config.retrievers.unseen]
    with atomic_file(out / "evaluation.parquet") as temporary, pq.ParquetWriter(temporary, _TABLE) as writer:
        for name in names:
            begun = time.perf_counter()
            retriever = build_retriever(name, config, data)
            passes = [("validation", "pool")] if name == config.retrievers.training else []
            passes += [("test", "pool")] + [("test", "catalogue")] * config.evaluation.catalogue
            total = sum(len(rows[job.split]) for split, scope in passes for job in jobs if job.takes(split, scope))
            with tqdm(total=total, desc=f"score {name}", unit="text") as bar:
                for split, scope in passes:
                    _write_scores(writer, retriever, name, data, answers, split, scope, means, bar)
            if name == config.retrievers.training:
                training = retriever
            seconds[f"score {name}"] = time.perf_counter() - begun
    with atomic_file(out / "slices.parquet") as temporary:
        slice_table(data, rows["test"]).write_parquet(temporary)
    write_examples(config, data, training, out)
    summary = {split: means.table(split) for split in rows}
    write_json(
        out / "details.json",
        {
            "dataset": data.name,
            "training_retriever": config.retrievers.training,
            "unseen_retrievers": list(config.retrievers.unseen),
            "policies": {name: {"model": str(model or ""), "hash": opened[name].hash} for name, model in named.items()},
            "requests": {split: len(chosen) for split, chosen in rows.items()},
            "answers": counts,
            "leak_checks": {"compared": checked, "training_requests": logs},
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "lineage": lineage(config, data),
        },
    )
    write_json(out / "summary.json", summary)
    return summary
