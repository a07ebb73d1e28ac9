"""Contracts of raw and prepared tables, as code, and the readers that hold files to them.

A reader raises InputError, one line that names the file, the column and the fix, before anything is
written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from ospo.errors import InputError

ESCI_EXAMPLES = "shopping_queries_dataset_examples.parquet"
ESCI_PRODUCTS = "shopping_queries_dataset_products.parquet"
HM_ARTICLES = "articles.csv"
HM_TRANSACTIONS = "transactions_train.csv"
HM_CUSTOMERS = "customers.csv"

ESCI_EXAMPLES_SCHEMA = {
    "example_id": pl.Int64,
    "query": pl.String,
    "query_id": pl.Int64,
    "product_id": pl.String,
    "product_locale": pl.String,
    "esci_label": pl.String,
    "small_version": pl.Int64,
    "large_version": pl.Int64,
    "split": pl.String,
}
ESCI_PRODUCTS_SCHEMA = {
    "product_id": pl.String,
    "product_title": pl.String,
    "product_description": pl.String,
    "product_bullet_point": pl.String,
    "product_brand": pl.String,
    "product_color": pl.String,
    "product_locale": pl.String,
}
HM_ARTICLES_COLUMNS = [
    *(
        "article_id",
        "product_code",
        "prod_name",
        "product_type_no",
        "product_type_name",
        "product_group_name",
    ),
    *(
        "graphical_appearance_no",
        "graphical_appearance_name",
        "colour_group_code",
        "colour_group_name",
    ),
    *("perceived_colour_value_id", "perceived_colour_value_name", "perceived_colour_master_id"),
    *(
        "perceived_colour_master_name",
        "department_no",
        "department_name",
        "index_code",
        "index_name",
    ),
    *(
        "index_group_no",
        "index_group_name",
        "section_no",
        "section_name",
        "garment_group_no",
        "garment_group_name",
    ),
    "detail_desc",
]
HM_TRANSACTIONS_COLUMNS = ["t_dat", "customer_id", "article_id", "price", "sales_channel_id"]
HM_CUSTOMERS_COLUMNS = [
    *(
        "customer_id",
        "FN",
        "Active",
        "club_member_status",
        "fashion_news_frequency",
        "age",
        "postal_code",
    ),
]

# Columns that preparation reads; the others may be missing.
ESCI_EXAMPLES_NEEDED = [
    "query",
    "query_id",
    "product_id",
    "product_locale",
    "esci_label",
    "small_version",
]
ESCI_PRODUCTS_NEEDED = list(ESCI_PRODUCTS_SCHEMA)
HM_ARTICLES_NEEDED = [
    *(
        "article_id",
        "prod_name",
        "product_type_name",
        "product_group_name",
        "graphical_appearance_name",
    ),
    *("colour_group_name", "index_group_name", "section_name", "detail_desc"),
]
HM_TRANSACTIONS_NEEDED = ["t_dat", "customer_id", "article_id"]
HM_CUSTOMERS_NEEDED = ["customer_id"]

# A damaged parquet file can make polars' Rust code panic; that is bad input too.
_READ_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)

CATALOGUE_SCHEMA = dict.fromkeys(
    ["item_id", "title", "text", "category", "group", "brand", "colour", "description"], pl.String
)
HISTORY = pl.List(pl.Struct(dict.fromkeys(["item_id", "name", "type", "colour"], pl.String)))
REQUESTS_SCHEMA = {
    "request_id": pl.String,
    "split": pl.String,
    "query": pl.String,
    "customer_id": pl.String,
    "history": HISTORY,
    "target_id": pl.String,
}
QRELS_SCHEMA = {
    "request_id": pl.String,
    "item_id": pl.String,
    "gain": pl.Float32,
    "label": pl.String,
}
POOLS_SCHEMA = {"request_id": pl.String, "item_ids": pl.List(pl.String)}
PREPARED: dict[str, dict[str, Any]] = {
    "catalogue": CATALOGUE_SCHEMA,
    "requests": REQUESTS_SCHEMA,
    "qrels": QRELS_SCHEMA,
    "pools": POOLS_SCHEMA,
}
SPLITS = ("train", "validation", "test")


def raw_folder(folder: str | Path, key: str, files: list[str]) -> Path:
    """The folder of raw files; InputError where it or one of ``files`` is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            folder,
            "",
            "folder not found",
            f"set {key} (or --raw) to the folder of the official files",
        )
    for name in files:
        if not (folder / name).is_file():
            raise InputError(folder / name, "", "file not found", f"put the official {name} there")
    return folder


