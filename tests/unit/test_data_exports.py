"""Raw files as other tools export them: what has one meaning is read and counted in stats.json."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from conftest import ROOT

from ospo.data.dataset import load_prepared
from ospo.data.prepare import prepare
from ospo.data.stats import FORMS, Stats
from ospo.errors import InputError
from ospo.reports.data_check import check_folder

EXAMPLES = "shopping_queries_dataset_examples.parquet"
PRODUCTS = "shopping_queries_dataset_products.parquet"
TABLES = ("catalogue", "requests", "qrels", "pools")
Change = Callable[[pl.DataFrame], pl.DataFrame]


def _change(raw: Path, changes: dict[str, Change]) -> None:
    for name, change in changes.items():
        file = raw / name
        if name.endswith(".parquet"):
            change(pl.read_parquet(file)).write_parquet(file)
        else:
            change(pl.read_csv(file, infer_schema=False)).write_csv(file)


def _numbered(frame: pl.DataFrame) -> pl.DataFrame:
    """Product ids as text of digits, whose order is that of the ids."""
    number = 100_000_000 + pl.col("product_id").str.slice(1).cast(pl.Int64)
    return frame.with_columns(product_id=number.cast(pl.String))


def _cast(column: str, *kinds) -> Change:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        for kind in kinds:
            frame = frame.with_columns(pl.col(column).cast(kind))
        return frame

    return change


WORDS = {"E": "exact", "S": "Substitute", "C": "COMPLEMENT", "I": " irrelevant "}
NUMBERED = {EXAMPLES: _numbered, PRODUCTS: _numbered}
LABEL = pl.col("esci_label")
LOCALE = pl.col("product_locale")
ARTICLE = pl.col("article_id")
# Case: dataset, changes that make the usual file, changes that make the export, forms that are
# counted. The export must give the same tables as the usual file.
SAME = {
    "query_id as text": (
        "esci",
        {},
        {EXAMPLES: _cast("query_id", pl.String)},
        {"query_id_as_text": 1},
    ),
    "query_id as text of decimals": (
        "esci",
        {},
        {EXAMPLES: _cast("query_id", pl.Float64, pl.String)},
        {"query_id_as_text": 1, "query_id_as_decimal": 1},
    ),
    "query_id as decimals": ("esci", {}, {EXAMPLES: _cast("query_id", pl.Float64)}, {}),
    "query_id as small integers": ("esci", {}, {EXAMPLES: _cast("query_id", pl.UInt16)}, {}),
    "product_id as integers": (
        "esci",
        NUMBERED,
        {name: _cast("product_id", pl.Int64) for name in (EXAMPLES, PRODUCTS)},
        {"product_id_as_number": 2},
    ),
    "product_id as decimals on one side": (
        "esci",
        NUMBERED,
        {EXAMPLES: _cast("product_id", pl.Float64), PRODUCTS: _cast("product_id", pl.Int64)},
        {"product_id_as_number": 2},
    ),
    "product_id as text of decimals on one side": (
        "esci",
        NUMBERED,
        {EXAMPLES: lambda f: f.with_columns(product_id=pl.col("product_id") + ".0")},
        {"product_id_as_decimal": 1},
    ),
    "categories in place of text": ("esci", {}, {EXAMPLES: _cast("query", pl.Categorical)}, {}),
    "no colour": (
        "esci",
        {PRODUCTS: lambda f: f.with_columns(product_color=pl.lit(None, pl.String))},
        {PRODUCTS: lambda f: f.with_columns(product_color=pl.lit(None))},
        {"column_without_values": 1},
    ),
    "no title": (
        "esci",
        {PRODUCTS: lambda f: f.with_columns(product_title=pl.lit(None, pl.String))},
        {PRODUCTS: lambda f: f.with_columns(product_title=pl.lit(None))},
        {"column_without_values": 1},
    ),
    "locale in capitals": (
        "esci",
        {},
        {
            EXAMPLES: lambda f: f.with_columns(LOCALE.str.to_uppercase()),
            PRODUCTS: lambda f: f.with_columns(product_locale=" " + LOCALE.str.to_titlecase()),
        },
        {"judgement_locale_in_capitals": None, "product_locale_in_capitals": 400},
    ),
    "labels in lower case": (
        "esci",
        {},
        {EXAMPLES: lambda f: f.with_columns(LABEL.str.to_lowercase())},
        {"label_as_word": None},
    ),
    "labels as words": (
        "esci",
        {},
        {EXAMPLES: lambda f: f.with_columns(LABEL.replace_strict(WORDS))},
        {"label_as_word": None},
    ),
    "article ids as decimals": (
        "hm",
        {},
        {
            "articles.csv": lambda f: f.with_columns(ARTICLE.str.strip_chars_start("0") + ".0"),
            "transactions_train.csv": lambda f: f.with_columns(
                ARTICLE.cast(pl.Float64).cast(pl.String)
            ),
        },
        {"article_id_as_decimal": 400, "transaction_article_id_as_decimal": None},
    ),
    "dates with a time": (
        "hm",
        {},
        {"transactions_train.csv": lambda f: f.with_columns(pl.col("t_dat") + " 00:00:00")},
        {"transaction_date_with_time": None},
    ),
    "some dates with a time and a zone": (
        "hm",
        {},
        {
            "transactions_train.csv": lambda f: f.with_columns(
                pl.when(pl.int_range(pl.len()) % 2 == 0)
                .then(pl.col("t_dat") + "T23:59:59.5+02:00")
                .otherwise("t_dat")
            )
        },
        {"transaction_date_with_time": None},
    ),
}


def _digests(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / f"{n}.parquet").read_bytes()).hexdigest() for n in TABLES]


@pytest.mark.parametrize("case", SAME)
def test_an_export_gives_the_tables_of_the_official_file(case, request, tmp_path, tiny_config):
    dataset, usual, export, forms = SAME[case]
    raw = tmp_path / "raw"
    shutil.copytree(request.getfixturevalue(f"{dataset}_raw"), raw)
    _change(raw, usual)
    before = prepare(dataset, raw, tmp_path / "usual", tiny_config)
    assert before["read_as"] == {}
    _change(raw, export)
    after = prepare(dataset, raw, tmp_path / "export", tiny_config)
    assert _digests(tmp_path / "usual") == _digests(tmp_path / "export")
    rows = {"judgement": "judgements", "transaction": "transactions", "label": "judgements"}
    expected = {form: count or None for form, count in forms.items()}
    for form, count in after["read_as"].items():
        if expected.get(form, 0) is None:  # as many as the file has rows, or half of them
            every = after["read"][rows[form.split("_")[0]]]
            expected[form] = -(-every // 2) if case.startswith("some") else every
        assert count == expected[form]
    assert set(after["read_as"]) == set(forms)
    assert {name: after[name] for name in ("read", "kept", "dropped", "used")} == {
        name: before[name] for name in ("read", "kept", "dropped", "used")
    }
    lines = "\n".join(check_folder(raw, tiny_config).lines)
    assert all(FORMS[form] in lines for form in forms)


def test_query_ids_that_are_no_numbers_are_kept(esci_raw, tmp_path, tiny_config):
    raw = tmp_path / "raw"
    shutil.copytree(esci_raw, raw)
    _change(
        raw, {EXAMPLES: lambda f: f.with_columns(query_id="q" + pl.col("query_id").cast(pl.String))}
    )
    usual = prepare("esci", esci_raw, tmp_path / "usual", tiny_config)
    stats = prepare("esci", raw, tmp_path / "out", tiny_config)
    assert stats["kept"] == usual["kept"]
    ids = {request.request_id for request in load_prepared(tmp_path / "out").requests}
    official = {request.request_id for request in load_prepared(tmp_path / "usual").requests}
    assert ids == {f"q{name}" for name in official}


def test_ids_that_only_sometimes_look_like_decimals_stay_as_they_are(
    esci_raw, tmp_path, tiny_config
):
    """ "12.0" beside "12" may be another product."""
    raw = tmp_path / "raw"
    shutil.copytree(esci_raw, raw)

    def odd(frame: pl.DataFrame) -> pl.DataFrame:
        first = pl.col("product_id") == "B000000000"
        return frame.with_columns(
            product_id=pl.when(first).then(pl.lit("12.0")).otherwise("product_id")
        )

    _change(raw, {EXAMPLES: odd, PRODUCTS: odd})
    assert prepare("esci", raw, tmp_path / "out", tiny_config)["read_as"] == {}
    assert "12.0" in load_prepared(tmp_path / "out").item_ids


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_files_in_utf16_with_carriage_returns(encoding, hm_raw, tmp_path, tiny_config):
    raw = tmp_path / "raw"
    raw.mkdir()
    for file in hm_raw.iterdir():
        text = file.read_text(encoding="utf-8").replace("\n", "\r")
        (raw / file.name).write_bytes(text.encode(encoding))
    prepare("hm", hm_raw, tmp_path / "usual", tiny_config)
    stats = prepare("hm", raw, tmp_path / "out", tiny_config)
    assert stats["read_as"] == {"file_in_utf16": 3, "file_with_carriage_returns": 3}
    assert _digests(tmp_path / "usual") == _digests(tmp_path / "out")


@pytest.mark.parametrize(
    ("usual", "other", "line"),
    [("\n", "\r", 41), ("\r", "\n", 41), ("\r\n", "\r", 41)],
    ids=["\\r after \\n", "\\n after \\r", "\\r after \\r\\n"],
)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_lines_that_end_in_several_ways_are_one_line(
    usual, other, line, block, hm_raw, tmp_path, tiny_config, monkeypatch
):
    monkeypatch.setattr("ospo.data.raw_csv._BLOCK", block)
    monkeypatch.setattr("ospo.data.raw_csv._HEAD", 1 << 10)
    raw = tmp_path / "raw"
    shutil.copytree(hm_raw, raw)
    file = raw / "customers.csv"
    lines = file.read_text(encoding="utf-8").splitlines()
    assert not any('"' in text for text in lines)
    assert len("".join(lines[:40])) > 1 << 10  # what follows is beyond the head
    text = usual.join(lines[:41]) + other + usual.join(lines[41:]) + usual
    file.write_bytes(text.encode())
    says = rf"customers.csv: line {line}: ends in another character"
    with pytest.raises(InputError, match=says):
        prepare("hm", raw, tmp_path / "out", tiny_config)


@pytest.mark.parametrize(
    "value", [pl.col("query_id") + 0.5, pl.col("query_id").cast(pl.UInt64) + 2**63]
)
def test_numbers_that_name_no_query_are_one_line(value, esci_raw, tmp_path, tiny_config):
    raw = tmp_path / "raw"
    shutil.copytree(esci_raw, raw)
    _change(raw, {EXAMPLES: lambda frame: frame.with_columns(query_id=value)})
    with pytest.raises(InputError, match="query_id: holds no whole number of 64 bits, for example"):
        prepare("esci", raw, tmp_path / "out", tiny_config)


@pytest.mark.parametrize("worse_first", [True, False])
def test_a_pair_judged_twice_keeps_the_better_label(worse_first, esci_raw, tmp_path, tiny_config):
    raw = tmp_path / "raw"
    shutil.copytree(esci_raw, raw)
    worse = {"E": "S", "S": "C", "C": "I", "I": "I"}

    def twice(frame: pl.DataFrame) -> pl.DataFrame:
        again = frame.with_columns(LABEL.replace_strict(worse))
        return pl.concat([again, frame] if worse_first else [frame, again])

    _change(raw, {EXAMPLES: twice})
    usual = prepare("esci", esci_raw, tmp_path / "usual", tiny_config)
    stats = prepare("esci", raw, tmp_path / "out", tiny_config)
    assert _digests(tmp_path / "usual") == _digests(tmp_path / "out")
    assert stats["dropped"]["judgement_duplicate"] == usual["read"]["judgements"]


def test_every_form_has_an_explanation():
    with pytest.raises(KeyError, match="no explanation"):
        Stats().read_in_form("a_new_form", 1)
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(f"| `{form}` | {text} |" in page for form, text in FORMS.items())
