"""Raw files of the official schemas and sizes (ESCI, H&M), random but with realistic skew, for
benchmarks only.

At scale 1.0: ESCI 2.62 M judgements, 130,652 queries, 1.81 M products in three locales; H&M 31.8 M
transactions, 105,542 articles, 1.37 M customers.
"""

from pathlib import Path

import numpy as np
import polars as pl

from ospo.data.schemas import (
    ESCI_EXAMPLES,
    ESCI_PRODUCTS,
    HM_ARTICLES,
    HM_ARTICLES_COLUMNS,
    HM_CUSTOMERS,
    HM_TRANSACTIONS,
)
from ospo.files import atomic_directory

# Locale: products, queries, judgements of the official files.
ESCI_SIZES = {
    "us": (1_215_854, 97_345, 1_818_825),
    "es": (259_973, 15_180, 356_410),
    "jp": (339_059, 18_127, 446_053),
}
HM_TRANSACTION_COUNT, HM_CUSTOMER_COUNT, HM_ARTICLE_COUNT, HM_DAYS = (
    31_788_324,
    1_371_980,
    105_542,
    734,
)
_SYLLABLES = [
    a + b
    for a in "bcdfgklmnprstvz"
    for b in ("a", "e", "i", "o", "u", "al", "er", "in", "on", "us")
]
_CHUNK = 2_000_000


def _skewed(random: np.random.Generator, choices: int, size: int, power: float = 2.5) -> np.ndarray:
    """Indices below ``choices``, low ones much more often (about Zipf's law)."""
    return (choices * random.random(size) ** power).astype(np.int64)


def _words(random: np.random.Generator, count: int) -> np.ndarray:
    parts = np.array(_SYLLABLES)[random.integers(len(_SYLLABLES), size=(3, count))]
    long = random.random(count) < 0.5
    return np.char.add(np.char.add(parts[0], parts[1]), np.where(long, parts[2], ""))


def _sentences(
    random: np.random.Generator, words: np.ndarray, count: int, length: int, html: bool
) -> pl.Series:
    picks = words[_skewed(random, len(words), count * length)].reshape(count, length)
    lines = [" ".join(row) for row in picks]
    if html:
        marks = ("{}.", "{}.", "{}.", "<p>{}</p>", "<b>{}</b> &amp; more.", "{}<br>")
        lines = [marks[n % len(marks)].format(line) for n, line in enumerate(lines)]
    return pl.Series(lines)


def _joined(
    random: np.random.Generator, pool: pl.Series, size: int, count: int, separator: str
) -> pl.Series:
    columns = [pool[random.integers(len(pool), size=size)].alias(str(n)) for n in range(count)]
    return (
        pl.DataFrame(columns)
        .select(pl.concat_str(pl.all(), separator=separator).alias("t"))
        .to_series()
    )


def _with_none(random: np.random.Generator, values: pl.Series, share: float) -> pl.Series:
    return pl.select(
        pl.when(pl.lit(pl.Series(random.random(len(values)) >= share))).then(values)
    ).to_series()


def _esci_products(
    random: np.random.Generator,
    words: np.ndarray,
    sentences: pl.Series,
    titles: pl.Series,
    ids: pl.Series,
    locale: str,
) -> pl.DataFrame:
    """The products of one locale."""
    items, heads = len(ids), words[:3000]
    head = pl.Series(heads[_skewed(random, len(heads), items)])
    title = pl.DataFrame({"a": _joined(random, titles, items, 2, " "), "b": head})
    return pl.DataFrame(
        {
            "product_id": ids,
            "product_title": title.select(pl.concat_str("a", "b", separator=" ")).to_series(),
            "product_description": _with_none(
                random, _joined(random, sentences, items, 8, " "), 0.5
            ),
            "product_bullet_point": _with_none(
                random, _joined(random, sentences, items, 7, "\n"), 0.17
            ),
            "product_brand": _with_none(
                random, pl.Series(words[_skewed(random, 20_000, items)]), 0.07
            ),
            "product_color": _with_none(
                random, pl.Series(words[_skewed(random, 500, items)]), 0.35
            ),
            "product_locale": pl.repeat(locale, items, eager=True),
        }
    )


