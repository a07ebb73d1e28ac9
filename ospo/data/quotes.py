"""Quotation marks in CSV files: counted without a CSV parser, so that none can hide rows.

RFC 4180: a field that begins with a mark ends with one; marks inside it are doubled; a field that
does not begin with a mark holds none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ospo.data.raw_files import too_many_fields
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


@dataclass(frozen=True)
class _Line:
    """A line that begins within a quoted field: its offset, that of the mark which opened the
    field, the commas that separate fields if it is a row, and whether a mark stands on it.
    """

    offset: int
    opened: int
    commas: int
    marked: bool


@dataclass
class _Reader:
    """Where a pass over the file's blocks stands.

    inside: 1 within a quoted field, else 0. offset: bytes of earlier blocks. opened: offset of the
    mark that opened the last quoted field. hidden: a line that begins within a quoted field and has
    not ended yet. commas, several: of the row that has not ended yet, the commas outside quotes,
    and whether it runs over a line end.
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
    hidden: _Line | None = None
    commas: int = 0
    several: bool = False

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
        if self.rows == 0 and len(ends) and within[0]:
            problem = "a quotation mark opens a column name that runs over the end of the line"
            raise InputError(self.source, "line 1", problem, _FIX)
        self.rows += len(ends) - int(np.count_nonzero(within))
        if self.hidden or within.any():
            self._check_hidden(block, marks, ends, within)
        self._check_records(block, marks, ends, within)
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
        """Lines that begin within a quoted field must not be rows if one mark is taken away: have
        as many commas as the header, those within fields that open later on the line left out.
        """
        commas = np.flatnonzero(block == _COMMA)
        plain = commas[(np.searchsorted(marks, commas) + self.inside) % 2 == 0]
        stops = np.append(ends, len(block))
        begins, stop = ends[within], stops[np.flatnonzero(within) + 1]
        if self.hidden:  # the line that an earlier block began
            begins, stop = np.append(-1, begins), np.append(stops[0], stop)
        mark = np.append(marks, len(block))[np.searchsorted(marks, begins, side="right")]
        if self.hidden and self.hidden.marked:
            mark[0] = -1
        field = np.minimum(mark, stop)
        count = np.searchsorted(commas, field) - np.searchsorted(commas, begins)
        count += np.searchsorted(plain, stop) - np.searchsorted(plain, np.maximum(field, begins))
        if self.hidden:
            count[0] += self.hidden.commas
        opening, marked = marks[self.inside :: 2], mark < len(block)

        def line(row: int) -> _Line:
            offset, begin = self.offset + int(begins[row]) + 1, int(begins[row])
            before = opening[: np.searchsorted(opening, begin)]
            opened = self.offset + int(before[-1]) if len(before) else self.opened
            if begin < 0 and self.hidden:
                offset, opened = self.hidden.offset, self.hidden.opened
            return _Line(offset, opened, int(count[row]), bool(marked[row]))

        whole = stop < len(block)
        if (bad := np.flatnonzero(whole & (count == self.columns - 1))).size:
            raise self._hides(line(int(bad[0])))
        self.hidden = None if whole[-1] else line(len(begins) - 1)

    def _check_records(
        self, block: np.ndarray, marks: np.ndarray, ends: np.ndarray, within: np.ndarray
    ) -> None:
        """A row that runs over several lines must have exactly as many fields as the header, any
        other at most as many.
        """
        inner, outer = ends[within], ends[~within]
        commas = np.flatnonzero(block == _COMMA)
        plain = commas[(np.searchsorted(marks, commas) + self.inside) % 2 == 0]
        if self.several or len(inner):
            rows = np.searchsorted(outer, inner)
            rows = np.unique(np.append(0, rows) if self.several else rows)
            rows = rows[rows < len(outer)]  # the last row may go on in the next block
            count = np.searchsorted(plain, outer[rows])
            count -= np.searchsorted(plain, np.append(-1, outer)[rows])
            count[rows == 0] += self.commas
            if (bad := np.flatnonzero(count != self.columns - 1)).size:
                raise self._ragged(self.offset + int(outer[rows[bad[0]]]), int(count[bad[0]]))
        count = np.diff(np.searchsorted(plain, outer), prepend=0)
        count[:1] += self.commas
        if (bad := np.flatnonzero(count >= self.columns)).size:
            raise self._too_long(self.offset + int(outer[bad[0]]), int(count[bad[0]]))
        start = int(outer[-1]) + 1 if len(outer) else 0
        plain_rest = len(plain) - int(np.searchsorted(plain, start))
        going_on = not len(outer)
        self.commas = plain_rest + (self.commas if going_on else 0)
        self.several = bool((inner >= start).any()) or (going_on and self.several)

    def _too_long(self, offset: int, commas: int) -> InputError:
        return too_many_fields(self.source, self._line(offset), commas + 1, self.columns)

    def _ragged(self, offset: int, commas: int) -> InputError:
        problem = (
            f"a row that runs over several lines ends here with {commas + 1} fields, where the "
            f"header has {self.columns}: a stray quotation mark joins rows"
        )
        return InputError(self.source, f"line {self._line(offset)}", problem, _FIX)

    def _hides(self, line: _Line) -> InputError:
        opened, hidden = self._line(line.opened), self._line(line.offset)
        problem = f"a quotation mark opens a field that runs over line {hidden}, a row of its own"
        fix = "remove the mark, or write the field's text on one line"
        return InputError(self.source, f"line {opened}", problem, fix)

    def finish(self) -> int:
        """The number of rows, after the last block."""
        if self.hidden and self.hidden.commas == self.columns - 1:
            raise self._hides(self.hidden)
        if self.several and not self.inside and self.commas != self.columns - 1:
            raise self._ragged(self.offset, self.commas)
        if self.inside:
            line = self._line(self.opened)
            problem = "a quotation mark opens a field that never ends"
            raise InputError(self.source, f"line {line}", problem, _FIX)
        if self.commas >= self.columns:
            raise self._too_long(self.offset, self.commas)
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
