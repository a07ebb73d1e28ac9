"""What reading raw CSV and parquet files has in common: folders, columns, errors.

A reader raises InputError, one line that names the file, the column and the fix, before anything is
written.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ospo.errors import InputError

# A damaged parquet file can make polars' Rust code panic; that is bad input too.
READ_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


def raw_folder(folder: str | Path, key: str, files: Sequence[str]) -> Path:
    """The folder of raw files; InputError where it or one of ``files`` is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            folder,
            "",
            "folder not found",
            f"set {key} (or --raw) to the folder of the raw files",
        )
    for name in files:
        if not (folder / name).is_file():
            raise InputError(folder / name, "", "file not found", f"put {name} there")
    return folder


def unreadable(file: Path, kind: str, error: BaseException) -> InputError:
    """The InputError of a file that its reader (``kind``: CSV or parquet) could not read."""
    text = str(error).strip()
    if "utf-8" in text.lower() or "utf8" in text.lower():
        return InputError(
            file, "", "is not UTF-8 text", "convert it (iconv -f WINDOWS-1252 -t UTF-8)"
        )
    problem = text.splitlines()[0][:200] if text else type(error).__name__
    return InputError(
        file, "", f"is not a readable {kind} file ({problem})", "repair or download it again"
    )


def too_many_fields(file: Path, line: int, fields: int, columns: int) -> InputError:
    """The InputError of a CSV row that is longer than the header: what stands in which column is
    not known.
    """
    problem = f"has {fields} fields, where the header has {columns}"
    fix = "put quotation marks around a field that holds a comma"
    return InputError(file, f"line {line}", problem, fix)


def check_columns(file: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    """Raise InputError for the first needed column that was not found."""
    for column in needed:
        if column not in found:
            shown = ", ".join(found[:30])[:300]
            raise InputError(
                file, column, "column is missing", f"use the official file; found: {shown}"
            )


def collect(file: Path, kind: str, frame: pl.LazyFrame) -> pl.DataFrame:
    """Collect a query over ``file`` with the streaming engine; reading errors become InputError."""
    try:
        return frame.collect(engine="streaming")
    except READ_ERRORS as error:
        raise unreadable(file, kind, error) from None
