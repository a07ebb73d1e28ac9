"""Every policy under every retriever on held-out requests: one table from which all figures are
derived.

Each policy's answers are written once and stream through the retrievers in chunks, so memory does
not grow with the number of requests beyond the prepared data itself. The split decides what a
figure is for: ``test`` makes the tables, ``validation`` (training retriever only) chooses the
policy to register, so that neither test requests nor unseen retrievers influence the choice.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ospo.config import Config
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.evaluation import leaks
from ospo.evaluation.answers import Answers, Job, choose_requests, plan, write_answers
from ospo.evaluation.completions import CACHE
from ospo.evaluation.control import SWAPPED, control_partners
from ospo.evaluation.examples import write_examples
from ospo.evaluation.guard import write_guarded, write_guards
from ospo.evaluation.hits import FirstHits
from ospo.evaluation.measures import MEASURES
from ospo.evaluation.policies import Policy, RulePolicy, open_policy
from ospo.evaluation.provenance import lineage
from ospo.evaluation.scoring import Chunk, score_chunk
from ospo.evaluation.selection import Summary
from ospo.evaluation.slices import slice_table
from ospo.files import atomic_file, write_json
from ospo.policy.decoding import TokenLimits
from ospo.policy.rules import RAW, RULES, STOP_WORDS
from ospo.retrieval import build_retriever, families
from ospo.retrieval.analysers import stop_words
from ospo.retrieval.base import Retriever

__all__ = ["Source", "evaluate"]

# Requests scored at once: (chunk x policies) texts and their pools are all that is in memory.
CHUNK = 2048
Source = str | Path | None
CONTROL = "control"  # the summary's table of swapped answers, beside those of the splits

_TABLE = pa.schema(
    [
        ("policy", pa.string()),
        ("seed", pa.int32()),
        ("retriever", pa.string()),
        ("split", pa.string()),
        ("scope", pa.string()),
        ("decoding", pa.string()),
        ("sample", pa.int32()),
        ("request_id", pa.string()),
        ("query", pa.string()),
        ("answer", pa.string()),
        ("text", pa.string()),
        *((name, pa.float64()) for name in MEASURES),
    ]
)


@dataclass
class _Means:
    """Running sums of nDCG@10: (split or "control", policy, retriever) → sum and count, greedy
    answers within pools, all seeds.
    """

    sums: dict[tuple[str, str, str], float] = field(default_factory=dict)
    counts: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def add(self, key: tuple[str, str, str], values: np.ndarray) -> None:
        self.sums[key] = self.sums.get(key, 0.0) + float(values.sum())
        self.counts[key] = self.counts.get(key, 0) + len(values)

    def table(self, split: str) -> dict[str, dict[str, float]]:
        out: dict[str, dict[str, float]] = {}
        for (part, policy, retriever), total in self.sums.items():
            if part == split:
                out.setdefault(policy, {})[retriever] = total / self.counts[part, policy, retriever]
        return out


@dataclass
class _Scoring:
    """Scores answers and writes the table. A chunk's distinct texts are collected once and scored
    by every retriever.
    """

    config: Config
    data: PreparedData
    answers: Answers
    writer: pq.ParquetWriter
    means: _Means
    seconds: dict[str, float]

    def passes(self, split: str, name: str) -> list[str]:
        """The scopes in which a retriever scores a split."""
        if split == "validation":
            return ["pool"] if name == self.config.retrievers.training else []
        return ["pool", "catalogue"] if self.config.evaluation.catalogue else ["pool"]

    def run(self, names: list[str], retrievers: dict[str, Retriever], bar: Any) -> None:
        """Score all answers under ``names``."""
        for split in ("validation", "test"):
            wanted = [(name, scope) for name in names for scope in self.passes(split, name)]
            if not wanted:
                continue
            for part, jobs, tables in self.answers.chunks(split):
                everything = Chunk.of(part, [table["text"].to_pylist() for table in tables])
                # The whole catalogue is searched for greedy answers only.
                greedy = [j for j, job in enumerate(jobs) if job.decoding_name == "greedy"]
                taken = {"pool": list(range(len(jobs))), "catalogue": greedy}
                chunks = {
                    scope: everything.only(taken[scope]) for scope in {scope for _, scope in wanted}
                }
                for name, scope in wanted:
                    begun = time.perf_counter()
                    values = score_chunk(retrievers[name], self.data, chunks[scope], scope)
                    self.seconds[f"score {name}"] += time.perf_counter() - begun
                    some = taken[scope]
                    self._write(
                        name, scope, [jobs[j] for j in some], [tables[j] for j in some], values
                    )
                    bar.update(len(some) * len(part))

    def _write(
        self,
        name: str,
        scope: str,
        jobs: list[Job],
        tables: list[pa.Table],
        values: dict[str, np.ndarray],
    ) -> None:
        joined = pa.concat_tables(tables)
        n = len(joined)
        columns = {
            column: joined[column] for column in joined.column_names if column in _TABLE.names
        }
        columns |= {"retriever": pa.repeat(name, n), "scope": pa.repeat(scope, n)}
        columns |= {measure_name: pa.array(value.ravel()) for measure_name, value in values.items()}
        self.writer.write_table(
            pa.table([columns[column.name] for column in _TABLE], schema=_TABLE)
        )
        if scope == "pool":
            for job, value_R in zip(jobs, values["ndcg@10"], strict=True):
                means = {"greedy": job.split, SWAPPED: CONTROL}.get(job.decoding_name)
                if means:
                    self.means.add((means, job.policy, name), value_R)


def _runs(
    policies: Mapping[str, Source | Sequence[Source] | Mapping[int, Source]], seed: int
) -> dict[tuple[str, int], Path]:
    """(name, training seed) → where that policy is; rules are none of them.

    Raises InputError for a name without any, or a rule's name with one.
    """
    runs: dict[tuple[str, int], Path] = {}
    for name, given in policies.items():
        if name in RULES:
            if given is not None:
                raise InputError("policies", name, "is the name of a rule", "name it otherwise")
            continue
        if given is None or isinstance(given, str | Path):
            seeds: dict[int, Source] = {seed: given}
        else:
            seeds = dict(given) if isinstance(given, Mapping) else dict(enumerate(given))
        if not seeds:
            raise InputError(
                "policies",
                name,
                "names no policy",
                "give at least one directory or file of answers",
            )
        for s, source in seeds.items():
            if source is None:
                raise InputError("policies", name, "names no policy", f"call the raw query {RAW!r}")
            runs[name, s] = Path(source)
    return runs


def evaluate(
    config: Config,
    data: PreparedData,
    policies: Mapping[str, Source | Sequence[Source] | Mapping[int, Source]],
    out: Path,
    *,
    cache: Path | None = CACHE,
    chunk: int = CHUNK,
    limits: Mapping[str, TokenLimits] = MappingProxyType({}),
    note: str = "",
    commands: Sequence[str] = (),
) -> Summary:
    """Evaluate ``policies`` and write everything under ``out``.

    ``policies``: name → policy directory or file of answers (``policies.AnswerFile``). The rules
    (``ospo.policy.rules``) that apply to the data are always evaluated too.
    A policy trained under several seeds is a list of them (seeds 0, 1, …) or a mapping
    seed → directory. ``limits``: name → token limits of policies that were trained with others than
    the preset of now has, such as registered versions. ``note``: a sentence that a reader of the
    report must know; ``commands``: what makes this evaluation again, for the report.

    - ``answers.parquet``: one row per policy × seed × request × sample: answer, the search text it
      becomes (by the policy's own kind of answers), tokens, whether it ended by itself.
    - ``evaluation.parquet``: one row per policy × seed × retriever × request × sample,
      all ``MEASURES``, ``scope`` pool or catalogue.
    - ``summary.json`` (also returned): mean nDCG@10 of greedy answers within pools, ``{"test":
      {policy: {retriever: value}}, "validation": the same for the training retriever only,
      "control": as test, of answers given to other requests (``ospo.evaluation.control``),
      "guard": as test, under the guards of those policies that have one}``.
    - ``guard.json``: the guards, chosen on validation requests (``ospo.evaluation.guard``);
      ``guarded.parquet``: nDCG@10 of test requests under them, and whether the answer is used.
    - ``examples.json``: requests that improved and worsened most, with what every phrase did.
    - ``slices.parquet``: properties of each test request, and the shopper it comes from.
    - ``details.json``: counts (empty, unfinished answers), requests, policy hashes, leak checks,
      seconds.

    Raises InputError for an empty split or a directory without a policy, LeakError, OspoError for a
    retriever that breaks its contract.
    """
    runs = _runs(policies, config.seed)
    started = time.perf_counter()
    limit = config.evaluation.max_requests
    rows = {split: choose_requests(data, split, limit) for split in ("validation", "test")}
    leak_checks = _check_leaks(data, rows, runs)
    built: dict[str, Retriever] = {}
    hits = FirstHits(config, data, built)
    rules, left_out = _rules(config, data, rows, hits)
    opened: dict[tuple[str, int], Policy] = {(name, config.seed): rules[name] for name in rules}
    opened |= {
        key: open_policy(
            model, config, cache, hits, limits[key[0]].prompt if key[0] in limits else None
        )
        for key, model in runs.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    jobs = plan(config, opened, limits)
    answers, counts = _answer(config, data, opened, jobs, rows, out / "answers.parquet", chunk)
    seconds = {"rewrite": time.perf_counter() - started}
    means, training = _score(config, data, answers, out / "evaluation.parquet", seconds, built)
    with atomic_file(out / "slices.parquet") as temporary:
        slice_table(data, rows["test"]).write_parquet(temporary)
    kinds = {name: policy.answer for (name, _), policy in reversed(opened.items())}
    write_examples(config, data, training, out, kinds)
    facts = {
        "note": note,
        "commands": list(commands),
        "policies": _described(runs, opened),
        "requests": {split: len(chosen) for split, chosen in rows.items()},
        "answers": counts,
        "leak_checks": leak_checks,
        "rules_left_out": left_out,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }
    write_json(out / "details.json", _details(config, data) | facts)
    return _summarise(config, data, means, out)


def _answer(
    config: Config,
    data: PreparedData,
    opened: Mapping[tuple[str, int], Policy],
    jobs: Sequence[Job],
    rows: Mapping[str, np.ndarray],
    file: Path,
    chunk: int,
) -> tuple[Answers, dict[str, dict[str, int]]]:
    """Write all answers, the control's among them, to ``file``; they and counts per policy."""
    partner_R = control_partners(data, rows["test"], config.seed)
    counts = write_answers(opened, data, jobs, rows, file, chunk, partner_R)
    return Answers(file, jobs, rows, chunk), counts


def _summarise(config: Config, data: PreparedData, means: _Means, out: Path) -> Summary:
    """Choose the guards by the written tables, and write and return the summary."""
    guards = write_guards(out, data, config.retrievers.training, config.seed)
    summary = {table: means.table(table) for table in ("validation", "test", CONTROL)}
    summary["guard"] = write_guarded(out, data, guards)
    write_json(out / "summary.json", summary)
    return summary


def _score(
    config: Config,
    data: PreparedData,
    answers: Answers,
    file: Path,
    seconds: dict[str, float],
    built: dict[str, Retriever],
) -> tuple[_Means, Retriever]:
    """Write the table of all measures to ``file``, adding to ``seconds`` what each retriever took;
    returns the summary's means and the training retriever. ``built``: what is built already.
    """
    means, training = _Means(), None
    names = _retrievers(config)
    with atomic_file(file) as temporary, pq.ParquetWriter(temporary, _TABLE) as writer:
        scoring = _Scoring(config, data, answers, writer, means, seconds)
        for family in families(names):
            shared = built if config.retrievers.training in family else {}
            for name in family:
                begun = time.perf_counter()
                build_retriever(name, config, data, shared)
                seconds[f"score {name}"] = time.perf_counter() - begun
            with tqdm(desc=f"score {', '.join(family)}", unit="text") as bar:
                scoring.run(family, shared, bar)
            training = shared.get(config.retrievers.training, training)
    assert training is not None
    return means, training


def _rules(
    config: Config,
    data: PreparedData,
    rows: Mapping[str, np.ndarray],
    hits: FirstHits,
) -> tuple[dict[str, RulePolicy], dict[str, str]]:
    """The rules that apply to the evaluated requests, and why the others are left out."""
    lengths = data.requests.frame["history"].list.len().to_numpy()
    bought = any(lengths[chosen].any() for chosen in rows.values())
    stop = STOP_WORDS if data.language == "en" else stop_words(data.language)
    rules, left_out = {}, {}
    for name, rule in RULES.items():
        if rule.reads_history and not bought:
            left_out[name] = "no evaluated request has earlier purchases"
        elif rule.reads_hits and not config.evaluation.catalogue:
            left_out[name] = "the whole catalogue is not searched (evaluation.catalogue is false)"
        else:
            rules[name] = RulePolicy(rule, hits, stop=stop)
    return rules, left_out


def _retrievers(config: Config) -> list[str]:
    """The training retriever first, then the unseen ones."""
    return list(dict.fromkeys([config.retrievers.training, *config.retrievers.unseen]))


def _details(config: Config, data: PreparedData) -> dict[str, Any]:
    """What ``details.json`` holds of the data and the parameters."""
    training, *unseen = _retrievers(config)
    return {
        "dataset": data.name,
        "training_retriever": training,
        "unseen_retrievers": unseen,
        "lineage": lineage(config, data),
    }


def _check_leaks(
    data: PreparedData, rows: Mapping[str, np.ndarray], runs: Mapping[tuple[str, int], Path]
) -> dict[str, dict[str, int]]:
    """How many keys of the split, and how many requests of each policy's training, were compared.
    Raises LeakError.
    """
    compared = leaks.check_split(data)
    evaluated = np.concatenate(list(rows.values()))
    logs: dict[str, int] = {}
    for (name, _), model in runs.items():
        logs[name] = logs.get(name, 0) + leaks.check_policy(data, evaluated, name, model)
    return {"compared": compared, "training_requests": logs}


def _described(
    runs: Mapping[tuple[str, int], Path], opened: Mapping[tuple[str, int], Policy]
) -> dict[str, dict[str, Any]]:
    """Name → its runs (seed, model, content hash); ``model``, ``hash`` and ``answer``, the kind of
    its answers, are those of the first.
    """
    out: dict[str, dict[str, Any]] = {}
    for (name, seed), policy in opened.items():
        model = runs.get((name, seed))  # a rule has none
        run = {"seed": seed, "model": str(model or ""), "hash": policy.hash}
        first = {"model": run["model"], "hash": run["hash"], "answer": policy.answer.kind}
        out.setdefault(name, first | {"runs": []})["runs"].append(run)
    return out
