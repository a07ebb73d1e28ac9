"""Logs of OpenSearch's User Behavior Insights: queries and events as NDJSON → judgements.

Every ``*.ndjson`` of the folder is read: plain records, or the lines of a bulk export, whose action
lines are passed over. A record with ``action_name`` is an event, one with ``user_query`` alone a
query. An event names its search by ``query_id``, the product by
``event_attributes.object.object_id`` and its place by ``event_attributes.position.ordinal``.
"""

from pathlib import Path
from typing import Any

import polars as pl

from ospo.config.formats import LogData, UbiData
from ospo.data.clicks import EVENTS, IMPRESSION, graded, strengths
from ospo.data.collection import prepare_collection
from ospo.data.documents import read_catalogue
from ospo.data.json_lines import identifier, read_objects
from ospo.data.source import Source
from ospo.data.stats import Stats
from ospo.data.writer import Prepared
from ospo.errors import InputError

_FIX = "export the indices ubi_queries and ubi_events, one JSON object per line"
_BULK = {"index", "create"}


def prepare_ubi(source: Source[UbiData], stats: Stats) -> Prepared:
    """Read log and products and build the prepared tables. Raises InputError."""
    files = sorted(source.raw.glob("*.ndjson"))
    catalogue_file = log_files(source, files, "*.ndjson")
    catalogue = read_catalogue(catalogue_file, source, stats)
    events = _read_events(files, source.options, stats)
    where = files[0] if len(files) == 1 else source.raw
    return from_events(source, catalogue, events, where, stats)


def log_files(source: Source[Any], files: list[Path], wanted: str) -> Path:
    """The file of the products. Raises InputError where the folder, the log or that is missing."""
    raw = source.raw
    if not raw.is_dir():
        fix = f"set {source.key('raw')} (or --raw) to the folder of the log"
        raise InputError(raw, "", "folder not found", fix)
    if not files:
        raise InputError(raw / wanted, "", "file not found", f"put the log there: {_FIX}")
    file: Path = raw / source.options.documents
    if not file.is_file():
        key = source.key("documents")
        fix = f"put the products there as JSON lines or .tsv, or set {key} to the file's name"
        raise InputError(file, "", "file not found", fix)
    return file


def from_events(
    source: Source[Any], catalogue: pl.DataFrame, events: pl.DataFrame, where: Path, stats: Stats
) -> Prepared:
    """The prepared tables of a log's events (EVENTS); ``where``: the log, for error lines."""
    if events.is_empty() or not (events["strength"] == IMPRESSION).any():
        names = ", ".join(source.options.impressions)
        problem = f"holds no impression ({names}): clicks cannot be corrected for position"
        fix = f"log what was shown, or set {source.key('impressions')} to its action"
        raise InputError(where, "action", problem, fix)
    judged = graded(events, source.options, stats)
    if judged.is_empty():
        problem = f"no query was shown {source.options.min_impressions} products"
        fix = f"supply a longer log, or lower {source.key('min_impressions')}"
        raise InputError(where, "query", problem, fix)
    return prepare_collection(source, catalogue, judged, where, stats)


def _read_events(files: list[Path], options: LogData, stats: Stats) -> pl.DataFrame:
    kinds = strengths(options)
    queries: dict[str, str] = {}
    rows: list[tuple[str, str, str, int | None, int]] = []
    events = other = nameless = 0
    for file in files:
        for _, value in read_objects(file, _FIX):
            if len(value) == 1 and set(value) <= _BULK:
                continue
            search = identifier(value.get("query_id"))
            words = value.get("user_query")
            if "action_name" not in value:
                if search and isinstance(words, str):
                    queries.setdefault(search, words)
                continue
            events += 1
            kind = kinds.get(str(value["action_name"]))
            if kind is None:
                other += 1
                continue
            item_id, position = _result(value)
            if item_id is None:
                nameless += 1
                continue
            text = words if isinstance(words, str) else ""
            rows.append((search or "", text, item_id, position, kind))
    stats.read |= {"events": events, "searches": len(queries)}
    stats.drop("event_other_action", other)
    stats.drop("event_without_product", nameless)
    frame = pl.DataFrame(rows, schema=EVENTS, orient="row")
    frame = stats.keep(frame, "event_without_query", pl.col("search") != "")
    known = pl.DataFrame(
        {"search": list(queries), "asked": list(queries.values())},
        schema={"search": pl.String, "asked": pl.String},
    )
    frame = frame.join(known, on="search", how="left", maintain_order="left")
    return frame.with_columns(query=pl.coalesce("asked", "query")).drop("asked")


def _result(event: dict[str, Any]) -> tuple[str | None, int | None]:
    """The product and the place of an event; None where it has none that can be read."""
    attributes = event.get("event_attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    shown, place = attributes.get("object"), attributes.get("position")
    item_id = identifier(shown.get("object_id")) if isinstance(shown, dict) else None
    ordinal = place.get("ordinal") if isinstance(place, dict) else None
    whole = isinstance(ordinal, int) and not isinstance(ordinal, bool) and abs(ordinal) < 2**31
    return item_id, ordinal if whole else None