def _one_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def scan_parquet(
    file: Path, needed: list[str], schema: Mapping[str, type[pl.DataType]]
) -> pl.LazyFrame:
    """Scan a raw parquet file's needed columns, cast to the contract's types.

    Raises InputError for an unreadable file, a missing column or a column of a type that does not
    cast.
    """
    try:
        frame = pl.scan_parquet(file)
        found = frame.collect_schema()
    except _READ_ERRORS as error:
        raise _unreadable(file, "parquet", error) from None
    _check_columns(file, list(found.names()), needed)
    casts = []
    for column in needed:
        kind, wanted = found[column], schema[column]
        if wanted == pl.String and not (kind == pl.String or isinstance(kind, pl.Categorical)):
            raise InputError(
                file, column, f"has type {kind}, expected text", "use the official file"
            )
        if wanted != pl.String and not kind.is_numeric():
            raise InputError(
                file, column, f"has type {kind}, expected numbers", "use the official file"
            )
        number = (
            pl.when(pl.col(column) == pl.col(column).round()).then(column)
            if kind.is_float()
            else pl.col(column)
        )
        casts.append(
            (number if wanted != pl.String else pl.col(column))
            .cast(wanted, strict=False)
            .alias(column)
        )
    return frame.select(casts)


def scan_csv(file: Path, needed: list[str], optional: list[str] | None = None) -> pl.LazyFrame:
    """Scan a raw CSV file's needed columns as text; an optional column that is missing is null.

    Raises InputError for an empty or unreadable file, or a missing column (a wrong delimiter shows
    as one).
    """
    try:
        frame = pl.scan_csv(file, infer_schema=False, encoding="utf8", truncate_ragged_lines=False)
        found = frame.collect_schema().names()
    except _READ_ERRORS as error:
        raise _unreadable(file, "CSV", error) from None
    if len(found) == 1 and any(mark in found[0] for mark in ";\t|"):
        raise InputError(
            file, "", "columns are not separated by commas", "save it with the delimiter ','"
        )
    _check_columns(file, found, needed)
    absent = [
        pl.lit(None, dtype=pl.String).alias(name) for name in optional or [] if name not in found
    ]
    return frame.select(*needed, *(name for name in optional or [] if name in found), *absent)


def _unreadable(file: Path, kind: str, error: BaseException) -> InputError:
    if "utf-8" in str(error).lower() or "utf8" in str(error).lower():
        return InputError(
            file, "", "is not UTF-8 text", "convert it (iconv -f WINDOWS-1252 -t UTF-8)"
        )
    return InputError(
        file,
        "",
        f"is not a readable {kind} file ({_one_line(error)})",
        "repair or download it again",
    )


def _check_columns(file: Path, found: list[str], needed: list[str]) -> None:
    for column in needed:
        if column not in found:
            shown = ", ".join(found[:30])[:300]
            raise InputError(
                file, column, "column is missing", f"use the official file; found: {shown}"
            )


def collect(file: Path, frame: pl.LazyFrame) -> pl.DataFrame:
    """Collect a query over ``file`` with the streaming engine; reading errors become InputError."""
    try:
        return frame.collect(engine="streaming")
    except _READ_ERRORS as error:
        raise _unreadable(file, "CSV" if file.suffix == ".csv" else "parquet", error) from None


def check_prepared(file: Path, frame: pl.DataFrame, table: str) -> None:
    """Hold a prepared table to its contract: columns and types, in order, and no null."""
    wanted = pl.Schema(PREPARED[table])
    for column, kind in wanted.items():
        if column not in frame.columns:
            raise InputError(
                file, column, "column is missing", "prepare the dataset again (ospo prepare)"
            )
        if frame.schema[column] != kind:
            raise InputError(
                file,
                column,
                f"has type {frame.schema[column]}, expected {kind}",
                "prepare the dataset again",
            )
        if frame[column].null_count():
            raise InputError(file, column, "holds null", "prepare the dataset again (ospo prepare)")
