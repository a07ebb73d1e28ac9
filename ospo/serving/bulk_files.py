"""Requests from files of any size, and search texts into them: txt, csv, jsonl and parquet, read
and written row by row.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ospo.errors import InputError
from ospo.serving.requests import MAX_CHARACTERS

Format = Literal["txt", "csv", "jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("txt", "csv", "jsonl", "parquet")
COLUMNS = {"request": pa.string(), "rewrite": pa.string(), "changed": pa.bool_(),
           "seconds": pa.float64()}  # fmt: skip
STANDARD = "-"
_BATCH = 4096  # rows of a parquet file in memory at once
Row = Mapping[str, Any]


_HITS = "hits"  # the column of first hits


@dataclass(frozen=True)
class Columns:
    """Which columns hold the query, the earlier purchases ("" for none) and an id to carry along
    ("" for none). Titles of first hits stand in a column ``hits``, where there is one.
    """

    query: str = "query"
    history: str = "history"
    id: str = ""


def format_of(path: str, named: str) -> Format:
    """The format that is ``named``, else the suffix's; standard input and output are text lines.

    Raises InputError for another one.
    """
    found = named or ("txt" if path == STANDARD else Path(path).suffix.lstrip(".").lower())
    found = {"ndjson": "jsonl", "tsv": "csv"}.get(found, found)
    for known in FORMATS:
        if found == known:
            return known
    raise InputError(path, "format", f"is {found!r:.40}", f"name one of {', '.join(FORMATS)}")


def read_rows(
    path: str, kind: Format, columns: Columns, stream: TextIO
) -> Iterator[tuple[str, Any]]:
    """(id, input) of each row in order, as :class:`ospo.serving.Rewriter` takes them: a query, or
    an object with query and history. ``stream``: standard input, read where ``path`` is ``-``.

    Raises InputError for a file that is missing, not UTF-8, not of the format, or lacks the column.
    """
    try:
        if kind == "parquet":
            yield from _parquet(path, columns)
            return
        with _opened(path, stream) as lines:
            if kind == "txt":
                yield from (("", line.rstrip("\r\n")) for line in lines)
            elif kind == "csv":
                yield from _csv(path, lines, columns)
            else:
                yield from _jsonl(path, lines, columns)
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {error.start} of a block: {error.object[error.start]:#04x})"
        raise InputError(path, "", problem, "save it as UTF-8") from None


@contextmanager
def _opened(path: str, stream: TextIO) -> Iterator[TextIO]:
    if path == STANDARD:
        yield stream
        return
    if not Path(path).is_file():
        raise InputError(path, "", "file not found", "name a file of requests")
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        yield file


def _lacks(path: str, columns: Columns, known: Iterable[str]) -> InputError:
    fix = f"name the query's column with --column; there are: {', '.join(known)}"
    return InputError(path, columns.query, "no such column", fix)


def _csv(path: str, lines: Iterable[str], columns: Columns) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(10 * MAX_CHARACTERS)
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        known = rows.fieldnames or ()
        if columns.query not in known:
            raise _lacks(path, columns, known)
        for row in rows:
            yield _input(path, f"line {rows.line_num}", row, columns)
    except csv.Error as error:
        problem = f"is no csv ({error})"
        raise InputError(path, f"line {rows.line_num}", problem, "quote the field") from None


def _jsonl(path: str, lines: Iterable[str], columns: Columns) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            yield "", ""
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, str):
            yield "", row
            continue
        if not isinstance(row, dict):
            fix = 'write {"query": …} or a query in quotes'
            raise InputError(path, f"line {number}", "is no JSON object", fix)
        if columns.query not in row:
            raise _lacks(path, columns, row)
        yield _input(path, f"line {number}", row, columns)


def _parquet(path: str, columns: Columns) -> Iterator[tuple[str, Any]]:
    if not Path(path).is_file():
        raise InputError(path, "", "file not found", "name a file of requests")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        problem = f"is no readable parquet file ({str(error).splitlines()[0]:.100})"
        raise InputError(path, "", problem, "write it again") from None
    known = file.schema_arrow.names
    if columns.query not in known:
        raise _lacks(path, columns, known)
    asked = (columns.query, columns.history, columns.id, _HITS)
    wanted = [name for name in dict.fromkeys(asked) if name in known]
    number = 0
    for batch in file.iter_batches(_BATCH, columns=wanted):
        for row in batch.to_pylist():
            number += 1
            yield _input(path, f"row {number}", row, columns)


def _input(path: str, where: str, row: Row, columns: Columns) -> tuple[str, Any]:
    if columns.id and columns.id not in row:
        fix = f"name another with --id-column; there are: {', '.join(map(str, row))}"
        raise InputError(path, columns.id, "no such column", fix)
    name = str(row[columns.id]) if columns.id else ""
    query = row.get(columns.query) or ""
    forms = {
        "history": (columns.history, '[{"name": …, "type": …, "colour": …}, …]'),
        "hits": (_HITS, '["title", …], best first'),
    }
    given = {}
    for key, (column, form) in forms.items():
        value = row.get(column)
        if key == "hits" and not isinstance(value, list) and not str(value).startswith("["):
            continue  # a table may count its hits
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except ValueError:
                problem = (path, f"{where}: {column}", "is no JSON", f"write {form}")
                raise InputError(*problem) from None
        if value:
            given[key] = value
    return name, {"query": query, **given} if given else query


Writer = Callable[[pl.DataFrame], None]


@contextmanager
def writing(target: Path | TextIO, kind: Format) -> Iterator[Writer]:
    """A function that appends rows (columns as in ``COLUMNS``, ``id`` first where there is one) to
    a file or stream; txt holds the search texts alone, a line each.
    """
    if kind == "parquet":
        if not isinstance(target, Path):
            raise InputError("--format", "parquet", "cannot be written to standard output",
                             "name a file with --out")  # fmt: skip
        with _parquet_writer(target) as write:
            yield write
        return
    if isinstance(target, Path):
        with target.open("w", encoding="utf-8", newline="") as stream:
            yield _text_writer(stream, kind)
    else:
        yield _text_writer(target, kind)


@contextmanager
def _parquet_writer(target: Path) -> Iterator[Writer]:
    writer: pq.ParquetWriter | None = None

    def write(frame: pl.DataFrame) -> None:
        nonlocal writer
        table = frame.to_arrow()
        names = {"id": pa.string()} | COLUMNS
        table = table.cast(pa.schema([(name, names[name]) for name in table.column_names]))
        if writer is None:
            writer = pq.ParquetWriter(target, table.schema)
        writer.write_table(table)

    try:
        yield write
        if writer is None:
            write(pl.DataFrame(schema={"request": pl.String, "rewrite": pl.String,
                                       "changed": pl.Boolean, "seconds": pl.Float64}))  # fmt: skip
    finally:
        if writer is not None:
            writer.close()


def _text_writer(stream: TextIO, kind: Format) -> Writer:
    begun = False

    def write(frame: pl.DataFrame) -> None:
        nonlocal begun
        if kind == "txt":
            stream.writelines(f"{text}\n" for text in frame["rewrite"])
        elif kind == "jsonl":
            stream.writelines(
                json.dumps(row, ensure_ascii=False) + "\n" for row in frame.to_dicts()
            )
        else:
            stream.write(frame.write_csv(include_header=not begun))
        begun = True
        stream.flush()

    return write
