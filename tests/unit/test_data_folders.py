"""Folders are folders, whatever their names hold: polars takes ``*``, ``?`` and ``[ab]`` for
patterns unless it is told not to. And what a preparation must hold to be of use.
"""

import ast
import shutil
from pathlib import Path

import polars as pl
import pytest
from conftest import ROOT

from ospo.data.dataset import load_prepared, pool_items
from ospo.data.prepare import prepare
from ospo.data.schemas import SPLITS
from ospo.errors import InputError
from ospo.reports.data_check import check_folder

NAMES = ["shop*", "shop[ab]", "shop?", "shop[!x]", "**"]
BESIDE = ["shopa", "shopb", "shop1"]


@pytest.mark.parametrize("dataset", ["esci", "hm"])
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_whose_name_looks_like_a_pattern(dataset, name, request, tmp_path, tiny_config):
    """Another shop's rows never come in, raw or prepared, and the folder's own are found."""
    raw = request.getfixturevalue(f"{dataset}_raw")
    for beside in BESIDE:
        shutil.copytree(raw, tmp_path / "raw" / beside)
        for file in (tmp_path / "raw" / beside).iterdir():
            file.write_bytes(b"another shop\n")
    shutil.copytree(raw, tmp_path / "raw" / name)
    prepare(dataset, raw, tmp_path / "usual", tiny_config)
    prepare(dataset, tmp_path / "raw" / name, tmp_path / "out" / name, tiny_config)
    for beside in BESIDE:
        shutil.copytree(tmp_path / "out" / name, tmp_path / "out" / beside)
        for file in (tmp_path / "out" / beside).glob("*.parquet"):
            file.write_bytes(b"another shop\n")
    for file in (tmp_path / "usual").iterdir():
        assert (tmp_path / "out" / name / file.name).read_bytes() == file.read_bytes()
    data = load_prepared(tmp_path / "out" / name)
    assert data.requests == load_prepared(tmp_path / "usual").requests
    assert pool_items(tmp_path / "out" / name).equals(pool_items(tmp_path / "usual"))
    for folder in ("raw", "out"):
        check = check_folder(tmp_path / folder / name, tiny_config)
        assert check.problems == []


GLOBBING = {"scan_csv", "read_csv", "scan_parquet", "read_parquet", "scan_ipc", "read_ipc"}
NEVER = {
    "read_parquet_schema",
    "scan_ndjson",
    "read_ndjson",
    "read_json",
    "scan_iceberg",
    "scan_delta",
}
"""Readers without the switch: none may take a user's path."""


@pytest.mark.parametrize(
    "file",
    sorted(
        file
        for room in ("ospo", "flows", "servers", "benchmarks")
        for file in (ROOT / room).rglob("*.py")
    ),
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_polars_never_takes_a_path_for_a_pattern(file: Path):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        base = node.func.value
        if not (isinstance(base, ast.Name) and base.id in ("pl", "polars")):
            continue
        assert node.func.attr not in NEVER, f"line {node.lineno}"
        if node.func.attr in GLOBBING:
            values = {key.arg: key.value for key in node.keywords}
            switch = values.get("glob")
            assert isinstance(switch, ast.Constant), f"line {node.lineno}: no glob=False"
            assert switch.value is False, f"line {node.lineno}: no glob=False"


def _only(side: str, tmp_path: Path, esci_raw: Path, config) -> Path:
    """Raw ESCI files of which every query falls on one side of the split."""
    prepare("esci", esci_raw, tmp_path / "all", config)
    queries = {request.query: request.split for request in load_prepared(tmp_path / "all").requests}
    raw = tmp_path / "raw"
    shutil.copytree(esci_raw, raw)
    file = raw / "shopping_queries_dataset_examples.parquet"
    sides = ("validation", "test") if side == "held out" else (side,)
    kept = [query for query, split in queries.items() if split in sides]
    pl.read_parquet(file).filter(pl.col("query").is_in(kept)).write_parquet(file)
    return raw


@pytest.mark.parametrize("side", SPLITS)
def test_a_preparation_without_training_or_test_requests_is_refused(
    side, esci_raw, tmp_path, tiny_config
):
    raw = _only(side, tmp_path, esci_raw, tiny_config)
    names = {"train": "training", "validation": "validation", "test": "test"}
    missing = [names[split] for split in SPLITS if split != side]
    with pytest.raises(InputError, match=f"gives no {missing[0]} and no {missing[1]} request"):
        prepare("esci", raw, tmp_path / "out", tiny_config)
    assert not (tmp_path / "out").exists()
    assert "request" in check_folder(raw, tiny_config).problems[0]


def test_evaluation_alone_needs_no_training_requests(esci_raw, tmp_path, tiny_config):
    raw = _only("held out", tmp_path, esci_raw, tiny_config)
    with pytest.raises(InputError, match="gives no training request"):
        prepare("esci", raw, tmp_path / "out", tiny_config)
    stats = prepare("esci", raw, tmp_path / "out", tiny_config, evaluation_only=True)
    assert stats["kept"]["train"] == 0 < stats["kept"]["test"]
    only_train = _only("train", tmp_path / "t", esci_raw, tiny_config)
    with pytest.raises(InputError, match="gives no validation and no test request"):
        prepare("esci", only_train, tmp_path / "none", tiny_config, evaluation_only=True)
