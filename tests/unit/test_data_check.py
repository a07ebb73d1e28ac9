"""``data check`` and ``data describe``."""

import shutil
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from conftest import ROOT

from ospo.config import load_config
from ospo.data.dataset import load_prepared
from ospo.data.stats import REASONS, Stats
from ospo.errors import InputError
from ospo.reports.data_check import check_folder
from ospo.reports.data_profile import describe, write_page
from ospo.retrieval.vectors import save_vectors

PARAMS = ROOT / "params.yaml"


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_check_real_sample(dataset, request):
    folder = request.getfixturevalue(f"{dataset}_real")
    check = check_folder(folder, load_config(PARAMS))
    assert check.kind == f"raw {dataset}"
    assert check.problems == []
    text = "\n".join(check.lines)
    wanted = {
        "esci": [
            "3,153 rows, 9 columns",
            "read 3,150 products",
            "left out 957: judgements of another locale",
            "1,105",
        ],
        "hm": [
            "8,815 rows, 5 columns",
            "left out 6,187: transactions of an article that is not in",
            "days are held out",
        ],
    }[dataset]
    for part in wanted:
        assert part in text


def test_check_tells_every_broken_file(esci_raw, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(esci_raw, raw)
    for file in raw.iterdir():
        frame = pl.read_parquet(file)
        frame.drop("product_id").write_parquet(file)
    problems = check_folder(raw, load_config(PARAMS)).problems
    assert len(problems) == 2
    assert all("product_id: column is missing" in problem for problem in problems)


def test_check_tells_odd_columns_and_missing_files(hm_raw, tmp_path, tiny_config):
    raw = tmp_path / "raw"
    shutil.copytree(hm_raw, raw)
    frame = (
        pl.read_csv(raw / "customers.csv", infer_schema=False)
        .drop("age")
        .with_columns(shoe_size=pl.lit("42"))
    )
    frame.write_csv(raw / "customers.csv")
    check = check_folder(raw, tiny_config)
    assert not check.problems
    assert "customers.csv: official columns that are missing but not needed: age" in check.lines
    assert "customers.csv: columns that are not official and not read: shoe_size" in check.lines
    (raw / "articles.csv").unlink()
    assert "articles.csv: file not found" in check_folder(raw, tiny_config).problems[0]


def test_check_prepared_and_unknown(esci_tiny, tmp_path, tiny_config):
    check = check_folder(esci_tiny.directory, tiny_config)
    assert (check.kind, check.problems) == ("prepared", [])
    assert check.lines[0] == "400 items"
    folder = tmp_path / "esci"
    shutil.copytree(esci_tiny.directory, folder)
    (folder / "qrels.parquet").unlink()
    assert "qrels.parquet: file not found" in check_folder(folder, tiny_config).problems[0]
    assert check_folder(tmp_path, tiny_config).kind == "unknown"
    assert "holds neither ESCI" in check_folder(tmp_path, tiny_config).problems[0]
    with pytest.raises(InputError, match="folder not found"):
        check_folder(tmp_path / "nowhere", tiny_config)


def test_check_vectors(tmp_path, tiny_config):
    save_vectors(tmp_path / "a.safetensors", ["x", "y"], np.ones((2, 3), np.float32), "m")
    check = check_folder(tmp_path, tiny_config)
    assert (check.kind, check.problems) == ("vectors", [])
    assert check.lines == ["a.safetensors: 2 items' vectors of 3 dimensions"]
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    assert "is not a vectors file" in check_folder(tmp_path, tiny_config).problems[0]


def test_every_drop_has_an_explanation():
    with pytest.raises(KeyError, match="no explanation"):
        Stats().drop("a_new_reason", 1)
    assert all(REASONS.values())


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_describe(dataset, request, tmp_path):
    data = request.getfixturevalue(f"{dataset}_tiny")
    profile = describe(data)
    assert profile.figures["items"] == "400"
    assert profile.figures["requests"] == str(len(data.requests))
    by_split = dict(profile.charts[0].counts)
    assert by_split == {split: len(data.rows(split)) for split in ("train", "validation", "test")}
    for chart in profile.charts[1:3]:
        assert sum(count for _, count in chart.counts) == len(data.requests)
    assert any("Purchases" in chart.title for chart in profile.charts) == (dataset == "hm")
    write_page(profile, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == len(profile.charts)


def test_page_escapes_text_from_data(esci_tiny, tmp_path):
    folder = tmp_path / "esci"
    shutil.copytree(esci_tiny.directory, folder)
    attack = '</title><script>alert("x")</script>'
    for table, columns in (("catalogue", ("category", "title")), ("requests", ("query",))):
        frame = pl.read_parquet(folder / f"{table}.parquet")
        frame.with_columns(pl.lit(attack).alias(name) for name in columns).write_parquet(
            folder / f"{table}.parquet"
        )
    write_page(describe(load_prepared(folder)), tmp_path / "page.html")
    tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)

    Reader().feed((tmp_path / "page.html").read_text())
    assert "script" not in tags
    assert tags.count("title") == 1 + tags.count("svg")  # the page's, and each chart's own


def test_docs_explain_every_drop():
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(f"| `{reason}` | {text} |" in page for reason, text in REASONS.items())
