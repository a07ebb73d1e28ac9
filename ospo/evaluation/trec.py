"""An evaluation as TREC files: ``qrels`` and one run file per policy, seed, retriever and scope,
for ir_measures, trec_eval, ranx and whatever else reads them.

``qrels``: ``query 0 item relevance``. A relevance is the judgement's gain times ``scale`` of
``trec.json``, the smallest power of ten that makes all gains whole numbers (ESCI's 1, .1 and .01
become 100, 10 and 1): nDCG with linear gains, which is what trec_eval and ir_measures compute, does
not depend on the scale, so that their ``nDCG@10`` of a run is the report's figure.

Run files: ``query Q0 item rank score tag``, best first. The score is what is left of the ranking,
not the retriever's: tools rank by it and break ties by the item's name, where a retriever's equal
scores keep the pool's order; so it falls by one with each rank. An empty search text has no line,
which the tools count as 0, as the report does.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import polars as pl

from ospo.config import Config
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.evaluation.measures import rank_order
from ospo.evaluation.scoring import SEARCHES, TOP_K
from ospo.files import atomic_directory, read_json, write_json
from ospo.policy.text import search_text
from ospo.retrieval.base import Retriever, checked_scores, checked_search
from ospo.retrieval.build import build_retriever

QRELS, RUNS, FACTS = "qrels", "runs", "trec.json"
_MOST = 6  # decimal digits of a gain that are kept
_ODD = re.compile(r"\s")
_UNSAFE = re.compile(r"[^\w.@+-]+")


def relevance_scale(gains: Sequence[float]) -> int:
    """The smallest power of ten, at most a million, that makes all ``gains`` whole numbers."""
    for digits in range(_MOST):
        if all(abs(gain * 10**digits - round(gain * 10**digits)) < 1e-4 for gain in gains):
            return int(10**digits)
    return int(10**_MOST)


def write_trec(
    config: Config, data: PreparedData, evaluation: Path, out: Path, *, force: bool = False
) -> list[Path]:
    """Write an evaluation's greedy answers to test requests as TREC files into the folder ``out``,
    whole or not at all; returns the run files.

    Every retriever of the evaluation searches again: the requests' candidate pools, and the best
    1,000 items of the whole catalogue where that was evaluated. ``trec.json`` tells which policy,
    seed, retriever and scope a run file holds. Raises InputError where ``out`` exists (without
    ``force``), for a folder that holds no evaluation of this data, and for ids with white space,
    which the format cannot hold.
    """
    if out.exists() and not force:
        raise InputError(out, "", "exists", "name another folder, or add --force")
    answers = _answers(evaluation, data)
    details = read_json(evaluation / "details.json")
    _check_ids(data, answers)
    names = [details["training_retriever"], *details["unseen_retrievers"]]
    scopes = ["pool", "catalogue"] if _searched(evaluation) else ["pool"]
    built: dict[str, Retriever] = {}
    facts: list[dict[str, Any]] = []
    with atomic_directory(out) as temporary:
        rows = answers["row"].unique(maintain_order=True).to_numpy()
        scale = _write_qrels(data, rows, temporary / QRELS)
        (temporary / RUNS).mkdir()
        for name in names:
            retriever = build_retriever(name, config, data, built)
            for (policy, seed), part in answers.group_by("policy", "seed", maintain_order=True):
                for scope in scopes:
                    file = f"{_safe(policy)}.{seed}.{_safe(name)}.{scope}.run"
                    if any(fact["file"] == file for fact in facts):
                        file = f"{len(facts)}.{file}"  # names that differ in odd characters alone
                    with (temporary / RUNS / file).open("w", encoding="utf-8") as stream:
                        _write_run(retriever, data, part, scope, stream, _safe(policy))
                    facts.append({"file": file, "policy": policy, "seed": seed, "retriever": name,
                                  "scope": scope})  # fmt: skip
        write_json(temporary / FACTS, {"scale": scale, "runs": facts})
        if out.exists():
            shutil.rmtree(out)
    return [out / RUNS / fact["file"] for fact in facts]


def _safe(name: Any) -> str:
    return _UNSAFE.sub("_", str(name))


def _answers(evaluation: Path, data: PreparedData) -> pl.DataFrame:
    file = evaluation / "answers.parquet"
    if not file.is_file():
        raise InputError(evaluation, "", "holds no evaluation", "run `ospo evaluate` first")
    frame = (
        pl.scan_parquet(file, glob=False)
        .filter((pl.col("split") == "test") & (pl.col("decoding") == "greedy"))
        .select("policy", "seed", "row", "request_id", "text")
        .collect()
    )
    known = data.requests.frame["request_id"]
    rows = frame["row"]
    if not frame["request_id"].equals(known.gather(rows.clip(0, len(known) - 1))):
        fix = "evaluate it again, or name its data"
        raise InputError(file, "request_id", "is not of this prepared data", fix)
    return frame


def _searched(evaluation: Path) -> bool:
    scopes = pl.scan_parquet(evaluation / "evaluation.parquet", glob=False).select("scope")
    return "catalogue" in scopes.unique().collect()["scope"]


def _check_ids(data: PreparedData, answers: pl.DataFrame) -> None:
    for table, column, ids in (
        ("catalogue", "item_id", data.item_ids),
        ("requests", "request_id", answers["request_id"].to_list()),
    ):
        odd = next((one for one in ids if _ODD.search(one) or not one), None)
        if odd is not None:
            raise InputError(
                data.directory / f"{table}.parquet",
                column,
                f"{odd!r:.60} holds white space, which TREC files cannot",
                "give ids without spaces",
            )


def _write_qrels(data: PreparedData, rows: np.ndarray, file: Path) -> int:
    """Write the judgements of request rows; returns the scale."""
    gains = np.unique(data.gains_RP[rows])
    scale = relevance_scale([float(f"{gain:.6g}") for gain in gains])
    with file.open("w", encoding="utf-8") as stream:
        for row in rows.tolist():
            pool, gains_P = data.pools_RP[row], data.gains_RP[row]
            for place in np.flatnonzero(gains_P > 0):
                relevance = round(float(gains_P[place]) * scale)
                item = data.item_ids[pool[place]]
                stream.write(f"{data.requests[row].request_id} 0 {item} {relevance}\n")
    return scale


def _write_run(
    retriever: Retriever,
    data: PreparedData,
    part: pl.DataFrame,
    scope: str,
    stream: TextIO,
    tag: str,
) -> None:
    """One policy's answers under one retriever."""
    for start in range(0, len(part), SEARCHES):
        some = part[start : start + SEARCHES]
        texts = [search_text(text) for text in some["text"].to_list()]
        filled = [place for place, text in enumerate(texts) if text]
        if not filled:
            continue
        rows = some["row"].to_numpy()[filled]
        ids = some["request_id"].gather(filled).to_list()
        kept = [texts[place] for place in filled]
        for name, items in zip(ids, _ranked(retriever, data, kept, rows, scope), strict=True):
            for rank, item in enumerate(items):
                line = f"{name} Q0 {data.item_ids[item]} {rank + 1} {len(items) - rank} {tag}"
                stream.write(f"{line}\n")


def _ranked(
    retriever: Retriever, data: PreparedData, texts: list[str], rows: np.ndarray, scope: str
) -> Iterator[list[int]]:
    """The catalogue rows that each text finds, best first."""
    if scope == "catalogue":
        found_BK, scores_BK = checked_search(retriever, texts, TOP_K, len(data.item_ids))
    else:
        pools_BP = data.pools_RP[rows]
        scores_BP = checked_scores(retriever, texts, pools_BP)
        order_BP = rank_order(scores_BP)
        found_BK = np.take_along_axis(pools_BP, order_BP, axis=1)
        scores_BK = np.take_along_axis(scores_BP, order_BP, axis=1)
    for found_K, scores_K in zip(found_BK, scores_BK, strict=True):
        yield found_K[np.isfinite(scores_K)].tolist()


def read_facts(folder: Path) -> Mapping[str, Any]:
    """What ``trec.json`` of a folder says: ``scale``, and of each run its ``file``, ``policy``,
    ``seed``, ``retriever`` and ``scope``.
    """
    facts: Mapping[str, Any] = read_json(folder / FACTS)
    return facts
