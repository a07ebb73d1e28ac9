"""Clicks, carts and purchases → graded judgements, corrected for the position of what was shown."""

import polars as pl

from ospo.config.formats import LogData
from ospo.data.query_key import query_keys
from ospo.data.stats import Stats
from ospo.data.text import clean_space

IMPRESSION, CLICK, CART, PURCHASE = range(4)
EVENTS = {
    "search": pl.String,
    "query": pl.String,
    "item_id": pl.String,
    "position": pl.Int64,
    "strength": pl.Int64,
}
"""One row per event: search (of which ``item_id`` was a result), the shopper's words, the place of
the result (null: not noted), and how much the shopper did: IMPRESSION … PURCHASE.
"""
TOP_GRADE = 3


def strengths(options: LogData) -> dict[str, int]:
    """Action → IMPRESSION, CLICK, CART or PURCHASE."""
    kinds = (options.impressions, options.clicks, options.carts, options.purchases)
    return {action: kind for kind, actions in enumerate(kinds) for action in actions}


def position_corrected(showings: pl.DataFrame, smoothing: float) -> pl.DataFrame:
    """query_id, item_id, shown, done and score of every query and product.

    showings: query_id, item_id, position and strength w (0 shown, 1 clicked, 2 put into the cart, 3
    bought), one row each time a product was shown for a query. With s = ``smoothing`` and the
    showings i of query q and product d at places p(i):

        m    = Σ w / N                            over all N showings of the log
        m(p) = (Σ w at p + s·m) / (N at p + s)    what a place lets expect
        score(q, d) = (Σᵢ wᵢ + s) / (Σᵢ m(p(i)) + s)

    That is clicks over expected clicks (Zhang & Jones, "Comparing click logs and editorial labels
    for training query rewriting", WWW 2007 workshop on query log analysis), with carts and
    purchases counted as two and three clicks, and with the posterior mean of a Poisson rate under a
    Gamma(s, s) prior in place of the plain quotient: without evidence the score is 1, and it takes
    about s expected clicks to move it half of the way.
    """
    mean = pl.col("strength").mean()
    at_place = pl.col("strength").sum().over("position") + smoothing * mean
    expected = at_place / (pl.len().over("position") + smoothing)
    return (
        showings.with_columns(expected=expected)
        .group_by("query_id", "item_id")
        .agg(
            shown=pl.len(),
            done=pl.col("strength").sum(),
            expected=pl.col("expected").sort().sum(),  # in one order: floats add up alike
        )
        .with_columns(
            score=(pl.col("done") + smoothing) / (pl.col("expected") + smoothing),
        )
        .sort("query_id", "item_id")
    )


def graded(events: pl.DataFrame, options: LogData, stats: Stats) -> pl.DataFrame:
    """Judgements (query_id, query, item_id, grade) of a log's events (EVENTS).

    Queries that a shopper would call the same are one; its words most often used name it. A product
    that was shown and never chosen has grade 0; a chosen one 1 where its score lies below 1 (less
    than its places let expect), 2 below 2, else 3. Queries whose products were shown fewer than
    ``min_impressions`` times are counted and left out.
    """
    events = events.with_columns(clean_space(pl.col("query")))
    events = stats.keep(events, "event_without_query", pl.col("query") != "")
    showings = events.group_by("search", "item_id").agg(
        query=pl.col("query").min(),
        position=pl.col("position").min().fill_null(-1),
        strength=pl.col("strength").max(),
    )
    stats.read["showings"] = len(showings)
    showings = showings.with_columns(query_id=query_keys(showings["query"], options.spoken))
    shown = pl.len().over("query_id")
    enough = showings.with_columns(shown=shown).filter(pl.col("shown") >= options.min_impressions)
    few = showings["query_id"].n_unique() - enough["query_id"].n_unique()
    stats.drop("query_too_little_evidence", few)
    score = pl.col("score")
    grade = pl.when(score < 1).then(1).when(score < 2).then(2).otherwise(TOP_GRADE)
    found = position_corrected(showings, options.smoothing).with_columns(
        grade=pl.when(pl.col("done") == 0).then(0).otherwise(grade).cast(pl.Int64)
    )
    named = found.join(_names(enough), on="query_id", how="inner", maintain_order="left")
    return named.select(query_id="query", query="query", item_id="item_id", grade="grade")


def _names(showings: pl.DataFrame) -> pl.DataFrame:
    """query_id and query: the words that most searches used for it, the first of the alphabet among
    equals.
    """
    used = pl.col("search").n_unique()
    counts = showings.group_by("query_id", "query").agg(used=used)
    counts = counts.sort(["query_id", "used", "query"], descending=[False, True, False])
    return counts.unique("query_id", keep="first", maintain_order=True).drop("used")
