"""The pandas baseline of benchmarks/prepare.py makes the same tables: an independent check of
preparation.
"""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from conftest import ROOT

from benchmarks import prepare_pandas
from ospo.config import load_config
from ospo.data.prepare import prepare

SAME = {
    "item_id": "product_id",
    "title": "product_title",
    "text": "text",
    "category": "category",
    "group": "group",
}


@pytest.fixture(params=["sample", "real"])
def esci_folder(request) -> Path:
    return request.getfixturevalue("esci_raw" if request.param == "sample" else "esci_real")


def test_esci(esci_folder, tmp_path):
    config = load_config(ROOT / "params.yaml")
    prepare("esci", esci_folder, tmp_path / "ours", config)
    prepare_pandas.prepare_esci(esci_folder, tmp_path / "plain", config)
    ours, plain = (
        pl.read_parquet(tmp_path / name / "catalogue.parquet") for name in ("ours", "plain")
    )
    for column, theirs in SAME.items():
        differing = ours.filter(ours[column] != plain[theirs])
        # Numbers of symbols far from text ("&#9728;", a sun) become a space here and the symbol
        # there.
        assert len(differing) <= (5 if column == "text" else 0), differing[column][0]
    ours, plain = (pl.read_parquet(tmp_path / name / "qrels.parquet") for name in ("ours", "plain"))
    judged = ours.select(pl.col("request_id").cast(pl.Int64), "item_id", "label").sort(pl.all())
    assert (
        judged.rows() == plain.select("query_id", "product_id", "esci_label").sort(pl.all()).rows()
    )
    ours, plain = (
        pl.read_parquet(tmp_path / name / "requests.parquet") for name in ("ours", "plain")
    )
    columns = ["request_id", "query", "target_id"]
    assert ours.select(columns).sort(columns).equals(plain.select(columns).sort(columns))


def test_hm(hm_raw, tiny_config, tmp_path):
    prepare("hm", hm_raw, tmp_path / "ours", tiny_config)
    # Its own split decides which purchases become targets: give it ours.
    splits = (
        pl.read_parquet(tmp_path / "ours" / "requests.parquet")
        .select("customer_id", "split")
        .unique()
    )
    by_customer = dict(splits.rows())
    window = json.loads((tmp_path / "ours" / "stats.json").read_text())["used"]["holdout_days"]
    data = tiny_config.data.model_copy(
        update={"hm": tiny_config.data.hm.model_copy(update={"holdout_days": window})}
    )
    config = tiny_config.model_copy(update={"data": data})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            prepare_pandas,
            "_split",
            lambda keys, _: [by_customer.get(customer, "train") for customer in keys],
        )
        prepare_pandas.prepare_hm(hm_raw, tmp_path / "plain", config)
    ours, plain = (
        pl.read_parquet(tmp_path / name / "requests.parquet") for name in ("ours", "plain")
    )
    plain = plain.filter(pl.col("customer_id").is_in(list(by_customer)))
    order = ["customer_id", "target_id"]
    history = pl.col("history").list.eval(pl.element().struct[0]).alias("history")
    ours, plain = (frame.sort(order).select(*order, "split", history) for frame in (ours, plain))
    assert ours.equals(plain)


def test_command_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.prepare",
        "--scale",
        "0.002",
        "--cache",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    [line] = done.stdout.splitlines()
    figures = json.loads(line)
    assert figures["rows"]["read"] == {"judgements": 5204, "products": 3630}
    assert figures["seconds"] > 0
    assert figures["peak_mb"] > 50
    assert figures["ratio_vs_pandas"] > 0
    assert figures["pandas"]["scale"] == 0.002
