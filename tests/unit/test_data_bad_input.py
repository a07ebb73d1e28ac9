"""Bad input: one clear line naming file, column and fix, and nothing half-written."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from ospo.data.catalogue import generate_sample
from ospo.data.dataset import load_prepared
from ospo.data.prepare import prepare
from ospo.errors import InputError

EXAMPLES = "shopping_queries_dataset_examples.parquet"
PRODUCTS = "shopping_queries_dataset_products.parquet"


def _parquet(name, change):
    def mutate(raw: Path):
        change(pl.read_parquet(raw / name)).write_parquet(raw / name)

    return mutate


def _csv(name, change):
    def mutate(raw: Path):
        change(pl.read_csv(raw / name, infer_schema=False)).write_csv(raw / name)

    return mutate


def _bytes(name, change):
    def mutate(raw: Path):
        file = raw / name
        file.write_bytes(change(file.read_bytes()))

    return mutate


def _remove(name):
    return lambda raw: (raw / name).unlink()


def _relabel(label):
    return lambda frame: frame.with_columns(
        esci_label=pl.when(pl.int_range(pl.len()) == 3).then(pl.lit(label)).otherwise("esci_label")
    )


def _another_query(frame: pl.DataFrame) -> pl.DataFrame:
    """The second judgement of a query under another text."""
    first = frame["query_id"][0]
    row = (pl.col("query_id") == first) & (pl.col("query_id").cum_count().over("query_id") == 2)
    return frame.with_columns(query=pl.when(row).then(pl.lit("blue hat")).otherwise("query"))


BAD = {
    "esci: one query_id with two queries": (
        "esci",
        _parquet(EXAMPLES, _another_query),
        [EXAMPLES, "query_id", "has several queries, ", "'blue hat'", "an id of its own"],
    ),
    "esci: file missing": ("esci", _remove(PRODUCTS), [PRODUCTS, "file not found"]),
    "esci: column missing": (
        "esci",
        _parquet(EXAMPLES, lambda f: f.drop("esci_label")),
        [EXAMPLES, "esci_label", "mis"],
    ),
    "esci: column of another type": (
        "esci",
        _parquet(PRODUCTS, lambda f: f.with_columns(product_title=pl.int_range(pl.len()))),
        [PRODUCTS, "product_title", "has type", "expected text, for example 0"],
    ),
    "esci: text where numbers belong": (
        "esci",
        _parquet(EXAMPLES, lambda f: f.with_columns(small_version=pl.lit("yes"))),
        [EXAMPLES, "small_version", "has type String, expected numbers, for example 'yes'"],
    ),
    "esci: ids of an odd type": (
        "esci",
        _parquet(EXAMPLES, lambda f: f.with_columns(query_id=pl.date(2020, 1, 1))),
        [EXAMPLES, "query_id", "has type Date, expected text or whole numbers, for example"],
    ),
    "esci: labels without values": (
        "esci",
        _parquet(EXAMPLES, lambda f: f.with_columns(esci_label=pl.lit(None))),
        [EXAMPLES, "esci_label", "holds no value"],
    ),
    "esci: unknown label": (
        "esci",
        _parquet(EXAMPLES, _relabel("Good")),
        [EXAMPLES, "esci_label", "'Good'", "(1 rows)"],
    ),
    "esci: labels as numbers": (
        "esci",
        _parquet(EXAMPLES, lambda f: f.with_columns(esci_label=pl.lit(3))),
        [EXAMPLES, "esci_label", "has type Int32, expected text, for example 3"],
    ),
    "esci: label null": (
        "esci",
        _parquet(EXAMPLES, _relabel(None)),
        [EXAMPLES, "esci_label", "None"],
    ),
    "esci: duplicate product": (
        "esci",
        _parquet(PRODUCTS, lambda f: pl.concat([f, f.head(1)])),
        [PRODUCTS, "product_id", "'B000000000' appears twice"],
    ),
    "esci: empty catalogue": (
        "esci",
        _parquet(PRODUCTS, lambda f: f.head(0)),
        [PRODUCTS, "product_locale", "no product"],
    ),
    "esci: unknown locale only": (
        "esci",
        _parquet(PRODUCTS, lambda f: f.with_columns(product_locale=pl.lit("xx"))),
        [PRODUCTS, "product_locale", "no product of locale 'us'", "xx"],
    ),
    "esci: empty texts": (
        "esci",
        _parquet(
            PRODUCTS,
            lambda f: f.with_columns(
                pl.lit("<br>").alias(c)
                for c in f.columns
                if c not in ("product_id", "product_locale")
            ),
        ),
        [PRODUCTS, "product_title", "no product has any text"],
    ),
    "esci: not a parquet file": (
        "esci",
        _bytes(EXAMPLES, lambda b: b"hello"),
        [EXAMPLES, "not a readable parquet"],
    ),
    "esci: empty file": (
        "esci",
        _bytes(EXAMPLES, lambda b: b""),
        [EXAMPLES, "not a readable parquet"],
    ),
    "esci: truncated parquet": (
        "esci",
        _bytes(PRODUCTS, lambda b: b[: len(b) // 2]),
        [PRODUCTS, "parquet"],
    ),
    "esci: damaged pages": (
        "esci",
        _bytes(PRODUCTS, lambda b: b[:200] + bytes(x ^ 0x5A for x in b[200:9000]) + b[9000:]),
        [PRODUCTS, "not a readable parquet"],
    ),
    "esci: no relevant product at all": (
        "esci",
        _parquet(EXAMPLES, lambda f: f.with_columns(esci_label=pl.lit("I"))),
        [EXAMPLES, "no query with relevant products is left", "min_exact"],
    ),
    "esci: products of another shop": (
        "esci",
        _parquet(PRODUCTS, lambda f: f.with_columns(product_id="Z" + pl.col("product_id"))),
        [
            EXAMPLES,
            "product_id",
            "no judged product is in",
            " here, 'ZB000000000' there",
        ],
    ),
    "esci: one query text": (
        "esci",
        _parquet(EXAMPLES, lambda f: f.with_columns(query=pl.lit("red shirt"))),
        [EXAMPLES, "query", "gives no", "request (60 "],
    ),
    "hm: two days": (
        "hm",
        _csv(
            "transactions_train.csv",
            lambda f: f.with_columns(
                t_dat=pl.when(pl.int_range(pl.len()) % 2 == 0)
                .then(pl.lit("2020-01-01"))
                .otherwise(pl.lit("2020-01-02"))
            ),
        ),
        ["transactions_train.csv", "t_dat", "gives no training request"],
    ),
    "hm: article ids cut to exponents": (
        "hm",
        _csv(
            "transactions_train.csv",
            lambda f: f.with_columns(article_id=pl.lit("1.0878e+08")),
        ),
        ["transactions_train.csv", "article_id", "for example '1.0878e+08'", "0108775015"],
    ),
    "hm: customers of another export": (
        "hm",
        _csv("customers.csv", lambda f: f.with_columns(customer_id="x" + pl.col("customer_id"))),
        ["transactions_train.csv", "customer_id", "no transaction names a customer", "for example"],
    ),
    "hm: refunds only": (
        "hm",
        _csv("transactions_train.csv", lambda f: f.with_columns(price=pl.lit("-0.1"))),
        ["transactions_train.csv", "price", "every price is negative"],
    ),
    "hm: UTF-16 cut in the middle": (
        "hm",
        _bytes("articles.csv", lambda b: b.decode().encode("utf-16")[:-1]),
        ["articles.csv", "damaged UTF-16", "save it as UTF-8"],
    ),
    "hm: file missing": ("hm", _remove("customers.csv"), ["customers.csv", "file not found"]),
    "hm: column missing": (
        "hm",
        _csv("articles.csv", lambda f: f.drop("prod_name")),
        ["articles.csv", "prod_name", "mis"],
    ),
    "hm: duplicate product": (
        "hm",
        _csv(
            "articles.csv",
            lambda f: pl.concat(
                [f, f.head(1).with_columns(pl.col("article_id").str.strip_prefix("0"))]
            ),
        ),
        ["articles.csv", "article_id", "appears twice"],
    ),
    "hm: empty catalogue": (
        "hm",
        _csv("articles.csv", lambda f: f.head(0)),
        ["articles.csv", "no article"],
    ),
    "hm: empty file": (
        "hm",
        _bytes("transactions_train.csv", lambda b: b""),
        ["transactions_train.csv", "empty"],
    ),
    "hm: wrong delimiter": (
        "hm",
        _bytes("transactions_train.csv", lambda b: b.replace(b",", b";")),
        ["transactions_train.csv", "not separated by commas"],
    ),
    "hm: unknown articles only": (
        "hm",
        _csv("transactions_train.csv", lambda f: f.with_columns(article_id=pl.lit("0999999999"))),
        [
            "transactions_train.csv",
            "article_id",
            "no transaction names an article of articles.csv, for example '0999999999'",
        ],
    ),
    "hm: no history": (
        "hm",
        _csv("transactions_train.csv", lambda f: f.unique("customer_id", maintain_order=True)),
        ["transactions_train.csv", "t_dat", "no purchase has an earlier history"],
    ),
    "hm: unparsable dates": (
        "hm",
        _csv("transactions_train.csv", lambda f: f.with_columns(t_dat=pl.lit("22/09/2020"))),
        [
            "transactions_train.csv",
            "t_dat",
            "no date reads YYYY-MM-DD, up to today, for example '22/09/2020'",
        ],
    ),
    "hm: article ids in words": (
        "hm",
        _csv("articles.csv", lambda f: f.with_columns(article_id="A-" + pl.col("article_id"))),
        ["articles.csv", "article_id", "no article with an id of at most ten digits, for example"],
    ),
    "hm: transactions with ids in words": (
        "hm",
        _csv("transactions_train.csv", lambda f: f.with_columns(article_id=pl.lit("A-17"))),
        [
            "transactions_train.csv",
            "article_id",
            "no id is a number of at most ten digits, for example 'A-17'",
        ],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_raw_files(case, request, tmp_path, tiny_config):
    dataset, mutate, parts = BAD[case]
    raw = tmp_path / "raw"
    shutil.copytree(request.getfixturevalue(f"{dataset}_raw"), raw)
    mutate(raw)
    with pytest.raises(InputError) as caught:
        prepare(dataset, raw, tmp_path / "out", tiny_config)
    line = str(caught.value)
    assert "\n" not in line
    assert ". Fix: " in line
    assert caught.value.exit_code == 2
    for part in parts:
        assert part in line
    assert [path.name for path in tmp_path.iterdir()] == ["raw"], "nothing half-written"


@pytest.mark.parametrize(
    ("column", "kind", "values", "reason"),
    [
        ("query_id", pl.UInt64, [2**63 + 5, None], "judgement_empty_query"),
        ("query_id", pl.Float64, [float("nan"), 1e300, 0.5, float("inf")], "judgement_empty_query"),
        ("product_id", pl.String, [None, "\x00"], "judgement_unknown_product"),
    ],
)
def test_odd_numbers_are_dropped_and_counted(
    column, kind, values, reason, esci_raw, tmp_path, tiny_config
):
    raw = tmp_path / "raw"
    shutil.copytree(esci_raw, raw)
    frame = pl.read_parquet(raw / EXAMPLES).with_columns(pl.col(column).cast(kind))
    odd = frame.head(len(values)).with_columns(pl.Series(column, values, dtype=kind))
    pl.concat([frame, odd]).write_parquet(raw / EXAMPLES)
    usual = prepare("esci", esci_raw, tmp_path / "usual", tiny_config)
    stats = prepare("esci", raw, tmp_path / "out", tiny_config)
    assert stats["dropped"][reason] == usual["dropped"][reason] + len(values)
    assert stats["kept"] == usual["kept"]
    for table in ("catalogue", "requests", "qrels", "pools"):
        name = f"{table}.parquet"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "usual" / name).read_bytes()


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_missing_folder(dataset, tmp_path, tiny_config):
    with pytest.raises(InputError, match=f"folder not found. Fix: set data.{dataset}.raw"):
        prepare(dataset, tmp_path / "nowhere", tmp_path / "out", tiny_config)
    assert not list(tmp_path.iterdir())


def test_unknown_dataset(tmp_path, tiny_config):
    with pytest.raises(InputError, match="names no data set 'amazon'"):
        prepare("amazon", tmp_path, tmp_path / "out", tiny_config)
    with pytest.raises(InputError, match="amazon: no sample shop"):
        generate_sample("amazon", tmp_path / "out", tiny_config.sample, 0)


def test_older_output_survives_a_failure(esci_raw, tmp_path, tiny_config):
    prepare("esci", esci_raw, tmp_path / "out", tiny_config)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    raw = tmp_path / "raw"
    shutil.copytree(esci_raw, raw)
    (raw / PRODUCTS).unlink()
    with pytest.raises(InputError):
        prepare("esci", raw, tmp_path / "out", tiny_config)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", "line 2: lacks a text"),
        ('{"customer_id": "a", "article_id": 1, "query": "x"}', "line 2: lacks a text"),
        ('{"customer_id": "a", "article_id": "1", "query": "  "}', "line 2: query of 0 characters"),
        (
            '{"customer_id": "a", "article_id": "1", "query": "' + "x" * 401 + '"}',
            "query of 401 characters",
        ),
        ('{"customer_id": "a", "article_id": "one", "query": "x"}', "article_id: is not a number"),
        (
            '{"customer_id": "a", "article_id": "123456789012", "query": "x"}',
            "article_id: is not a number",
        ),
        ('{"customer_id": "a", "article_id": "1", "query": null}', "line 2: lacks a text"),
        ('{"customer_id": "a", "query": "x"}', "line 2: lacks a text"),
        ("[" * 60_000, "line 2: is not JSON"),
        ("1" * 5_000, "line 2: is not JSON"),
        ("[" * 100_000, "line 2: is longer than 65,536 bytes"),
        ("\udc80", "line 2: cannot be read"),
        ('{"customer_id": "a", "article_id": "1", "query": "\\ud800"}', "line 2: holds half of a"),
        (
            '{"customer_id": "c", "article_id": "0000000002", "query": "x"}',
            "two queries for one purchase",
        ),
    ],
)
def test_bad_supplied_queries(line, problem, hm_raw, tmp_path, tiny_config):
    file = tmp_path / "queries.jsonl"
    first = '{"customer_id": "c", "article_id": "2", "query": "x"}'
    file.write_text(f"{first}\n{line}\n", encoding="utf-8", errors="surrogateescape")
    hm = tiny_config.data.hm.model_copy(update={"queries_file": str(file)})
    config = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"hm": hm})})
    with pytest.raises(InputError) as caught:
        prepare("hm", hm_raw, tmp_path / "out", config)
    assert problem in str(caught.value)
    assert "queries.jsonl" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_endless_queries_file_is_refused_at_once(hm_raw, tmp_path, tiny_config):
    """/dev/zero stands for a file of any size without line ends: only the first line is read."""
    hm = tiny_config.data.hm.model_copy(update={"queries_file": "/dev/zero"})
    config = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"hm": hm})})
    with pytest.raises(InputError, match="/dev/zero: line 1: is longer than 65,536 bytes"):
        prepare("hm", hm_raw, tmp_path / "out", config)


def _lose_relevant(folder: Path) -> None:
    frame = pl.read_parquet(folder / "qrels.parquet")
    first = frame["request_id"][0]
    gain = pl.when(pl.col("request_id") == first).then(pl.lit(0.0, pl.Float32)).otherwise("gain")
    frame.with_columns(gain=gain).write_parquet(folder / "qrels.parquet")


def _change(table, change):
    def mutate(folder: Path):
        change(pl.read_parquet(folder / f"{table}.parquet")).write_parquet(
            folder / f"{table}.parquet"
        )

    return mutate


PREPARED = {
    "file missing": (lambda f: (f / "pools.parquet").unlink(), ["pools.parquet", "file not found"]),
    "not parquet": (
        lambda f: (f / "qrels.parquet").write_bytes(b"x"),
        ["qrels.parquet", "not a readable parquet"],
    ),
    "column missing": (
        _change("catalogue", lambda f: f.drop("text")),
        ["catalogue.parquet", "text", "missing"],
    ),
    "column type": (
        _change("qrels", lambda f: f.with_columns(pl.col("gain").cast(pl.Int64))),
        ["qrels.parquet", "gain", "has type Int64"],
    ),
    "null": (
        _change("requests", lambda f: f.with_columns(query=pl.lit(None, dtype=pl.String))),
        ["requests.parquet", "query", "holds null"],
    ),
    "empty catalogue": (
        _change("catalogue", lambda f: f.head(0)),
        ["catalogue.parquet", "is empty"],
    ),
    "duplicate product": (
        _change("catalogue", lambda f: pl.concat([f, f.head(1)])),
        ["catalogue.parquet", "item_id", "appears twice"],
    ),
    "unknown split": (
        _change("requests", lambda f: f.with_columns(split=pl.lit("dev"))),
        ["requests.parquet", "split", "unknown split 'dev'"],
    ),
    "pools of other requests": (
        _change("pools", lambda f: f.reverse()),
        ["pools.parquet", "does not match"],
    ),
    "unknown item in a pool": (
        _change("catalogue", lambda f: f.tail(-1)),
        ["pools.parquet", "'B000000000' is not in catalogue"],
    ),
    "empty pool": (
        _change("pools", lambda f: f.with_columns(pl.col("item_ids").list.head(0))),
        ["pools.parquet", "is empty"],
    ),
    "relevant item not in its pool": (
        _change("pools", lambda f: f.with_columns(pl.col("item_ids").list.head(1))),
        ["pools.parquet", "is not in its pool"],
    ),
    "request without relevant items": (
        _lose_relevant,
        ["qrels.parquet", "gain", "has no relevant item"],
    ),
    "gain NaN": (
        _change("qrels", lambda f: f.with_columns(gain=pl.lit(float("nan"), pl.Float32))),
        ["qrels.parquet", "gain", "is nan for item"],
    ),
    "one gain infinite": (
        _change(
            "qrels",
            lambda f: f.with_columns(
                gain=pl.when(pl.int_range(pl.len()) == 7)
                .then(pl.lit(float("inf"), pl.Float32))
                .otherwise("gain")
            ),
        ),
        ["qrels.parquet", "gain", "is inf for item"],
    ),
    "judgement of an unknown request": (
        _change("qrels", lambda f: f.with_columns(request_id="x" + pl.col("request_id"))),
        ["qrels.parquet", "request_id", "is not in requests.parquet"],
    ),
}


@pytest.mark.parametrize("case", PREPARED)
def test_bad_prepared_data(case, esci_tiny, tmp_path):
    mutate, parts = PREPARED[case]
    folder = tmp_path / "esci"
    shutil.copytree(esci_tiny.directory, folder)
    mutate(folder)
    with pytest.raises(InputError) as caught:
        load_prepared(folder)
    for part in parts:
        assert part in str(caught.value)


def test_good_prepared_data_loads(esci_tiny, tmp_path):
    folder = tmp_path / "esci"
    shutil.copytree(esci_tiny.directory, folder)
    again = load_prepared(folder)
    assert again.requests == esci_tiny.requests
    assert (again.pools_RP == esci_tiny.pools_RP).all()
    assert json.loads((folder / "stats.json").read_text())["kept"]["requests"] == len(
        again.requests
    )
    with pytest.raises(InputError, match="folder not found"):
        load_prepared(tmp_path / "nowhere")
