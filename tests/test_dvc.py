"""`dvc repro` rebuilds all data from the raw files, byte for byte, and re-runs exactly what changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY

from ospo.config import edit_params

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
}


def dvc(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=project, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def outs(project: Path) -> dict[str, str]:
    stages = yaml.safe_load((project / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A small copy of the project, its data not built yet."""
    folder = tmp_path_factory.mktemp("dvc") / "project"
    shutil.copytree(ROOT / "ospo", folder / "ospo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    edit_params([*TINY, "retrievers.training=static", "retrievers.unseen=[bm25]"], folder / "params.yaml")
    dvc(folder, "init", "--no-scm", "-q")
    dvc(folder, "config", "core.analytics", "false")
    return folder


def test_everything_is_built_and_built_again_to_the_same_bytes(project):
    every = {f"{stage}@{dataset}" for stage in ("sample", "prepare", "vectors") for dataset in ("esci", "hm")}
    assert stages_run(dvc(project, "repro")) == every
    first = outs(project)
    assert stages_run(dvc(project, "repro")) == set()
    assert stages_run(dvc(project, "repro", "--force", "--no-run-cache")) == every
    assert outs(project) == first


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("data.hm.history=5", {"prepare@hm"}),  # the catalogue, and so its vectors, stay as they are
        ("data.esci.gains={E: 1.0, S: 0.2, C: 0.01, I: 0.0}", {"prepare@esci"}),
        ("sample.hm.days=50", {"sample@hm", "prepare@hm"}),
        ("reward.k=20", set()),
        ("presets.nano.rl.steps=7", set()),
    ],
)
def test_exactly_what_changed_runs_again(project, assignment, expected):
    dvc(project, "repro")
    edit_params([assignment], project / "params.yaml")
    assert stages_run(dvc(project, "repro")) == expected


def test_raw_files_of_ones_own_take_the_same_path(project, tmp_path):
    raw = tmp_path / "my shop"
    shutil.copytree(project / "data/sample/esci", raw)
    before = outs(project)
    edit_params([f"data.esci.raw={raw}"], project / "params.yaml")
    assert stages_run(dvc(project, "repro", "prepare@esci")) == {"prepare@esci"}
    after = outs(project)
    assert {path: md5 for path, md5 in before.items() if "prepared/esci" in path}.items() <= after.items()


def test_bad_raw_input_fails_with_one_clear_line_and_leaves_nothing(project, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(project / "data/sample/esci", raw)
    (raw / "shopping_queries_dataset_products.parquet").write_bytes(b"not parquet")
    edit_params([f"data.esci.raw={raw}"], project / "params.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "prepare@esci"],
        cwd=project, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("ospo: ")]
    assert len(said) == 1
    assert "shopping_queries_dataset_products.parquet" in said[0]
    assert "Fix:" in said[0]
    assert not (project / "data/prepared/esci/catalogue.parquet").exists()
