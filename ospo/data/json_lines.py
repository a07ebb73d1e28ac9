"""JSON lines and tab-separated lines → values, each with its line number; bad ones are one line.

Read line by line: a user's path never becomes a pattern, and the line that is wrong has a number.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ospo.errors import InputError

_LINE_LIMIT = 1 << 24
"""Longest line, in bytes; an item's text is cut at 4,000 characters anyway."""
_WHOLE = re.compile(r"[+-]?\d{1,9}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_lines(file: Path, fix: str) -> Iterator[tuple[int, str]]:
    """(number, text) of every line that is not blank, without its line end. Raises InputError."""
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(_LINE_LIMIT + 1):
                number += 1
                if len(line) > _LINE_LIMIT:
                    raise InputError(
                        file, f"line {number}", f"is longer than {_LINE_LIMIT:,} bytes", fix
                    )
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield number, text
    except FileNotFoundError:
        raise InputError(file, "", "file not found", fix) from None
    except UnicodeDecodeError:
        fix = "convert it (iconv -f WINDOWS-1252 -t UTF-8)"
        raise InputError(file, f"line {number}", "is not UTF-8 text", fix) from None
    except OSError as error:
        raise InputError(file, "", f"cannot be read ({error.strerror})", fix) from None


def read_objects(file: Path, fix: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a file of JSON lines. Raises InputError; ``fix``: what the file
    should be.
    """
    for number, text in read_lines(file, fix):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(file, f"line {number}", "is not JSON", fix) from None
        if not isinstance(value, dict):
            raise InputError(file, f"line {number}", "is not a JSON object", fix)
        if "\\ud" in text.lower() and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
            problem = "holds half of a surrogate pair"
            raise InputError(file, f"line {number}", problem, "write the character itself")
        yield number, value


def identifier(value: object) -> str | None:
    """An id as text, as it was written; a whole number as its digits; None where it is neither or
    empty.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def whole_number(file: Path, number: int, column: str, text: str) -> int:
    """A grade. Raises InputError with the line where it is no whole number."""
    if not _WHOLE.fullmatch(text.strip()):
        where = f"line {number}, {column}"
        raise InputError(
            file, where, f"is no whole number: {text[:40]!r}", "write grades as 0, 1 …"
        )
    return int(text)
