"""Trained policies on raw files they never saw: prepared, scored, reported, and skipped where
nothing changed.
"""

from pathlib import Path

import polars as pl
import pytest
from conftest import ROOT

from flows.demo import real_rows
from ospo.config import Model, load_config
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.files import read_json
from ospo.policy.weights import build_scratch, save_policy
from ospo.steps.real import run_transfer

TINY = Model(source="scratch", vocab_size=320, hidden_size=32, layers=1, heads=2, dtype="float32")


def test_policies_on_real_rows(
    esci_raw: Path, esci_tiny: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(
        ROOT / "params.yaml",
        [
            "retrievers.training=bm25",
            "retrievers.unseen=[static]",
            "algorithms=[ospo]",
            "evaluation.resamples=200",
            "presets.nano.rl.max_completion_tokens=4",
            f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        ],
    )
    with pytest.raises(InputError, match="holds no raw files"):
        run_transfer(config, "esci", tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no policy"):
        run_transfer(config, "esci", esci_raw)
    for seed, name in enumerate(("sft", "ospo")):
        network, tokenizer = build_scratch(TINY, esci_tiny.item_texts, seed)
        save_policy(network, tokenizer, TINY, Path("runs/esci") / name / "model")
    first = run_transfer(config, "esci", esci_raw)
    assert not first.skipped
    table = pl.read_parquet(first.directory / "evaluation.parquet")
    assert set(table["policy"]) == {"raw", "sft", "ospo"}
    assert set(table["scope"]) == {"pool"}
    page = (first.directory / "report.html").read_text(encoding="utf-8")
    assert "esci-real" in page
    assert "have never seen this catalogue" in page
    assert "ospo real --dataset esci --raw DIR" in page
    assert first.run_id in page
    assert read_json(first.directory / "details.json")["dataset"] == "esci-real"
    again = run_transfer(config, "esci", esci_raw)
    assert again.skipped
    assert again.run_id == first.run_id


def test_the_demo_takes_real_rows_for_sample_shops_only(tmp_path: Path) -> None:
    (tmp_path / "esci").mkdir()
    (tmp_path / "hm").mkdir()
    config = load_config(
        ROOT / "params.yaml", ["data.esci.raw=data/sample/esci", "data.hm.raw=/somewhere/else"]
    )
    assert real_rows(config, ["esci", "hm"], tmp_path) == {"esci": tmp_path / "esci"}
    assert real_rows(config, ["hm"], tmp_path) == {}
    with pytest.raises(InputError, match=r"none: holds no folder esci\. Fix: name a folder"):
        real_rows(config, ["esci"], tmp_path / "none")
