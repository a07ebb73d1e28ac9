"""ESCI (Amazon's Shopping Queries Dataset, Reddy et al., arXiv 2206.06588): raw parquet files →
prepared tables.
"""

from pathlib import Path

import polars as pl

from ospo.config import EsciData
from ospo.data.head_noun import head_noun, one_form
from ospo.data.judged import assemble, at_most, best_first, groups_of, keep_queries, requests_of
from ospo.data.raw_files import collect, raw_folder
from ospo.data.raw_parquet import scan_parquet
from ospo.data.schemas import (
    ESCI_EXAMPLES,
    ESCI_EXAMPLES_NEEDED,
    ESCI_EXAMPLES_SCHEMA,
    ESCI_PRODUCTS,
    ESCI_PRODUCTS_NEEDED,
    ESCI_PRODUCTS_SCHEMA,
)
from ospo.data.source import Source
from ospo.data.split import require_splits
from ospo.data.stats import Stats
from ospo.data.text import clean_space, join_parts, known, strip_html
from ospo.data.writer import Prepared
from ospo.errors import InputError

LABELS = ("E", "S", "C", "I")
_WORDS = ("exact", "substitute", "complement", "irrelevant")
"""The labels in words, as the paper writes them."""
_HAS_ID = pl.col("product_id").fill_null("").str.strip_chars() != ""


def prepare_esci(source: Source[EsciData], stats: Stats) -> Prepared:
    """Read the raw files and build the prepared tables. Raises InputError."""
    raw = raw_folder(source.raw, source.key("raw"), [ESCI_EXAMPLES, ESCI_PRODUCTS])
    options, config = source.options, source.config
    judgements, others = _read_judgements(raw / ESCI_EXAMPLES, options, stats)
    catalogue = _read_catalogue(raw / ESCI_PRODUCTS, source, stats)
    judged = _known_products(raw, judgements, catalogue, stats)
    judged = _filter_queries(judged, catalogue, options, config.seed, stats)
    if judged.is_empty():
        fix = f"loosen data.{source.name} (labels, min_exact, max_exact, title_overlap, locale)"
        raise InputError(
            raw / ESCI_EXAMPLES, "query", "no query with relevant products is left", fix
        )
    catalogue = catalogue.with_columns(group=groups_of(catalogue, judged))
    judged = best_first(judged, config.data.pool.size, stats)
    requests = requests_of(judged, config, stats, options.spoken)
    fix = "supply more different queries, or change data.split or seed"
    require_splits(raw / ESCI_EXAMPLES, "query", requests["split"], fix, source.evaluation_only)
    return assemble(judged, others, catalogue, requests, LABELS, config)


