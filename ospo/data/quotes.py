"""Quotation marks in CSV files: counted without a CSV parser, so that none can hide rows.

RFC 4180: a field that begins with a mark ends with one; marks inside it are doubled; a field that
does not begin with a mark holds none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ospo.errors import InputError

_BLOCK = 1 << 24
_MARK, _COMMA, _RETURN = ord('"'), ord(","), ord("\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIX = "double it and put quotation marks around its field, or remove it"


def holds_quotes(file: Path) -> bool:
    """Whether a quotation mark stands anywhere in the file. Raises OSError."""
    buffer = bytearray(_BLOCK)
    with file.open("rb", buffering=0) as stream:
        while length := stream.readinto(buffer):
            if buffer.find(b'"', 0, length) >= 0:
                return True
    return False


def count_rows(file: Path, source: Path, columns: int, line_end: int) -> int:
    """Rows of a CSV file, the header not counted; a field may hold line ends where it is quoted.

    columns: of the header. line_end: the byte that ends a line. Raises InputError (naming
    ``source`` and the line) for a quotation mark where RFC 4180 allows none, a quoted field without
    an end, and one that runs over a line with as many fields as the header: two stray marks look
    like that. Raises OSError.
    """
    reader = _Reader(file, source, columns, line_end)
    for block in _blocks(file):
        reader.read(block)
    return reader.finish()


def _blocks(file: Path) -> Iterator[np.ndarray]:
    """The file's bytes in blocks that do not end in a mark, but for the last one: what follows a
    mark says what it means.
    """
    held = b""
    with file.open("rb", buffering=0) as stream:
        if stream.read(3) != _BYTE_ORDER_MARK:
            stream.seek(0)
        while block := stream.read(_BLOCK):
            block = held + block
            held = b'"' if block.endswith(b'"') else b""
            yield np.frombuffer(block, np.uint8, count=len(block) - len(held))
    if held:
        yield np.frombuffer(held, np.uint8)


@dataclass
class _Reader:
    """Where a pass over the file's blocks stands.

    inside: 1 within a quoted field, else 0. offset: bytes of earlier blocks. opened: offset of the
    mark that opened the last quoted field. hidden: (offset, commas so far) of a line that begins
    within a quoted field and has not ended yet.
    """

    file: Path
    source: Path
    columns: int
    line_end: int
    inside: int = 0
    offset: int = 0
    opened: int = 0
    rows: int = 0
    before: int = -1
    hidden: tuple[int, int] | None = None

    def read(self, block: np.ndarray) -> None:
        """The next block."""
        if not len(block):
            return
        marks = np.flatnonzero(block == _MARK)
        ends = np.flatnonzero(block == self.line_end)
        self._check_marks(block, marks)
        if len(marks):
            within = (np.searchsorted(marks, ends) + self.inside) % 2 == 1
        else:
            within = np.full(len(ends), bool(self.inside))
        self.rows += len(ends) - int(np.count_nonzero(within))
        if self.hidden or within.any():
            self._check_hidden(block, marks, ends, within)
        if len(marks) and (opening := marks[self.inside :: 2]).size:
            self.opened = self.offset + int(opening[-1])
        self.inside = (self.inside + len(marks)) % 2
        self.before = int(block[-1])
        self.offset += len(block)

    def _check_marks(self, block: np.ndarray, marks: np.ndarray) -> None:
        """Marks open a field after a comma or a line end, close it before one, or are doubled."""
        if not len(marks):
            return
        opening, closing = marks[self.inside :: 2], marks[1 - self.inside :: 2]
        first = self.line_end if self.before < 0 else self.before
        before = np.where(opening > 0, block[opening - 1], np.uint8(first))
        after = block[np.minimum(closing + 1, len(block) - 1)]
        after = np.where(closing + 1 < len(block), after, np.uint8(self.line_end))
        bad = np.concatenate(
            [
                opening[~np.isin(before, (_COMMA, self.line_end, _MARK))],
                closing[~np.isin(after, (_COMMA, self.line_end, _MARK, _RETURN))],
            ]
        )
        if len(bad):
            line = self._line(self.offset + int(bad.min()))
            raise InputError(self.source, f"line {line}", "a stray quotation mark", _FIX)

    def _check_hidden(
        self, block: np.ndarray, marks: np.ndarray, ends: np.ndarray, within: np.ndarray
    ) -> None:
        """Lines that begin within a quoted field must not look like rows of their own."""
        commas = np.flatnonzero(block == _COMMA)
        begins = ends[within]  # offset of the line end before each such line
        stops = np.append(ends, len(block))
        stop = stops[np.flatnonzero(within) + 1]
        count = np.searchsorted(commas, stop) - np.searchsorted(commas, begins)
        if self.hidden:
            earlier = self.hidden[1] + int(np.searchsorted(commas, stops[0]))
            if len(ends) and earlier == self.columns - 1:
                raise self._hides(self.hidden[0])
            if not len(ends):
                self.hidden = (self.hidden[0], earlier)
                return
        whole = stop < len(block)
        if (bad := np.flatnonzero(whole & (count == self.columns - 1))).size:
            opening = marks[self.inside :: 2]
            opening = opening[opening < begins[bad[0]]]
            if len(opening):
                self.opened = self.offset + int(opening[-1])
            raise self._hides(self.offset + int(begins[bad[0]]) + 1)
        self.hidden = None
        if len(begins) and not whole[-1]:
            self.hidden = (self.offset + int(begins[-1]) + 1, int(count[-1]))

    def _hides(self, offset: int) -> InputError:
        opened, line = self._line(self.opened), self._line(offset)
        problem = f"a quotation mark opens a field that runs over line {line}, a row of its own"
        return InputError(self.source, f"line {opened}", problem, _FIX)

    def finish(self) -> int:
        """The number of rows, after the last block."""
        if self.hidden and self.hidden[1] == self.columns - 1:
            raise self._hides(self.hidden[0])
        if self.inside:
            line = self._line(self.opened)
            problem = "a quotation mark opens a field that never ends"
            raise InputError(self.source, f"line {line}", problem, _FIX)
        lines = self.rows + (self.before not in (-1, self.line_end))
        return max(lines - 1, 0)

    def _line(self, offset: int) -> int:
        """Number of the line that holds the byte at ``offset``, from 1."""
        lines = 1
        with self.file.open("rb", buffering=0) as stream:
            if stream.read(3) != _BYTE_ORDER_MARK:
                stream.seek(0)
            while offset > 0 and (block := stream.read(min(_BLOCK, offset))):
                lines += block.count(bytes([self.line_end]))
                offset -= len(block)
        return lines
