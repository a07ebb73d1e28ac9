"""`make real` from raw files to the table, over two seeds; what is done is not done again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from conftest import ROOT

from ospo.config import load_config
from ospo.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = [
    "policy=nano",
    "presets.nano.sft={steps: 4, batch_size: 4, learning_rate: 1.0e-3, targets: history}",
    "presets.nano.rl.steps=2",
    "presets.nano.rl.prompts_per_step=2",
    "presets.nano.rl.generations=2",
    "presets.nano.rl.validate_every=0",
    "presets.nano.rl.max_completion_tokens=8",
    "algorithms=[grpo, ospo]",
    "retrievers.training=bm25",
    "retrievers.unseen=[static]",
    "evaluation={max_requests: 30, resamples: 200, catalogue: false}",
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe") / "ospo"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def call(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(clone),
        "PREFECT_HOME": str(clone / ".prefect"),
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=clone, env=env, capture_output=True, text=True
    )


def recipe(clone: Path, seeds: str) -> subprocess.CompletedProcess[str]:
    changes = [part for change in SMALL for part in ("--set", change)]
    given = ["--format", "hm", "--raw", "raw", "--name", "mine", "--seeds", seeds]
    return call(clone, "-m", "flows.recipe", *given, *changes)


def test_the_recipe_goes_from_raw_files_to_the_table(clone: Path) -> None:
    sizes = ["sample.hm.customers=120", "sample.hm.articles=400", "sample.hm.days=500"]
    sets = [part for size in sizes for part in ("--set", size)]
    made = call(clone, "-m", "ospo.cli", "sample", "hm", "--out", "raw", *sets)
    assert made.returncode == 0, made.stderr
    first = recipe(clone, "0")
    assert first.returncode == 0, first.stderr[-3000:]
    section = load_config(clone / "params.yaml").dataset("mine")
    assert (section.history, section.holdout_days) == (20, 180)  # type: ignore[union-attr]
    for words in ("rule: history", "against raw query", "against SFT", "p = ", "version 1"):
        assert words in first.stdout
    assert (clone / "reports/mine.html").is_file()
    # Every later command and nightly run goes on with the recipe's parameters, unless told others.
    own = load_config(clone / "params.yaml", dataset="mine")
    assert (own.retrievers.training, own.preset.rl.steps) == ("bm25", 2)
    assert load_config(clone / "params.yaml").retrievers.training == "minilm"
    later = call(clone, "-m", "ospo.cli", "evaluate", "--dataset", "mine")
    assert later.returncode == 0, later.stderr
    assert "unchanged since the last run" in later.stdout, later.stdout

    # A second seed: trained anew, while the first one's steps are skipped.
    before = (clone / "runs/mine/sft/step.json").read_text()
    both = recipe(clone, "0,1")
    assert both.returncode == 0, both.stderr[-3000:]
    assert (clone / "reports/mine-seeds.html").is_file()
    table = pl.read_parquet(clone / "runs/mine/seeds/evaluation/evaluation.parquet")
    trained = table.filter(pl.col("policy").is_in(["sft", "grpo", "ospo"]))
    assert set(trained["seed"]) == {0, 1}
    assert "2 training seed(s)" in both.stdout
    again = read_json(clone / "runs/mine/sft/step.json")
    assert again["fingerprint"] == json.loads(before)["fingerprint"]


def test_a_name_that_reads_another_folder_is_refused(clone: Path) -> None:
    (clone / "other").symlink_to(clone / "raw")
    given = ["--format", "hm", "--raw", "other", "--name", "mine"]
    done = call(clone, "-m", "flows.recipe", *given)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "ospo: params.yaml: data.mine: reads hm files in raw, not hm files in other. "
        "Fix: choose another --name"
    )
    missing = call(clone, "-m", "flows.recipe", "--format", "hm", "--raw", "nowhere")
    assert missing.returncode == 2
    assert missing.stderr.startswith("ospo: nowhere")
    assert "real-hm" not in (clone / "params.yaml").read_text(), "nothing is written"
