"""`make demo` from a fresh clone learns with other seeds than the one in params.yaml."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import ROOT

from ospo.files import read_json

# Ten minutes each on an idle machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def repeating(texts: pl.Series) -> float:
    """The share of texts that say a word twice."""
    said = [re.findall(r"\w+", text.lower()) for text in texts]
    return float(np.mean([len(set(words)) < len(words) for words in said]))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_demo_learns_with_another_seed(seed: int, tmp_path: Path) -> None:
    clone = tmp_path / "ospo"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    venv = Path(sys.executable).parents[1]
    (venv / ".installed").touch()  # the clone's copies of what it is made from are newer
    env = os.environ | {"PYTHONPATH": str(clone), "PREFECT_HOME": str(clone / ".prefect")}
    for command in (
        [str(venv / "bin/ospo"), "config", "set", f"seed={seed}"],
        ["make", "demo", f"VENV={venv}"],
    ):
        done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = read_json(clone / "reports/demo.json")
    for dataset in ("esci", "hm"):
        figures = report[dataset]
        for name in ("sft", "grpo", "ospo"):
            for retriever in ("minilm", "bm25", "static"):
                gain = figures[name][retriever] - figures["raw"][retriever]
                assert gain > 0.03, (dataset, name, retriever, figures)
        answers = pl.read_parquet(clone / f"runs/{dataset}/evaluation/answers.parquet").filter(
            (pl.col("split") == "test") & (pl.col("decoding") == "greedy")
        )
        repeats = {}
        for (policy,), rows in answers.group_by("policy"):
            assert rows["finished"].mean() > 0.95, (dataset, policy)
            repeats[policy] = repeating(rows["answer"])
            assert repeating(rows["text"]) < 0.05, (dataset, policy, "repeats itself")
        # A word that is said again counts once, so RL has nothing to gain by saying it again.
        for policy in ("grpo", "ospo"):
            assert repeats[policy] < repeats["sft"] + 0.05, (dataset, repeats)
        assert "champion" in report["registered"][dataset]["aliases"], report["registered"]
