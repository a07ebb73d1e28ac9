"""A plain click log, csv or parquet → judgements: columns query, item, position, action and time,
and, where there is one, session.
"""

from pathlib import Path

import polars as pl

from ospo.config.formats import ClicksData
from ospo.data.clicks import EVENTS, IMPRESSION, strengths
from ospo.data.documents import read_catalogue
from ospo.data.raw_csv import read_csv
from ospo.data.raw_files import READ_ERRORS, check_columns, collect, unreadable
from ospo.data.source import Source
from ospo.data.stats import Stats
from ospo.data.ubi import from_events, log_files
from ospo.data.writer import Prepared
from ospo.errors import InputError

COLUMNS = ("query", "item", "position", "action", "time")
_SESSION = "session"


def prepare_clicks(source: Source[ClicksData], stats: Stats) -> Prepared:
    """Read log and products and build the prepared tables. Raises InputError."""
    log = source.raw / source.options.log
    file = log_files(source, [log] if log.is_file() else [], source.options.log)
    catalogue = read_catalogue(file, source, stats)
    events = _events(_read(log, stats), source.options, stats)
    return from_events(source, catalogue, events, log, stats)


def _read(file: Path, stats: Stats) -> pl.DataFrame:
    """The columns of the log as text, null where a value is missing. Raises InputError."""
    if file.suffix == ".csv":
        return read_csv(file, COLUMNS, stats, optional=(_SESSION,))
    try:
        scan = pl.scan_parquet(file, glob=False)
        kinds = scan.collect_schema()
    except READ_ERRORS as error:
        raise unreadable(file, "parquet", error) from None
    check_columns(file, kinds.names(), COLUMNS)
    for name in ("query", "item"):
        if kinds[name] != pl.String and not kinds[name].is_integer():
            problem = f"has type {kinds[name]}, expected text or whole numbers"
            raise InputError(file, name, problem, "store it as text")
    columns = [pl.col(name).cast(pl.String, strict=False) for name in COLUMNS[:4]]
    time = pl.col("time").cast(pl.Int64) if kinds["time"].is_temporal() else pl.col("time")
    session = pl.col(_SESSION) if _SESSION in kinds.names() else pl.lit(None)
    rest = [time.cast(pl.String).alias("time"), session.cast(pl.String).alias(_SESSION)]
    return collect(file, "parquet", scan.select(*columns, *rest))


def _events(log: pl.DataFrame, options: ClicksData, stats: Stats) -> pl.DataFrame:
    """The log's rows as EVENTS. In the order of time, an impression opens a showing of its product
    for its query (and session); what follows for the same three belongs to it.
    """
    stats.read["events"] = len(log)
    log = stats.keep(log, "event_without_query", pl.col("query").fill_null("") != "")
    log = stats.keep(log, "event_without_product", pl.col("item").fill_null("") != "")
    kind = pl.col("action").replace_strict(strengths(options), default=None, return_dtype=pl.Int64)
    log = log.with_columns(
        strength=kind,
        number=pl.col("time").cast(pl.Float64, strict=False),  # null for dates, which sort as text
        place=pl.col("position")
        .str.strip_chars()
        .cast(pl.Float64, strict=False)  # 1.0 is a place too
        .cast(pl.Int64, strict=False),
    )
    log = stats.keep(log, "event_other_action", pl.col("strength").is_not_null())
    key = [pl.col(_SESSION).fill_null(""), pl.col("query"), pl.col("item")]
    log = log.sort("number", "time", "strength", nulls_last=True, maintain_order=True)
    opened = (pl.col("strength") == IMPRESSION).cum_sum().over(key)
    return log.select(
        search=pl.concat_str([*key, opened.cast(pl.String)], separator="\x1f"),
        query="query",
        item_id="item",
        position="place",
        strength="strength",
    ).cast(EVENTS)  # type: ignore[arg-type]
