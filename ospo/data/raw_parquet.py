"""Raw parquet files → the columns and types of the contract, read as far as they are unambiguous.

Exports change types on the way: ids become numbers or numbers text, a column without values loses
its type. What has one meaning is read and counted; the rest is one line with an example.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from ospo.data.raw_files import READ_ERRORS, check_columns, collect, unreadable
from ospo.data.stats import Stats
from ospo.errors import InputError

IDENTIFIERS = ("query_id", "product_id")
"""Columns whose values name something: a number or a text."""
_MAY_BE_EMPTY = (
    "product_title",
    "product_description",
    "product_bullet_point",
    "product_brand",
    "product_color",
    "small_version",
)
_WHOLE = r"^(?:0|[1-9]\d{0,17})$"
_WHOLE_DECIMAL = r"^(?:0|[1-9]\d{0,17})\.0$"
_FIT = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
"""Types whose every value is a whole number of 64 bits."""


def scan_parquet(
    file: Path, needed: Sequence[str], schema: Mapping[str, type[pl.DataType]], stats: Stats
) -> pl.LazyFrame:
    """Scan a raw parquet file's needed columns, cast to the contract's types.

    A query_id that is text stays text where not every value is a whole number. Raises InputError
    for an unreadable file, a missing column, one without values, or one of another type.
    """
    try:
        frame = pl.scan_parquet(file, glob=False)
        found = frame.collect_schema()
    except READ_ERRORS as error:
        raise unreadable(file, "parquet", error) from None
    check_columns(file, list(found.names()), needed)
    casts = []
    for column in needed:
        kind, wanted = found[column], schema[column]
        if kind == pl.Null:
            if column not in _MAY_BE_EMPTY:
                fix = "export the file again, with this column's values"
                raise InputError(file, column, "holds no value", fix)
            stats.read_in_form("column_without_values", 1)
            casts.append(pl.col(column).cast(wanted))
        elif column in IDENTIFIERS:
            casts.append(_identifier(file, frame, column, kind, wanted, stats))
        else:
            casts.append(_value(file, frame, column, kind, wanted))
    return frame.select(casts)


def parquet_columns(file: Path) -> list[str]:
    """The columns of a raw parquet file. Raises InputError for an unreadable file."""
    try:
        return pl.scan_parquet(file, glob=False).collect_schema().names()
    except READ_ERRORS as error:
        raise unreadable(file, "parquet", error) from None


def _is_text(kind: pl.DataType) -> bool:
    return kind == pl.String or isinstance(kind, pl.Categorical | pl.Enum)


def _value(
    file: Path, frame: pl.LazyFrame, column: str, kind: pl.DataType, wanted: type[pl.DataType]
) -> pl.Expr:
    """A column of texts or whole numbers."""
    if wanted == pl.String and not _is_text(kind):
        raise _wrong_type(file, frame, column, kind, "text")
    if wanted != pl.String and not (kind.is_numeric() or kind == pl.Boolean):
        raise _wrong_type(file, frame, column, kind, "numbers")
    whole = _whole(column) if kind.is_float() else pl.col(column)
    return whole.cast(wanted, strict=False).alias(column)


def _whole(column: str) -> pl.Expr:
    """A float column with null in place of what is no whole number."""
    return pl.when(pl.col(column) == pl.col(column).round()).then(column)


def _identifier(
    file: Path,
    frame: pl.LazyFrame,
    column: str,
    kind: pl.DataType,
    wanted: type[pl.DataType],
    stats: Stats,
) -> pl.Expr:
    """A column of ids: numbers where the contract has numbers or text, text where it has text, and
    text as numbers where every value is one.
    """
    if kind.is_numeric():
        number = _whole(column) if kind.is_float() else pl.col(column)
        if kind not in _FIT:
            _check_whole(file, frame, column, number)
        if wanted == pl.String:
            stats.read_in_form(f"{column}_as_number", 1)
        return number.cast(pl.Int64, strict=False).cast(wanted).alias(column)
    if not _is_text(kind):
        raise _wrong_type(file, frame, column, kind, "text or whole numbers")
    text = pl.col(column).cast(pl.String).str.strip_chars()
    whole, decimal = (
        bool(collect(file, "parquet", frame.select(text.str.contains(form).all())).item())
        for form in (_WHOLE, _WHOLE_DECIMAL)
    )
    if decimal:
        stats.read_in_form(f"{column}_as_decimal", 1)
        text = text.str.strip_suffix(".0")
    if wanted == pl.String:
        return (text if decimal else pl.col(column).cast(pl.String)).alias(column)
    stats.read_in_form(f"{column}_as_text", 1)
    return (text.cast(wanted) if whole or decimal else text).alias(column)


def _check_whole(file: Path, frame: pl.LazyFrame, column: str, number: pl.Expr) -> None:
    """Raise InputError where no value of a column of ids is a whole number of 64 bits."""
    read = number.cast(pl.Int64, strict=False).is_not_null().any()
    first = pl.col(column).drop_nulls().first()
    found = collect(file, "parquet", frame.select(read=read, first=first)).row(0)
    if found[1] is not None and not found[0]:
        problem = f"holds no whole number of 64 bits, for example {found[1]!r:.60}"
        raise InputError(file, column, problem, "write ids as text or as whole numbers")


def _wrong_type(
    file: Path, frame: pl.LazyFrame, column: str, kind: pl.DataType, wanted: str
) -> InputError:
    first = collect(file, "parquet", frame.select(pl.col(column).drop_nulls().first()))
    example = f", for example {first.item()!r:.60}" if first.height else ""
    return InputError(
        file, column, f"has type {kind}, expected {wanted}{example}", f"store it as {wanted}"
    )
