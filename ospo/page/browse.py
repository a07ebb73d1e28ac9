"""The held-out requests of the latest evaluation, by what a policy's rewrite changed."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ospo.evaluation.selection import label, ordered
from ospo.evaluation.slices import SLICES, in_order
from ospo.evaluation.tables import TABLE, read_table
from ospo.page.asked import Asked, AskedError
from ospo.paths import RUNS
from ospo.policy.rules import RAW, RULES
from ospo.steps import policy_directory

PER_PAGE = 20
SAME = 5e-4  # nDCG@10: what the page shows as 0.000 is unchanged


@dataclass(frozen=True)
class Found:
    """A page of requests: each ``row`` has request_id, query, text, raw, value and gain. ``counts``
    of each kind, ``total`` of all; ``policies`` (key, name), ``retrievers`` and the ``values`` of
    the chosen slice to choose from; ``version``: key of the policy on the page, "" where it cannot
    be asked any more.
    """

    rows: list[dict]
    counts: dict[str, int]
    total: int
    pages: int
    policy: str
    retriever: str
    policies: list[tuple[str, str]]
    retrievers: list[str]
    values: list[str]
    version: str


def evaluation_directory(dataset: str) -> Path:
    """Where the latest evaluation of a data set lies."""
    return RUNS / dataset / "evaluation"


def version_key(dataset: str, policy: str) -> str:
    """The page's key of an evaluated policy; "" where it cannot answer."""
    if policy in RULES:
        return f"rule-{policy}" if RULES[policy].standalone else ""
    return f"run-{policy}" if policy_directory(dataset, policy).is_dir() else ""


def browse(asked: Asked, training: str, queries: pl.DataFrame) -> Found:
    """The requests that ``asked`` names, a page of them. ``queries``: request_id and query of the
    prepared requests.

    Raises InputError where nothing was evaluated yet, AskedError where the policy, retriever or
    slice is unknown.
    """
    directory = evaluation_directory(asked.dataset)
    columns = ["policy", "retriever", "request_id", "seed", "text", "ndcg@10"]
    table = pl.scan_parquet(read_table(directory, "evaluation.parquet"), glob=False)
    frame = table.filter(TABLE).select(columns).collect()
    known = ordered(frame["policy"].unique(maintain_order=True).to_list())
    trained = [name for name in known if name not in RULES] or known
    retrievers = frame["retriever"].unique(maintain_order=True).to_list()
    policy = _one("policy", asked.policy or trained[-1], known)
    usual = training if training in retrievers else retrievers[0]
    retriever = _one("retriever", asked.retriever or usual, retrievers)
    here = frame.filter(pl.col("retriever") == retriever)
    raw = here.filter(pl.col("policy") == RAW).select("request_id", raw="ndcg@10")
    mine = here.filter(pl.col("policy") == policy)
    mine = mine.filter(pl.col("seed") == pl.col("seed").min())
    both = mine.join(raw, on="request_id").with_columns(gain=pl.col("ndcg@10") - pl.col("raw"))
    both = both.join(queries, on="request_id", how="left")
    both, values = _sliced(directory, both, asked)
    kinds = {
        "improved": both.filter(pl.col("gain") >= SAME).sort(
            ["gain", "request_id"], descending=[True, False]
        ),
        "harmed": both.filter(pl.col("gain") <= -SAME).sort(["gain", "request_id"]),
        "unchanged": both.filter(pl.col("gain").abs() < SAME).sort("request_id"),
    }
    chosen = kinds[asked.kind]
    rows = chosen.slice((asked.page - 1) * PER_PAGE, PER_PAGE).rename({"ndcg@10": "value"})
    return Found(
        rows=rows.select("request_id", "query", "text", "raw", "value", "gain").to_dicts(),
        counts={kind: len(part) for kind, part in kinds.items()},
        total=len(both),
        pages=max(1, -(-len(chosen) // PER_PAGE)),
        policy=policy,
        retriever=retriever,
        policies=[(name, label(name)) for name in known if name != RAW],
        retrievers=retrievers,
        values=values,
        version=version_key(asked.dataset, policy),
    )


def _one(field: str, name: str, known: list[str]) -> str:
    if name not in known:
        fix = f"use one of {', '.join(known)}"
        raise AskedError(f"{field}: {name!r:.60} was not evaluated. Fix: {fix}")
    return name


def _sliced(directory: Path, both: pl.DataFrame, asked: Asked) -> tuple[pl.DataFrame, list[str]]:
    """The requests of the chosen slice, and the values that the slice has."""
    if not asked.slice:
        return both, []
    if asked.slice not in SLICES:
        raise AskedError(
            f"slice: {asked.slice!r:.60} is unknown. Fix: use one of {', '.join(SLICES)}"
        )
    slices = pl.read_parquet(read_table(directory, "slices.parquet"), glob=False)
    joined = both.join(slices.select("request_id", here=asked.slice), on="request_id", how="left")
    values = in_order(set(joined["here"].drop_nulls()))
    if asked.value:
        joined = joined.filter(pl.col("here") == asked.value)
    return joined, values
