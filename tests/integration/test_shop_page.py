"""docs/howto/shop.md runs: from a made-up folder to an evaluated, registered policy, by its commands
alone, in a copy of the project; the same from a log.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from conftest import MICRO, ROOT
from documentation import commands
from shops import products, queries, write_beir, write_clicks, write_ubi
from test_docs_run import SHOP_PAGE, call

from ospo import registry
from ospo.config import edit_params, load_config
from ospo.data.dataset import load_prepared
from ospo.files import read_json

WRITE = {"my-shop": write_beir, "my-log": write_ubi, "my-clicks": write_clicks}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with three raw folders, small settings, and DVC without git."""
    folder = tmp_path_factory.mktemp("shop-page") / "project"
    shutil.copytree(ROOT / "ospo", folder / "ospo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "prefect.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    edit_params([*MICRO, "evaluation.resamples=200"], folder / "params.yaml")
    for name, write in WRITE.items():
        write(folder / "raw" / name)
    _dvc(folder, "init", "-q", "--no-scm")
    return folder


def _dvc(folder: Path, *words: str) -> None:
    place = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=folder, env=os.environ | {"PATH": place, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def _story() -> list[str]:
    """The page's commands in order."""
    found = [c.text for c in commands() if c.page == SHOP_PAGE and c.whole]
    assert len(found) == 15
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("dataset", WRITE)
def test_the_page_takes_a_folder_to_a_policy(
    dataset: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = [text for text in _story() if text.startswith(f"ospo data add {dataset} ")]
    assert len(own) == 1
    said = {}
    for text in _story():
        if text.startswith("ospo data add"):
            text = own[0] if "my-shop" in text else ""
        text = re.sub(r"/data/my-\w+", f"raw/{dataset}", text).replace("my-shop", dataset)
        if text.startswith("dvc "):
            _dvc(project, *text.split()[1:])
        elif text:
            words = re.findall(r'"[^"]*"|\S+', text)[1:]
            said[text] = call(*(word.strip('"') for word in words))
        if text.startswith("ospo config set policy="):
            assert load_config().policy == text.partition("=")[2]
            edit_params(["policy=nano"], Path("params.yaml"))  # the page's takes hours
    config = load_config()
    assert config.datasets[:2] == ["esci", "hm"]
    assert dataset in config.datasets
    data = load_prepared(f"data/prepared/{dataset}")
    assert sorted(data.item_ids) == sorted(item["_id"] for item in products())
    assert len(data.requests) == len(queries())
    summary = read_json(Path(f"runs/{dataset}/evaluation/summary.json"))
    assert {"raw", "sft", "grpo", "ospo"} <= set(summary["test"])
    assert summary["test"]["raw"]["static"] > 0
    assert Path(f"reports/{dataset}.html").is_file()
    versions = registry.models(config, (dataset,))
    assert {version.name for version in versions} == {f"ospo-rewriter-{dataset}"}
    assert sum("champion" in version.aliases for version in versions) == 1
    assert registry.champion(config, dataset).tags["algorithm"] in ("grpo", "ospo")
    assert f"ospo-rewriter-{dataset}" in {v.name for v in registry.models(config)}
    rewritten = said[f'ospo rewrite --dataset {dataset} "red chair for the kitchen"']
    assert rewritten.strip()


def test_attributes_of_ones_own_come_through(project: Path) -> None:
    file = project / "data/prepared/my-shop/catalogue.parquet"
    frame = pl.read_parquet(file)
    found = dict(frame["item_id", "material"].rows())
    assert found == {item["_id"]: item["material"] for item in products()}
