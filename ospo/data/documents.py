"""Products of a collection or a log, as JSON lines or tab-separated columns → catalogue rows.

An id, a title, a text, and any other field: category, group, brand and colour have a column of the
catalogue, the others stand behind them under their own names.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ospo.config.formats import TEXT_FIELDS, JudgedData
from ospo.data.head_noun import head_noun, one_form
from ospo.data.json_lines import identifier, read_lines, read_objects
from ospo.data.schemas import CATALOGUE_SCHEMA
from ospo.data.source import Source
from ospo.data.stats import Stats
from ospo.data.text import join_parts, known, strip_html
from ospo.errors import InputError

ID_FIELDS = ("_id", "id", "docid", "doc_id", "docno", "item_id", "product_id")
GIVEN_GROUP = "\x1fgroup"  # no field's name: those are printable
_ALIASES = {"color": "colour"}
_MOST_FIELDS = 100
_FIX = 'write one JSON object per line: {"_id": "...", "title": "...", "text": "..."}'
_FIX_TSV = "begin it with a line of column names (id, title, text, …), a tab between two"


def read_catalogue(file: Path, source: Source[JudgedData], stats: Stats) -> pl.DataFrame:
    """Catalogue rows without ``group``, sorted by item_id; ``group`` of the file, where it has one,
    stands in ``GIVEN_GROUP``.

    Where no document has a category, it is guessed from the titles, and ``stats.used`` says so.
    Raises InputError: file not found, a line that is no document, an id that appears twice, no
    document with text.
    """
    frame = _read(file, stats)
    for name in source.options.text_fields:
        if name not in frame.columns:
            if name not in TEXT_FIELDS:
                fix = f"correct {source.key('text_fields')}"
                raise InputError(file, name, "no document has this field", fix)
            frame = frame.with_columns(pl.lit("").alias(name))
    for name in ("title", "text", "description", "category", "group", "brand", "colour"):
        if name not in frame.columns:
            frame = frame.with_columns(pl.lit("").alias(name))
    given = bool((frame["category"] != "").any())
    stats.used["categories"] = "given" if given else "guessed from titles"
    language = source.options.spoken
    head = head_noun(pl.col("title"), language, pl.col("brand"))
    extra = [name for name in frame.columns if name not in (*CATALOGUE_SCHEMA, "text")]
    frame = frame.select(
        "item_id",
        "title",
        text=join_parts([pl.col(name) for name in source.options.text_fields]),
        category=pl.col("category") if given else head,
        brand="brand",
        colour="colour",
        description=pl.when(pl.col("text") != "").then("text").otherwise("description"),
        **{GIVEN_GROUP: pl.col("group")},
        **{name: pl.col(name) for name in extra},
    ).sort("item_id")
    if not given:
        frame = frame.with_columns(one_form(frame["category"], language))
    frame = stats.keep(frame, "product_without_text", pl.col("text") != "")
    if frame.is_empty():
        fields = ", ".join(source.options.text_fields)
        raise InputError(file, fields, "no document has any text", "write a title or a text")
    return frame


def _read(file: Path, stats: Stats) -> pl.DataFrame:
    """Every document: item_id and its fields as clean text, "" where one has none."""
    rows: list[dict[str, str]] = []
    fields: dict[str, None] = {"item_id": None}
    lines: dict[str, int] = {}
    dropped = 0
    for number, values in _rows(file):
        name = next((name for name in ID_FIELDS if name in values), None)
        if name is None:
            fix = _FIX if file.suffix != ".tsv" else _FIX_TSV
            raise InputError(file, f"line {number}", f"has no id ({ID_FIELDS[0]})", fix)
        written = values.pop(name)
        item_id = identifier(written)
        if item_id is None:
            if written not in (None, "") and not isinstance(written, str):
                problem = f"is neither text nor a whole number: {written!r:.40}"
                raise InputError(file, f"line {number}, {name}", problem, "write ids as text")
            dropped += 1
            continue
        if item_id in lines:
            problem = f"{item_id[:60]!r} stands in line {lines[item_id]} already"
            raise InputError(file, f"line {number}, {name}", problem, "keep one line per document")
        lines[item_id] = number
        row = _texts(values)
        fields |= dict.fromkeys(row)
        if len(fields) > _MOST_FIELDS:
            problem = f"more than {_MOST_FIELDS} different fields"
            raise InputError(file, f"line {number}", problem, "keep the fields that describe it")
        rows.append(row | {"item_id": item_id})
    stats.read["products"] = len(rows) + dropped
    stats.drop("product_without_id", dropped)
    if not rows:
        raise InputError(file, "", "holds no document", _FIX if file.suffix != ".tsv" else _FIX_TSV)
    frame = pl.DataFrame(rows, schema=dict.fromkeys(fields, pl.String))
    texts = [strip_html(known(pl.col(name))).alias(name) for name in fields if name != "item_id"]
    return frame.with_columns(texts)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix != ".tsv":
        yield from read_objects(file, _FIX)
        return
    header: list[str] = []
    for number, text in read_lines(file, _FIX_TSV):
        values = text.split("\t")
        if not header:
            header = [name.strip() for name in values]
            if len(set(header)) < len(header) or not set(header) & set(ID_FIELDS):
                problem = f"does not name the columns: {text[:60]!r}"
                raise InputError(file, f"line {number}", problem, _FIX_TSV)
            continue
        if len(values) > len(header):
            problem = f"has {len(values)} columns, the first line names {len(header)}"
            raise InputError(file, f"line {number}", problem, "take tabs out of the texts")
        yield number, dict(zip(header, values, strict=False))


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """The fields of a document as texts; those of BEIR's ``metadata`` as its own. Lists become
    "a, b"; nested objects are left out.
    """
    nested = values.pop("metadata", None)
    if isinstance(nested, dict):
        values = nested | values
    elif nested is not None:
        values["metadata"] = nested
    found = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = ", ".join(str(part) for part in value if isinstance(part, str | int | float))
        if value is None or isinstance(value, dict) or name in ("", "item_id"):
            continue
        if not name.isprintable():  # a column of its own, which terminals and pages show
            continue
        found[_ALIASES.get(name, name)] = str(value)
    return found
