"""`dvc repro` rebuilds all data byte for byte and re-runs exactly what changed; metrics, plots and
a remote.
"""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import ROOT, TINY
from dvc.repo import Repo

from ospo.config import edit_params
from servers.dvc import up_to_date

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
}


def dvc(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=project,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def outs(project: Path) -> dict[str, str]:
    stages = yaml.safe_load((project / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def git(project: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=project, check=True, capture_output=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A small copy of the project under git, its data built."""
    folder = tmp_path_factory.mktemp("dvc") / "project"
    shutil.copytree(ROOT / "ospo", folder / "ospo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    edit_params(
        [*TINY, "retrievers.training=static", "retrievers.unseen=[bm25]"], folder / "params.yaml"
    )
    git(folder, "init", "-q")
    dvc(folder, "init", "-q")
    dvc(folder, "config", "core.analytics", "false")
    assert stages_run(dvc(folder, "repro")) == EVERY
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "data")
    return folder


EVERY = {
    f"{stage}@{dataset}"
    for stage in ("sample", "prepare", "profile", "vectors")
    for dataset in ("esci", "hm")
}


def test_everything_is_built_again_to_the_same_bytes(project):
    first = outs(project)
    assert stages_run(dvc(project, "repro")) == set()
    assert stages_run(dvc(project, "repro", "--force", "--no-run-cache")) == EVERY
    assert outs(project) == first


def test_what_is_up_to_date_counts_the_stages_before_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    params = project / "params.yaml"
    before = params.read_text()
    assert up_to_date(["vectors@esci", "vectors@hm"])
    try:
        edit_params(["sample.esci.queries=41"], params)
        assert not up_to_date(["vectors@esci"])
        assert up_to_date(["vectors@hm"])
    finally:
        params.write_text(before)
    assert not up_to_date(["vectors@nothing"])


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and name != "gains"
        leaves |= _leaves(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return leaves


def _changed(value: Any) -> Any:
    """Another value of the same kind; DVC compares and does not validate."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "another"]
    return {**value, "another": 1} if isinstance(value, dict) else f"{value}x"


def _stages_of(key: str) -> set[str]:
    """The stages that a parameter is an input of."""
    section, _, rest = key.partition(".")
    both = {"esci", "hm"}
    if key == "seed":
        return {f"{stage}@{dataset}" for stage in ("sample", "prepare") for dataset in both}
    if section == "sample":
        return {f"sample@{rest.split('.')[0]}"}
    if section == "data":
        named = rest.split(".")[0]
        return {f"prepare@{dataset}" for dataset in ({named} & both or both)}
    if key in (
        "retrievers.training",
        "retrievers.unseen",
        "retrievers.dtype",
        "evaluation.catalogue",
    ):
        return {f"vectors@{dataset}" for dataset in both}
    return set()


def _stale(project: Path) -> set[str]:
    """Stages that `dvc status` calls changed."""
    with Repo(project) as repo:
        return {name.rpartition(":")[2] for name in repo.status()}


def _status(project: Path, values: dict[str, Any]) -> set[str]:
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return _stale(project)


def test_each_parameter_changes_exactly_the_stages_it_goes_into(project):
    """One key at a time; those that no stage reads, training's and others, all at once: none may
    count.
    """
    file = project / "params.yaml"
    before = file.read_bytes()
    values = yaml.safe_load(before)
    elsewhere = copy.deepcopy(values)
    tried = 0
    try:
        for key, value in _leaves(values).items():
            *parents, name = key.split(".")
            edited = elsewhere if not _stages_of(key) else copy.deepcopy(values)
            section = edited
            for parent in parents:
                section = section[parent]
            section[name] = _changed(value)
            if _stages_of(key):
                tried += 1
                assert _status(project, edited) == _stages_of(key), key
        assert tried > 30
        assert elsewhere["presets"] != values["presets"]
        assert _status(project, elsewhere) == set()
    finally:
        file.write_bytes(before)


def test_each_input_file_changes_exactly_the_stages_that_read_it(project):
    dvc(project, "repro")
    raw = "data/sample/hm"
    for name, expected in (
        (
            f"{raw}/transactions_train.csv",
            {"sample@hm", "prepare@hm"},
        ),  # the sample's output, preparation's input
        ("data/prepared/hm/pools.parquet", {"prepare@hm", "profile@hm", "vectors@hm"}),
        ("ospo/data/no_queries.jsonl", {"prepare@hm"}),
        ("ospo/data/esci.py", {"prepare@esci"}),
        ("ospo/data/shop_hm.py", {"sample@hm"}),
        ("ospo/reports/data_profile.py", {"profile@esci", "profile@hm"}),
        ("ospo/retrieval/vectors.py", {"vectors@esci", "vectors@hm"}),
        ("ospo/training/sft.py", set()),
    ):
        file = project / name
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        try:
            assert _stale(project) == expected, name
        finally:
            file.write_bytes(before)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        (
            "data.hm.history=5",
            {"prepare@hm", "profile@hm"},
        ),  # catalogue and pools, and so the vectors, stay
        ("data.esci.gains={E: 1.0, S: 0.2, C: 0.01, I: 0.0}", {"prepare@esci", "profile@esci"}),
        ("sample.hm.days=50", {"sample@hm", "prepare@hm", "profile@hm", "vectors@hm"}),
        ("reward.k=20", set()),
    ],
)
def test_exactly_what_changed_runs_again(project, assignment, expected):
    dvc(project, "repro")
    edit_params([assignment], project / "params.yaml")
    assert stages_run(dvc(project, "repro")) == expected


def test_metrics_and_plots_show_the_data(project, tmp_path):
    shown = json.loads(dvc(project, "metrics", "show", "--json"))[""]["data"]
    kept = shown["data/prepared/esci/stats.json"]["data"]["kept"]
    requests = pl.read_parquet(project / "data/prepared/esci/requests.parquet")
    assert kept["requests"] == len(requests)
    dvc(project, "plots", "show", "-o", str(tmp_path / "page"))
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    for name in ("esci/plots/words_in_a_query.csv", "hm/plots/left_out_by_reason.csv"):
        assert f"data/profile/{name}" in page
    splits = json.loads(
        dvc(project, "plots", "show", "--json", "data/profile/esci/plots/requests_by_split.csv")
    )
    [chart] = splits["data"]["data/profile/esci/plots/requests_by_split.csv"]
    points = {point["name"]: int(point["count"]) for point in chart["content"]["data"]["values"]}
    assert points == dict(requests["split"].value_counts().rows())


def test_a_clone_pulls_from_a_remote_and_runs_nothing(project, tmp_path):
    dvc(project, "repro")
    dvc(project, "remote", "add", "-f", "-d", "store", str(tmp_path / "store"))
    dvc(project, "push", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "remote")
    git(tmp_path, "clone", "-q", str(project), "clone")
    clone = tmp_path / "clone"
    assert not (clone / "data").exists()
    dvc(clone, "pull", "-q")
    for path in (
        "prepared/esci/pools.parquet",
        "prepared/hm/stats.json",
        "profile/hm/profile.html",
    ):
        assert (clone / "data" / path).read_bytes() == (project / "data" / path).read_bytes()
    assert stages_run(dvc(clone, "repro")) == set()
    assert outs(clone) == outs(project)


def test_raw_files_of_ones_own_take_the_same_path(project, tmp_path):
    raw = tmp_path / "my shop"
    shutil.copytree(project / "data/sample/esci", raw)
    before = outs(project)
    edit_params([f"data.esci.raw={raw}"], project / "params.yaml")
    assert stages_run(dvc(project, "repro", "prepare@esci")) == {"prepare@esci"}
    after = outs(project)
    assert {
        path: md5 for path, md5 in before.items() if "prepared/esci" in path
    }.items() <= after.items()


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
