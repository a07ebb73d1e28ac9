"""Contracts of raw and prepared tables, as code. The readers of raw files (``raw_csv``,
``raw_parquet``) hold them to these.
"""

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
