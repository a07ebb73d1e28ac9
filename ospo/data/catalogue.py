"""The built-in sample shops, written in the official raw formats so that they take the same path as
the real files.
"""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from ospo.config import EsciData, HmData, Sample
from ospo.data.schemas import (
    ESCI_EXAMPLES,
    ESCI_EXAMPLES_SCHEMA,
    ESCI_PRODUCTS,
    ESCI_PRODUCTS_SCHEMA,
    HM_ARTICLES,
    HM_ARTICLES_COLUMNS,
    HM_CUSTOMERS,
    HM_CUSTOMERS_COLUMNS,
    HM_TRANSACTIONS,
    HM_TRANSACTIONS_COLUMNS,
)
from ospo.data.shop_esci import generate_esci_shop
from ospo.data.shop_hm import generate_hm_shop
from ospo.errors import InputError
from ospo.files import atomic_directory


def generate_sample(kind: str, out_dir: str | Path, sample_config: Sample, seed: int) -> None:
    """Write the sample shop of the format ``kind`` into ``out_dir``, which appears (or is replaced)
    as a whole.

    The same configuration and seed give the same bytes. Raises InputError for a format that has no
    sample shop.
    """
    if kind not in SHOPS:
        fix = f"choose one of {', '.join(SHOPS)}"
        raise InputError(str(kind), "", "no sample shop is written in this format", fix)
    with atomic_directory(out_dir) as temporary:
        SHOPS[kind](temporary, sample_config, seed)


def _write_esci(folder: Path, sample_config: Sample, seed: int) -> None:
    size = sample_config.esci
    examples, products = generate_esci_shop(size.queries, size.products, seed)
    _write_parquet(examples, list(ESCI_EXAMPLES_SCHEMA), folder / ESCI_EXAMPLES)
    _write_parquet(products, list(ESCI_PRODUCTS_SCHEMA), folder / ESCI_PRODUCTS)


def _write_hm(folder: Path, sample_config: Sample, seed: int) -> None:
    shop = sample_config.hm
    articles, transactions, customers = generate_hm_shop(
        shop.customers, shop.articles, shop.days, seed
    )
    articles.select(HM_ARTICLES_COLUMNS).write_csv(folder / HM_ARTICLES)
    transactions.select(HM_TRANSACTIONS_COLUMNS).write_csv(folder / HM_TRANSACTIONS)
    customers.select(HM_CUSTOMERS_COLUMNS).write_csv(folder / HM_CUSTOMERS)


def _write_parquet(frame: pl.DataFrame, columns: list[str], file: Path) -> None:
    frame.select(columns).write_parquet(file, compression="zstd", compression_level=3)


SHOPS: dict[str, Callable[[Path, Sample, int], None]] = {
    EsciData.tag(): _write_esci,
    HmData.tag(): _write_hm,
}
"""Format → what writes its sample shop: (folder, sizes, seed)."""
