"""A small project for the page's tests: a prepared shop with hostile texts, an evaluation, and a
registry with a champion, a challenger and the decisions on them.
"""

from pathlib import Path

import polars as pl
from conftest import ROOT
from evaluation_shop import oracle, tables, write_answers
from registry_shop import Shop, make_policy

from ospo import registry
from ospo.config import Config, edit_params, load_config
from ospo.data.dataset import PreparedData, load_prepared
from ospo.evaluation.evaluate import evaluate
from ospo.files import write_json
from ospo.paths import PREPARED
from ospo.steps import policy_directory

HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
HOSTILE_QUERY = 'dress"><img src="http://evil.example/x" onerror="window.hacked=1">'
SETTINGS = [
    "retrievers.training=bm25",
    "retrievers.unseen=[static]",
    "evaluation.resamples=200",
    "evaluation.max_requests=24",
    "presets.nano.rl.max_completion_tokens=8",
]
DECISION = {
    "promoted": True,
    "reason": "better: +0.0512 nDCG@10 on bm25 (p = 0.0010)",
    "figures": {
        "bm25": {"difference": 0.0512, "low": 0.021, "high": 0.081, "p": 0.001},
        "static": {"difference": -0.004, "low": -0.01, "high": 0.002, "p": 0.31},
    },
    "requests": 24,
    "against": "raw",
    "rule": {"name": "raw", "figures": {}},
}


def write_data(folder: Path) -> PreparedData:
    """Prepared data of data set ``esci`` below ``folder``: every dress has a hostile title, one
    test request a hostile query.
    """
    made = tables(requests=60)
    title = pl.when(pl.col("category") == "dress").then(pl.col("title") + HOSTILE)
    made["catalogue"] = made["catalogue"].with_columns(title=title.otherwise(pl.col("title")))
    hostile = pl.when(pl.col("request_id") == "r00006").then(pl.lit(HOSTILE_QUERY))
    made["requests"] = made["requests"].with_columns(query=hostile.otherwise(pl.col("query")))
    place = folder / PREPARED / "esci"
    place.mkdir(parents=True)
    for name, table in made.items():
        table.write_parquet(place / f"{name}.parquet")
    write_json(place / "stats.json", {"read": {}, "kept": {}, "dropped": {}})
    return load_prepared(place)


def settings(folder: Path) -> Config:
    """A params.yaml in ``folder`` with the registry there."""
    file = folder / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    edit_params([*SETTINGS, f"tracking.uri=sqlite:///{folder}/mlflow.db"], file)
    return load_config(file)


def write_project(folder: Path) -> Config:
    """Everything, in the working directory ``folder``."""
    config, data = settings(folder), write_data(folder)
    answers = write_answers(folder / "answers.jsonl", data, oracle)
    evaluate(config, data, {"sft": answers}, folder / "runs/esci/evaluation")
    make_policy(config, policy_directory("esci", "sft"), 7)
    shop = Shop(folder)
    shop.config = config
    shop.register(seed=0)
    shop.register(seed=1)
    registry.promote(config, "esci", 1, decision=DECISION)
    refused = DECISION | {"promoted": False, "reason": "not better: -0.0100 nDCG@10 on bm25"}
    registry.note(config, "esci", 2, decision=refused)
    return config
