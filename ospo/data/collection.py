"""Documents and graded judgements → prepared tables: the common part of BEIR, TREC and logs."""

from pathlib import Path

import polars as pl

from ospo.config.formats import JudgedData
from ospo.data.documents import GIVEN_GROUP
from ospo.data.judged import (
    assemble,
    at_most,
    best_first,
    groups_of,
    keep_queries,
    requests_of,
)
from ospo.data.query_key import query_keys
from ospo.data.schemas import SPLITS
from ospo.data.source import Source
from ospo.data.split import require_splits
from ospo.data.stats import Stats
from ospo.data.text import clean_space
from ospo.data.writer import Prepared
from ospo.errors import InputError

JUDGEMENTS = {
    "query_id": pl.String,
    "query": pl.String,
    "item_id": pl.String,
    "grade": pl.Int64,
}


def prepare_collection(
    source: Source[JudgedData],
    catalogue: pl.DataFrame,
    judgements: pl.DataFrame,
    file: Path,
    stats: Stats,
) -> Prepared:
    """The prepared tables.

    catalogue: of ``documents.read_catalogue``. judgements: columns JUDGEMENTS, and ``split`` where
    the splits are given; query is null where no query has the id. file: where the judgements come
    from, for error lines. The gain of a grade is grade / highest grade, 0 for grades below 1, as
    trec_eval's nDCG has it. Raises InputError.
    """
    options, config = source.options, source.config
    judged = _clean(judgements, catalogue, file, stats)
    sides = ["split"] if "split" in judged.columns else []
    judged = judged.with_columns(best=pl.col("grade").max().over("query_id", *sides))
    judged = keep_queries(judged, stats, "query_without_relevant", pl.col("best") > 0)
    if sides:
        judged = _one_side(judged, options.spoken, stats)
    judged = at_most(judged, options.max_requests, config.seed, stats)
    if judged.is_empty():
        fix = "judge products of the catalogue with grades of 1 and more"
        raise InputError(file, "grade", "no query with relevant products is left", fix)
    top = int(judged["grade"].max())  # type: ignore[arg-type]
    grade = pl.col("grade").clip(lower_bound=0)
    judged = judged.with_columns(
        gain=(grade / top).cast(pl.Float32), label=pl.col("grade").cast(pl.String)
    ).drop("grade", "best")
    given = catalogue[GIVEN_GROUP]
    group = given if (given != "").any() else groups_of(catalogue, judged)
    catalogue = catalogue.with_columns(group=group).drop(GIVEN_GROUP)
    labels = sorted(judged["label"].unique(), key=lambda label: -int(label))
    judged = best_first(judged, config.data.pool.size, stats)
    requests = requests_of(judged, config, stats, options.spoken)
    fix = "supply more different queries, or change data.split or seed"
    if sides:
        fix = f"judge some for each split, or set {source.key('splits')}=drawn"
    require_splits(file, "query", requests["split"], fix, source.evaluation_only)
    others = pl.DataFrame(schema={"query_id": pl.String, "item_id": pl.String, "label": pl.String})
    return assemble(judged, others, catalogue, requests, labels, config)


def _clean(
    judgements: pl.DataFrame, catalogue: pl.DataFrame, file: Path, stats: Stats
) -> pl.DataFrame:
    """Judgements of known queries and products, each pair once; ``item``: its catalogue row."""
    stats.read["judgements"] = len(judgements)
    items = catalogue.select("item_id", item=pl.int_range(pl.len(), dtype=pl.Int32))
    judged = stats.keep(judgements, "judgement_unknown_query", pl.col("query").is_not_null())
    if len(judgements) and judged.is_empty():
        problem = f"no judged query is known ({judgements['query_id'][0][:60]!r} here)"
        raise InputError(file, "query", problem, "use queries and judgements of one collection")
    judged = judged.with_columns(clean_space(pl.col("query")))
    judged = stats.keep(judged, "judgement_empty_query", pl.col("query") != "")
    known = judged.join(items, on="item_id", how="left", maintain_order="left")
    known = stats.keep(known, "judgement_unknown_product", pl.col("item").is_not_null())
    if len(judged) and known.is_empty():
        asked, held = judged["item_id"][0][:60], catalogue["item_id"][0][:60]
        problem = f"no judged product is in the catalogue ({asked!r} here, {held!r} there)"
        raise InputError(file, "document", problem, "write the ids of both files alike")
    # A pair judged twice keeps its better grade; within splits a query lies in one of them anyway.
    sides = ["split"] if "split" in known.columns else []
    known = known.sort(["query_id", "item_id", *sides, "grade"], descending=False)
    once = known.unique(["query_id", "item_id", *sides], keep="last", maintain_order=True)
    stats.drop("judgement_duplicate", len(known) - len(once))
    return once


def _one_side(judged: pl.DataFrame, language: str, stats: Stats) -> pl.DataFrame:
    """Judgements whose query, by its normal form, lies in one split: the later one of train,
    validation, test keeps it, so that nothing held out is trained on.
    """
    place = pl.col("split").replace_strict(
        {name: number for number, name in enumerate(SPLITS)}, return_dtype=pl.Int8
    )
    judged = judged.with_columns(key=query_keys(judged["query"], language), place=place)
    last = pl.col("place") == pl.col("place").max().over("key")
    lost = judged.filter(~last).select("query_id", "split").n_unique()
    stats.drop("query_in_two_splits", lost)
    return judged.filter(last).drop("key", "place")
