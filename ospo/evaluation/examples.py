"""Requests where a policy helped most and where it hurt most, with the credit of every phrase it
wrote.
"""

from pathlib import Path
from typing import Any

import polars as pl

from ospo.config import Config
from ospo.data.dataset import PreparedData, Request
from ospo.files import write_json
from ospo.retrieval.base import Retriever
from ospo.reward.credit import credit_engine
from ospo.reward.search import SearchReward

PER_KIND = 6  # examples of each kind and policy


def pick(table: Path, training: str) -> pl.DataFrame:
    """The most improved and the most worsened test requests of each policy against the raw query.

    Columns: policy, kind (improved | worse), request_id, raw, value (nDCG@10), raw_rank, rank (of
    the first relevant item in the pool). Requests whose score did not change are neither. Ties are
    settled by request id. Of a policy trained under several seeds the first one speaks.
    """
    here = (
        (pl.col("retriever") == training)
        & (pl.col("split") == "test")
        & (pl.col("scope") == "pool")
        & (pl.col("decoding") == "greedy")
    )
    columns = ["policy", "request_id", "ndcg@10", "rr"]
    first_seed = pl.col("seed") == pl.col("seed").min().over("policy")
    rows = (
        pl.scan_parquet(table, glob=False).filter(here).filter(first_seed).select(columns).collect()
    )
    raw = rows.filter(pl.col("policy") == "raw").select("request_id", raw="ndcg@10", raw_rr="rr")
    both = (
        rows.filter(pl.col("policy") != "raw")
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
        rank=(1 / pl.col("rr")).round().cast(pl.Int32, strict=False),
    )


def write_examples(config: Config, data: PreparedData, retriever: Retriever, out: Path) -> None:
    """Write ``out/examples.json``: each picked request with query, history, answer and its phrases'
    credit.

    Credit is the one that training uses (``config.credit``), of the training retriever, seeded.
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
        .select("policy", "request_id", "answer", "row")
        .collect()
    )
    rows = picked.join(
        answers, on=["policy", "request_id"], how="left", maintain_order="left"
    ).to_dicts()
    credits = _credits(
        config, data, retriever, [row["answer"] for row in rows], [row["row"] for row in rows]
    )
    examples = [_example(row, data, phrases) for row, phrases in zip(rows, credits, strict=True)]
    write_json(out / "examples.json", examples)


def _credits(
    config: Config, data: PreparedData, retriever: Retriever, answers: list[str], rows: list[int]
) -> list[list[dict[str, Any]]]:
    if not answers:
        return []
    reward = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
    engine = credit_engine(config, reward)
    credits = engine.credit(answers, rows, rewards=None, skip=None)
    return [
        [
            {"text": answer[start:end], "credit": float(phi)}
            for (start, end), phi in zip(credit.segmentation.spans, credit.phi_N, strict=True)
        ]
        for answer, credit in zip(answers, credits, strict=True)
    ]


def _example(
    row: dict[str, Any], data: PreparedData, phrases: list[dict[str, Any]]
) -> dict[str, Any]:
    request: Request = data.requests[row["row"]]
    target = data.catalogue.row(data.item_ids.index(request.target_id), named=True)
    return {
        "policy": row["policy"],
        "kind": row["kind"],
        "request_id": row["request_id"],
        "query": request.query,
        "history": [", ".join(filter(None, (p.name, p.type, p.colour))) for p in request.history],
        "target": target["title"],
        "answer": row["answer"],
        "raw_ndcg": row["raw"],
        "ndcg": row["value"],
        "raw_rank": row["raw_rank"],
        "rank": row["rank"],
        "phrases": phrases,
    }