def _read_judgements(
    file: Path, options: EsciData, stats: Stats
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Judgements of the chosen locale: query_id, query, item_id, label, gain; one row per (query,
    product).

    Second, query_id, item_id and label of the judgements whose label was not chosen: hard
    negatives, no more.
    """
    scan = scan_parquet(file, ESCI_EXAMPLES_NEEDED, ESCI_EXAMPLES_SCHEMA, stats)
    frame = collect(file, "parquet", scan)
    stats.read["judgements"] = len(frame)
    frame = _read_labels(file, frame, stats)
    frame = _read_locale(frame, "judgement", stats)
    frame = stats.keep(frame, "judgement_other_locale", pl.col("product_locale") == options.locale)
    if options.small_version:
        frame = stats.keep(frame, "judgement_not_in_small_version", pl.col("small_version") == 1)
    others = frame.filter(~pl.col("esci_label").is_in(options.labels))
    others = others.select(
        "query_id", item_id=pl.col("product_id").fill_null(""), label="esci_label"
    ).unique()
    frame = stats.keep(
        frame, "judgement_label_not_chosen", pl.col("esci_label").is_in(options.labels)
    )
    frame = frame.select(
        query_id="query_id",
        query=clean_space(pl.col("query").fill_null("")),
        item_id=pl.col("product_id").fill_null(""),
        label="esci_label",
    )
    has_id = pl.col("query_id").cast(pl.String).fill_null("") != ""
    frame = stats.keep(frame, "judgement_empty_query", (pl.col("query") != "") & has_id)
    _check_queries(file, frame)
    gains = pl.col("label").replace_strict(options.gains, return_dtype=pl.Float32)
    # A pair judged twice keeps its better label.
    frame = frame.with_columns(gain=gains).sort(
        ["query_id", "item_id", "gain"], descending=[False, False, True]
    )
    unique = frame.unique(["query_id", "item_id"], keep="first", maintain_order=True)
    stats.drop("judgement_duplicate", len(frame) - len(unique))
    return unique, others


def _check_queries(file: Path, judgements: pl.DataFrame) -> None:
    """Raise InputError where judgements of one query_id have different queries."""
    queries = judgements.group_by("query_id").agg(pl.col("query").unique().sort())
    several = queries.filter(pl.col("query").list.len() > 1).sort("query_id")
    if len(several):
        one, other = several["query"][0][:2]
        problem = f"{several['query_id'][0]!r} has several queries, {one!r:.60} and {other!r:.60}"
        raise InputError(file, "query_id", problem, "give each query an id of its own")


def _read_labels(file: Path, frame: pl.DataFrame, stats: Stats) -> pl.DataFrame:
    """Judgements with E, S, C or I as label, also where the file has them in lower case or as
    words.
    """
    names = {name.lower(): name for name in LABELS} | dict(zip(_WORDS, LABELS, strict=True))
    written = pl.col("esci_label")
    frame = frame.with_columns(
        written=written,
        esci_label=written.str.strip_chars()
        .str.to_lowercase()
        .replace_strict(names, default=None, return_dtype=pl.String),
    )
    unknown = frame.filter(written.is_null())
    if len(unknown):
        problem = f"unknown label {unknown['written'][0]!r} ({len(unknown)} rows)"
        fix = "labels are E, S, C and I, as in the official file, or the words they stand for"
        raise InputError(file, "esci_label", problem, fix)
    stats.read_in_form("label_as_word", int((frame["written"] != frame["esci_label"]).sum()))
    return frame.drop("written")


def _read_locale(frame: pl.DataFrame, rows: str, stats: Stats) -> pl.DataFrame:
    """``frame`` with its locales in lower case; ``rows``: what a row is, judgement or product."""
    locale = frame["product_locale"].str.strip_chars().str.to_lowercase()
    stats.read_in_form(f"{rows}_locale_in_capitals", int((locale != frame["product_locale"]).sum()))
    return frame.with_columns(locale)


def _read_catalogue(file: Path, source: Source[EsciData], stats: Stats) -> pl.DataFrame:
    """Products of the chosen locale as catalogue rows, sorted by item_id; group is filled
    in later.
    """
    products = scan_parquet(file, ESCI_PRODUCTS_NEEDED, ESCI_PRODUCTS_SCHEMA, stats)
    locale, language = source.options.locale, source.options.spoken
    _check_products(file, products, locale, source.key("locale"), stats)

    def part(column: str) -> pl.Expr:
        return strip_html(known(pl.col(column)))

    texts = [pl.col(name) for name in ("title", "brand", "colour", "bullets", "description")]
    # One streaming pass: the raw texts never stand in memory as a whole.
    catalogue = (
        products.filter(_locale_is(locale) & _HAS_ID)
        .select(
            item_id="product_id",
            title=part("product_title"),
            brand=part("product_brand"),
            colour=part("product_color"),
            bullets=part("product_bullet_point"),
            description=part("product_description"),
        )
        .select(
            "item_id",
            "title",
            text=join_parts(texts),
            category=head_noun(pl.col("title"), language, pl.col("brand")),
            brand="brand",
            colour="colour",
            description="description",
        )
    )
    frame = collect(file, "parquet", catalogue).sort("item_id")
    frame = frame.with_columns(one_form(frame["category"], language))
    frame = stats.keep(frame, "product_without_text", pl.col("text") != "")
    if frame.is_empty():
        raise InputError(file, "product_title", "no product has any text", "use the official file")
    return frame


def _locale_is(locale: str) -> pl.Expr:
    return pl.col("product_locale").str.strip_chars().str.to_lowercase() == locale


def _check_products(
    file: Path, products: pl.LazyFrame, locale: str, key: str, stats: Stats
) -> None:
    """Count products; refuse a file without products of the locale, and a product that appears
    twice.
    """
    frame = collect(file, "parquet", products.select("product_id", "product_locale"))
    stats.read["products"] = len(frame)
    frame = _read_locale(frame, "product", stats)
    found = frame["product_locale"].unique().drop_nulls().sort()
    frame = stats.keep(frame, "product_other_locale", pl.col("product_locale") == locale)
    if frame.is_empty():
        held = ", ".join(found[:10]) or "it is empty"
        fix = f"set {key} to one that the file holds ({held})"
        raise InputError(file, "product_locale", f"no product of locale {locale!r}", fix)
    frame = stats.keep(frame, "product_without_id", _HAS_ID)
    if frame["product_id"].n_unique() < len(frame):
        twice = frame.filter(pl.col("product_id").is_duplicated())["product_id"].sort()[0]
        problem = f"product {twice!r} appears twice in locale {locale!r}"
        raise InputError(file, "product_id", problem, "keep one row for each product and locale")


def _known_products(
    raw: Path, judgements: pl.DataFrame, catalogue: pl.DataFrame, stats: Stats
) -> pl.DataFrame:
    """Judgements whose product is in the catalogue, with its row as ``item``."""
    items = catalogue.select("item_id", item=pl.int_range(pl.len(), dtype=pl.Int32))
    judged = judgements.join(items, on="item_id", how="left", maintain_order="left")
    known = stats.keep(judged, "judgement_unknown_product", pl.col("item").is_not_null())
    if len(judged) and known.is_empty():
        asked, held = judged["item_id"][0], catalogue["item_id"][0]
        problem = f"no judged product is in {ESCI_PRODUCTS} ({asked!r} here, {held!r} there)"
        fix = "use both files of the same export, with ids written alike"
        raise InputError(raw / ESCI_EXAMPLES, "product_id", problem, fix)
    return known


def _filter_queries(
    judged: pl.DataFrame, catalogue: pl.DataFrame, options: EsciData, seed: int, stats: Stats
) -> pl.DataFrame:
    """Apply the query filters, counting queries dropped by each."""
    exact = pl.col("label") == "E"
    judged = judged.with_columns(
        exact=exact.sum().over("query_id"), best=pl.col("gain").max().over("query_id")
    )
    judged = keep_queries(
        judged, stats, "query_too_few_exact", pl.col("exact") >= options.min_exact
    )
    judged = keep_queries(
        judged, stats, "query_too_many_exact", pl.col("exact") <= options.max_exact
    )
    judged = keep_queries(judged, stats, "query_without_relevant", pl.col("best") > 0)
    if options.title_overlap > 0:
        judged = judged.with_columns(
            overlap=_enough_overlap(judged, catalogue, options.title_overlap)
        )
        judged = keep_queries(judged, stats, "query_little_title_overlap", pl.col("overlap"))
    judged = at_most(judged, options.max_requests, seed, stats)
    return judged.select("query_id", "query", "item_id", "item", "label", "gain")


def _enough_overlap(judged: pl.DataFrame, catalogue: pl.DataFrame, share: float) -> pl.Series:
    """Whether one of the query's Exact titles holds at least max(2, share) of the query's tokens
    (the paper).
    """

    def tokens(text: pl.Expr) -> pl.Expr:
        return text.str.to_lowercase().str.extract_all(r"[\p{L}\p{N}]+").list.unique()

    frame = judged.select(
        "query_id",
        "label",
        query=tokens(pl.col("query")),
        title=tokens(pl.lit(catalogue["title"].gather(judged["item"]))),
    )
    common = pl.col("query").list.set_intersection("title").list.len()
    needed = pl.max_horizontal(2, (pl.col("query").list.len() * share).ceil())
    enough = (pl.col("label") == "E") & (common >= needed)
    return frame.select(enough.any().over("query_id").alias("overlap")).to_series()
