"""Raw CSV files → tables of text, with as many rows as the file has.

Polars ends a row at a line end only where the quotation marks before it are even in number, so that
one stray mark hides every line up to the next one. A file that holds marks is therefore checked
first (``ospo.data.quotes``); one without is read as if there were no such thing as quoting.
"""

import codecs
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ospo.data.quotes import count_rows, holds_quotes
from ospo.data.raw_files import READ_ERRORS, check_columns, collect, too_many_fields, unreadable
from ospo.data.stats import Stats
from ospo.errors import InputError

_HEAD = 1 << 16
_BLOCK = 1 << 20
_COMMA = ord(",")
_OTHER_END = {"\n": re.compile(rb"\r(?![\r\n])"), "\r": re.compile(rb"\n")}
"""What ends a line of a file whose other lines end in a line feed, in a carriage return."""


@dataclass(frozen=True)
class _Text:
    """A CSV file in UTF-8: ``source`` as the user names it, ``file`` as it is read (a copy where
    it was converted), ``line_end`` one byte, ``quoted`` whether it holds quotation marks.
    """

    source: Path
    file: Path
    line_end: str
    quoted: bool

    def scan(self) -> pl.LazyFrame:
        return pl.scan_csv(
            self.file,
            infer_schema=False,
            encoding="utf8",
            truncate_ragged_lines=False,
            glob=False,
            eol_char=self.line_end,
            quote_char='"' if self.quoted else None,
        )


def read_csv(
    file: Path,
    needed: Sequence[str],
    stats: Stats,
    optional: Sequence[str] = (),
    transform: Callable[[pl.LazyFrame], pl.LazyFrame] = lambda frame: frame,
) -> pl.DataFrame:
    """The needed columns of a raw CSV file as text, one row per row of the file; an optional column
    that is missing is null.

    transform: applied to the scan before it is collected; must keep the number of rows. UTF-16 and
    lines that end in a carriage return alone are read and counted in ``stats``. Raises InputError
    for an empty or unreadable file, a missing column (a wrong delimiter shows as one), a row with
    more fields than the header, and a quotation mark that hides rows.
    """
    with _opened(file, stats) as text:
        columns = _columns(text)
        check_columns(file, columns, needed)
        absent = [pl.lit(None, dtype=pl.String).alias(name) for name in optional]
        absent = [column for column in absent if column.meta.output_name() not in columns]
        present = [name for name in optional if name in columns]
        if not text.quoted:
            _check_line_ends(text)
            _check_fields(text, len(columns))
        rows = _count_rows(text, len(columns)) if text.quoted else None
        frame = collect(file, "CSV", transform(text.scan().select(*needed, *present, *absent)))
    if rows is not None and rows != len(frame):
        problem = f"holds {rows:,} rows, of which {len(frame):,} could be read"
        raise InputError(file, "", problem, "write every row on a line of its own, without quotes")
    return frame


def csv_columns(file: Path) -> list[str]:
    """The header of a raw CSV file. Raises InputError for an empty or unreadable file."""
    with _opened(file, Stats()) as text:
        return _columns(text)


def first_value(file: Path, column: str) -> str | None:
    """The first value of a column, to show in an error line; None where there is none."""
    with _opened(file, Stats()) as text:
        values = collect(file, "CSV", text.scan().select(column).head(1))[column]
    return values[0] if len(values) else None


def _columns(text: _Text) -> list[str]:
    try:
        found = text.scan().collect_schema().names()
    except READ_ERRORS as error:
        raise unreadable(text.source, "CSV", error) from None
    if len(found) == 1 and any(mark in found[0] for mark in ";\t|"):
        problem = "columns are not separated by commas"
        raise InputError(text.source, "", problem, "save it with the delimiter ','")
    return found


def _count_rows(text: _Text, columns: int) -> int:
    try:
        return count_rows(text.file, text.source, columns, ord(text.line_end))
    except OSError as error:
        raise unreadable(text.source, "CSV", error) from None


def _check_line_ends(text: _Text) -> None:
    """Raise InputError where a line of a file without quotation marks ends in another way than the
    rest: polars would read two rows as one, and drop the second.
    """
    lines, rest = 1, b""
    with text.file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            block = rest + block
            rest = b"\r" if block.endswith(b"\r") and text.line_end == "\n" else b""
            block = block.removesuffix(rest) if rest else block
            found = _OTHER_END[text.line_end].search(block)
            end = text.line_end.encode()
            if found:
                where = f"line {lines + block.count(end, 0, found.start())}"
                problem = "ends in another character than the lines before it"
                fix = "end every line of the file in the same way"
                raise InputError(text.source, where, problem, fix)
            lines += block.count(end)


def _check_fields(text: _Text, columns: int) -> None:
    """Raise InputError where a row of a file without quotation marks has more fields than the
    header: polars would take its first ones, whichever they are.
    """
    lines, commas, end = 1, 0, ord(text.line_end)
    with text.file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            places = np.frombuffer(block, np.uint8)
            places = places[(places == _COMMA) | (places == end)]
            ends = np.flatnonzero(places == end)
            count = np.diff(ends, prepend=-1, append=len(places)) - 1
            count[0] += commas
            commas = int(count[-1])  # of a row that the next block goes on with
            if (bad := np.flatnonzero(count[:-1] >= columns)).size:
                row = int(bad[0])
                raise too_many_fields(text.source, lines + row, int(count[row]) + 1, columns)
            lines += len(ends)
    if commas >= columns:
        raise too_many_fields(text.source, lines, commas + 1, columns)


@contextmanager
def _opened(file: Path, stats: Stats) -> Iterator[_Text]:
    """The file in UTF-8: itself, or a temporary copy of one in UTF-16."""
    encoding = _utf16(_head(file))
    if encoding is None:
        yield _text(file, file, stats)
        return
    stats.read_in_form("file_in_utf16", 1)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "utf8.csv"
        _convert(file, copy, encoding)
        yield _text(file, copy, stats)


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_HEAD)
    except OSError as error:
        raise unreadable(file, "CSV", error) from None


def _text(source: Path, file: Path, stats: Stats) -> _Text:
    head, line_end = _head(file), "\n"
    if b"\r" in head and b"\n" not in head:
        stats.read_in_form("file_with_carriage_returns", 1)
        line_end = "\r"
    try:
        return _Text(source, file, line_end, holds_quotes(file))
    except OSError as error:
        raise unreadable(source, "CSV", error) from None


def _utf16(head: bytes) -> str | None:
    """The encoding of a file in UTF-16 that begins with ``head``, with or without its mark."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Latin letters have a zero byte after or before them.
    if len(head) >= 4 and len(head) % 2 == 0:
        for zeros, encoding in ((head[1::2], "utf-16-le"), (head[::2], "utf-16-be")):
            if zeros.count(0) > len(zeros) // 2:
                return encoding
    return None


def _convert(file: Path, copy: Path, encoding: str) -> None:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with file.open("rb") as stream, copy.open("wb") as target:
            while block := stream.read(_BLOCK):
                target.write(decoder.decode(block).encode())
            target.write(decoder.decode(b"", final=True).encode())
    except UnicodeError as error:
        problem = f"is damaged UTF-16 ({error.__class__.__name__})"
        raise InputError(file, "", problem, "save it as UTF-8") from None
    except OSError as error:
        problem = f"cannot be converted to UTF-8 ({error.strerror or error})"
        raise InputError(file, "", problem, "free disk space, or save it as UTF-8") from None
