"""Requests where a policy helped most and where it hurt most, with the credit of every phrase it
wrote and its share of the difference to the raw query.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from ospo.config import Config
from ospo.credit import Credit
from ospo.data.dataset import PreparedData, Request
from ospo.evaluation.changes import Changes, additions, changes
from ospo.files import write_json
from ospo.policy.rules import RULES
from ospo.policy.text import SEARCH_TEXTS, SearchText
from ospo.retrieval.base import Retriever
from ospo.reward.answers import reward_of_answers
from ospo.reward.credit import credit_engine
from ospo.reward.search import SearchReward

PER_KIND = 6  # examples of each kind and policy


def pick(table: Path, training: str) -> pl.DataFrame:
    """The most improved and the most worsened test requests of each policy against the raw query.

    Columns: policy, kind (improved | worse), request_id, raw, value (nDCG@10), raw_rank, rank (of
    the first item of the highest grade in the pool). Requests whose score did not change are
    neither. Ties are settled by request id. A policy trained under several seeds is represented by
    the first.
    """
    here = (
        (pl.col("retriever") == training)
        & (pl.col("split") == "test")
        & (pl.col("scope") == "pool")
        & (pl.col("decoding") == "greedy")
    )
    columns = ["policy", "request_id", "ndcg@10", "rr_exact"]
    first_seed = pl.col("seed") == pl.col("seed").min().over("policy")
    rows = (
        pl.scan_parquet(table, glob=False).filter(here).filter(first_seed).select(columns).collect()
    )
    raw = rows.filter(pl.col("policy") == "raw").select(
        "request_id", raw="ndcg@10", raw_rr="rr_exact"
    )
    both = (
        rows.filter(~pl.col("policy").is_in(list(RULES)))
        .join(raw, on="request_id")
        .with_columns(gain=pl.col("ndcg@10") - "raw")
    )
    picked = []
    for kind, descending in (("improved", True), ("worse", False)):
        side = both.filter(pl.col("gain") > 0 if descending else pl.col("gain") < 0)
        ordered = side.sort(["policy", "gain", "request_id"], descending=[False, descending, False])
        picked.append(
            ordered.group_by("policy", maintain_order=True)
            .head(PER_KIND)
            .with_columns(kind=pl.lit(kind))
        )
    return pl.concat(picked).select(
        "policy",
        "kind",
        "request_id",
        "raw",
        value="ndcg@10",
        raw_rank=(1 / pl.col("raw_rr")).round().cast(pl.Int32, strict=False),
        rank=(1 / pl.col("rr_exact")).round().cast(pl.Int32, strict=False),
    )


def write_examples(
    config: Config,
    data: PreparedData,
    retriever: Retriever,
    out: Path,
    kinds: Mapping[str, SearchText],
) -> None:
    """Write ``out/examples.json``: one object per picked request and policy. ``kinds``: policy →
    what its answers are.

    - ``query``, ``history``, ``target``, ``answer``, the search ``text``, the kind of ``answers``;
      ``raw_rank``, ``rank``.
    - ``empty_ndcg``, ``raw_ndcg``, ``ndcg``: nDCG@10 of an answer that says nothing (where answers
      add to the request: of the raw query), of the raw query, of the answer.
    - ``phrases``: text, ``credit`` (they sum to ``ndcg`` − ``empty_ndcg``),
      ``kept`` (all its words stand in the request) and ``change``, its share of ``ndcg`` −
      ``raw_ndcg``.
    - ``lost``: words of the request that the answer left out: text, ``change``, and ``put_back``,
      what adding them to the answer would change. ``form``: what order and repeats alone changed.
      All changes and ``form`` sum to ``ndcg`` − ``raw_ndcg``.
    - ``estimator``: how ``credit`` was computed.

    Credit has the settings and the estimator of training (``config.credit``), under the training
    retriever, seeded; it is of nDCG alone, without the prices that training takes off.
    """
    picked = pick(out / "evaluation.parquet", config.retrievers.training)
    wanted = picked["request_id"].unique().implode()
    answers = (
        pl.scan_parquet(out / "answers.parquet", glob=False)
        .filter(
            (pl.col("split") == "test")
            & (pl.col("decoding") == "greedy")
            & pl.col("request_id").is_in(wanted)
        )
        .filter(pl.col("seed") == pl.col("seed").min().over("policy"))
        .select("policy", "request_id", "answer", "text", "row")
        .collect()
    )
    rows = picked.join(
        answers, on=["policy", "request_id"], how="left", maintain_order="left"
    ).to_dicts()
    write_json(out / "examples.json", _examples(config, data, retriever, rows, kinds))


def _examples(
    config: Config,
    data: PreparedData,
    retriever: Retriever,
    picked: list[dict[str, Any]],
    kinds: Mapping[str, SearchText],
) -> list[dict[str, Any]]:
    search = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
    found: dict[int, dict[str, Any]] = {}
    for rule in SEARCH_TEXTS.values():
        places = [n for n, one in enumerate(picked) if kinds[one["policy"]] is rule]
        if not places:
            continue
        answers, rows = [picked[n]["answer"] for n in places], [picked[n]["row"] for n in places]
        queries = [data.requests[row].query for row in rows]
        value = reward_of_answers(search, rule, data.requests)
        engine = credit_engine(config, value, language=data.language)
        credits = engine.credit(answers, rows)
        if rule.keeps_request:
            edits = [additions(rule, *one) for one in zip(queries, credits, strict=True)]
        else:
            units = [credit.segmentation.units for credit in credits]
            settings = {"budget": config.credit.budget, "seed": config.seed}
            edits = changes(search, queries, answers, units, rows, **settings)
        for n, credit, change in zip(places, credits, edits, strict=True):
            found[n] = _example(picked[n], data, credit, change) | {"answers": rule.kind}
    return [found[n] for n in range(len(picked))]


def _phrases(credit: Credit, change: Changes) -> list[dict[str, Any]]:
    columns = (credit.segmentation.units, credit.phi_N, change.kept_N, change.change_N)
    return [
        {"text": text, "credit": float(phi), "kept": kept, "change": share}
        for text, phi, kept, share in zip(*columns, strict=True)
    ]


def _example(
    picked: dict[str, Any], data: PreparedData, credit: Credit, change: Changes
) -> dict[str, Any]:
    request: Request = data.requests[picked["row"]]
    target = data.catalogue.row(data.item_ids.index(request.target_id), named=True)
    return {
        "policy": picked["policy"],
        "kind": picked["kind"],
        "request_id": picked["request_id"],
        "query": request.query,
        "history": [", ".join(filter(None, (p.name, p.type, p.colour))) for p in request.history],
        "target": target["title"],
        "answer": picked["answer"],
        "text": picked["text"],
        "empty_ndcg": credit.empty_value,
        "raw_ndcg": picked["raw"],
        "ndcg": picked["value"],
        "raw_rank": picked["raw_rank"],
        "rank": picked["rank"],
        "phrases": _phrases(credit, change),
        "lost": [asdict(words) for words in change.lost],
        "form": change.form,
        "estimator": credit.estimator,
    }