def write_esci(folder: Path, scale: float, seed: int = 0) -> None:
    """Write both ESCI files at ``scale``; a folder that exists is left as it is."""
    if folder.is_dir():
        return
    random = np.random.default_rng(seed)
    words = _words(random, 30_000)
    sentences = _sentences(random, words, 40_000, 16, html=True)
    titles = _sentences(random, words, 200_000, 6, html=False)
    products, examples = [], []
    first_query = 0
    for locale, sizes in ESCI_SIZES.items():
        items, queries, judgements = (max(20, round(size * scale)) for size in sizes)
        numbers = pl.Series("n", random.choice(36**6, items, replace=False))
        ids = (
            pl.DataFrame(numbers)
            .select(pl.format("B0{}", pl.col("n").cast(pl.String).str.zfill(10)))
            .to_series()
        )
        products.append(_esci_products(random, words, sentences, titles, ids, locale))
        query = first_query + np.concatenate(
            [np.arange(queries), _skewed(random, queries, judgements - queries, 1.3)]
        )
        text = _joined(random, pl.Series(words), queries, 3, " ")
        examples.append(
            pl.DataFrame(
                {"query_id": query, "product_id": ids[random.integers(items, size=judgements)]}
            )
            .unique(maintain_order=True)
            .join(
                pl.DataFrame({"query_id": first_query + np.arange(queries), "query": text}),
                on="query_id",
            )
            .with_columns(product_locale=pl.lit(locale))
        )
        first_query += queries
    frame = pl.concat(examples)
    labels = np.array(list("ESCI"))[np.searchsorted([0.65, 0.87, 0.90], random.random(len(frame)))]
    frame = frame.select(
        example_id=pl.int_range(pl.len(), dtype=pl.Int64),
        query="query",
        query_id="query_id",
        product_id="product_id",
        product_locale="product_locale",
        esci_label=pl.Series(labels),
        small_version=pl.Series((random.random(len(frame)) < 0.43).astype(np.int64)),
        large_version=pl.lit(1, dtype=pl.Int64),
        split=pl.lit("train"),
    )
    with atomic_directory(folder) as temporary:
        frame.write_parquet(temporary / ESCI_EXAMPLES)
        pl.concat(products).write_parquet(temporary / ESCI_PRODUCTS)


def write_hm(folder: Path, scale: float, seed: int = 0) -> None:
    """Write the three H&M files at ``scale``; a folder that exists is left as it is."""
    if folder.is_dir():
        return
    random = np.random.default_rng(seed)
    words = _words(random, 30_000)
    articles, people, count = (
        max(50, round(size * scale))
        for size in (HM_ARTICLE_COUNT, HM_CUSTOMER_COUNT, HM_TRANSACTION_COUNT)
    )
    numbers = pl.Series(
        "article_id", np.sort(random.choice(900_000_000, articles, replace=False)) + 100_000_000
    )
    ids = numbers.cast(pl.String).str.zfill(10)
    digits = random.bytes(32 * people).hex()
    customers = pl.Series(
        "customer_id", [digits[64 * n : 64 * n + 64] for n in range(people)]
    ).sort()
    with atomic_directory(folder) as temporary:
        _articles(random, words, ids).write_csv(temporary / HM_ARTICLES)
        table = pl.DataFrame({"customer_id": customers}).with_columns(
            FN=pl.lit(""),
            Active=pl.lit(""),
            club_member_status=pl.lit("ACTIVE"),
            fashion_news_frequency=pl.lit("NONE"),
            age=pl.Series(random.integers(16, 90, size=people)),
            postal_code=customers.reverse(),
        )
        table.write_csv(temporary / HM_CUSTOMERS)
        day = np.sort(random.integers(HM_DAYS, size=count))
        order = random.permutation(people), random.permutation(articles)
        with (temporary / HM_TRANSACTIONS).open("wb") as stream:
            for begin in range(0, count, _CHUNK):
                days = day[begin : begin + _CHUNK]
                size = len(days)
                # A customer's purchases of a day come together: visits of about three articles.
                visits = order[0][_skewed(random, people, size // 3 + 1)]
                chunk = pl.DataFrame(
                    {
                        "t_dat": pl.Series(days).cast(pl.Int32),
                        "customer_id": customers[np.repeat(visits, 3)[:size]],
                        "article_id": ids[order[1][_skewed(random, articles, size)]],
                        "price": np.round(np.exp(random.normal(-3.6, 0.6, size=size)), 16),
                        "sales_channel_id": random.integers(1, 3, size=size),
                    }
                ).with_columns(
                    t_dat=pl.lit("2018-09-20").str.to_date() + pl.duration(days=pl.col("t_dat"))
                )
                chunk.write_csv(stream, include_header=begin == 0)


def _articles(random: np.random.Generator, words: np.ndarray, ids: pl.Series) -> pl.DataFrame:
    size = len(ids)
    sentences = _sentences(random, words, 20_000, 12, html=False)
    kind = _skewed(random, 131, size)
    columns = {name: pl.repeat("1", size, eager=True) for name in HM_ARTICLES_COLUMNS}
    columns |= {
        "article_id": ids,
        "prod_name": pl.Series(words[_skewed(random, 20_000, size)]),
        "product_type_name": pl.Series(np.char.capitalize(words[kind])),
        "product_group_name": pl.Series(np.char.capitalize(words[1000 + kind % 19])),
        "graphical_appearance_name": pl.Series(words[2000 + _skewed(random, 30, size)]),
        "colour_group_name": pl.Series(words[3000 + _skewed(random, 50, size)]),
        "index_group_name": pl.Series(words[4000 + _skewed(random, 5, size)]),
        "section_name": pl.Series(words[5000 + _skewed(random, 56, size)]),
        "detail_desc": _joined(random, sentences, size, 2, ", "),
    }
    return pl.DataFrame(columns)
