"""The main job's steps on real parts, small: they run, skip what has not changed, and go on where
they stopped.
"""

import ast
import json
from pathlib import Path

import mlflow
import polars as pl
import pytest
from conftest import ROOT, micro_config

from ospo import registry, steps, tracking
from ospo.errors import OspoError
from ospo.evaluation.selection import best_rule
from ospo.files import read_json
from ospo.metrics import read_metrics
from ospo.policy.sources import policy_hash
from ospo.policy.weights import load_policy
from ospo.registry.store import connect
from ospo.steps.fresh import run_fresh
from ospo.steps.inputs import EVALUATION_SOURCES, TRAINING_SOURCES


def whole_job(settings):
    parents = steps.ParentRuns(prefect="test")
    results = [steps.run_sft(settings, "hm", parents)]
    results += [
        steps.run_rl(settings, "hm", algorithm, parents) for algorithm in settings.algorithms
    ]
    results.append(steps.run_evaluation(settings, "hm", parents))
    return {result.name: result for result in results}, steps.run_registration(settings, "hm")


@pytest.mark.timeout(
    600
)  # three evaluations and a registration: a minute, on a busy machine several
def test_the_whole_job_runs_registers_and_skips(workspace, monkeypatch):
    settings = micro_config()
    assert steps.finished_job(settings, "hm") is None
    results, registered = whole_job(settings)
    assert not any(result.skipped for result in results.values())
    summary = read_json("runs/hm/evaluation/summary.json")
    assert set(summary["test"]) == {"raw", "history", "feedback", "sft", "grpo", "ospo"}
    assert all(set(row) == {"static", "bm25"} for row in summary["test"].values())
    # Trained for three steps, it is no better than a rule: a candidate, and a rule answers.
    assert registered["aliases"] == ["challenger"]
    assert "not" in registered["decision"]
    models = [policy_hash(f"runs/hm/{name}/model") for name in (registered["policy"], "sft")]
    assert registered["same_as_sft"] == (models[0] == models[1])
    answering, version = registry.models(settings)
    assert version.tags["same_as_sft"] == str(registered["same_as_sft"]).lower()
    # The rule to beat is chosen on validation requests.
    rule = best_rule(summary, "static")
    assert json.loads(version.tags["decision"])["against"] == rule
    assert answering.tags["rule"] == best_rule(summary, "static", standalone=True)
    assert answering.aliases == ("champion",)
    assert registry.rewrite(settings, "hm", ["a dress"]) == ["a dress"]
    registry.promote(settings, "hm")

    client = mlflow.MlflowClient(tracking.tracking_uri(settings, workspace))
    for result in results.values():
        run = client.get_run(result.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["ospo.dataset"] == "hm"
    ospo_run = client.get_run(results["ospo"].run_id)
    files = {item.path for item in client.list_artifacts(ospo_run.info.run_id)}
    warm = client.get_run(results["sft"].run_id)
    assert "validation.json" in {i.path for i in client.list_artifacts(warm.info.run_id)}
    looks = read_json(results["sft"].directory / "validation.json")
    assert warm.data.metrics["validation/ndcg"] == pytest.approx(looks[-1]["ndcg"])
    assert {"policy", "config.json", "completions.parquet", "trainer_args.json", "tables"} <= files
    table = json.loads(
        Path(client.download_artifacts(ospo_run.info.run_id, "tables/completions.json")).read_text()
    )
    assert {"request_id", "completion", "reward", "credit"} <= set(table["columns"])
    load_policy(
        Path(client.download_artifacts(ospo_run.info.run_id, "policy"))
    )  # whole: its checksums are looked at
    shown = Path(
        client.download_artifacts(results["evaluation"].run_id, "tables/ndcg_at_10.json")
    ).read_text()
    assert [row[0] for row in json.loads(shown)["data"]] == [
        "raw",
        "history",
        "feedback",
        "sft",
        "grpo",
        "ospo",
    ]
    assert ospo_run.data.params["credit.redistribution"] == settings.credit.redistribution
    used = json.loads((results["ospo"].directory / "trainer_args.json").read_text())["credit"]
    assert used["estimator_used"] in ("exact", "surrogate", "bayes")
    assert ospo_run.data.params["credit.estimator_used"] == used["estimator_used"]
    grpo_params = client.get_run(results["grpo"].run_id).data.params
    assert not {"credit.redistribution", "credit.estimator_used"} & set(grpo_params)
    assert len(registry.rewrite(settings, "hm", ["a dress"])) == 1
    shown = (results["evaluation"].directory / "report.html").read_bytes()
    for item in (answering, version):  # the rule as well
        page = Path(mlflow.artifacts.download_artifacts(item.uri)) / "artifacts" / "report.html"
        assert page.read_bytes() == shown
    for name in ("sft", "grpo", "ospo"):
        trained = client.get_run(results[name].run_id)
        note = trained.data.tags["mlflow.note.content"]
        assert "on **hm** (" in note
        assert "400 products" in note
        assert "At the end of training (mean of the last 1 of" in note
        assert "held-out requests under static, nDCG@10: **" in note
        assert "95 % interval" in note
        for retriever, value in summary["test"][name].items():
            own = trained.data.metrics[f"evaluation/{retriever}/ndcg_at_10"]
            assert own == pytest.approx(value)
    log = read_metrics(results["ospo"].directory / "metrics.jsonl")
    assert ospo_run.data.metrics["final/reward"] == pytest.approx(log[-1]["reward"])
    of_evaluation = client.get_run(results["evaluation"].run_id).data.tags["mlflow.note.content"]
    assert of_evaluation.startswith("**Evaluation of SFT, GRPO, OSPO** on **hm**")

    # The champion is asked as it is served, whatever the preset of now allows.
    found = run_fresh(micro_config("presets.nano.rl.max_completion_tokens=2"), "hm")
    asked = pl.read_parquet("runs/hm/fresh/answers.parquet").filter(policy="champion")
    assert 2 < asked["tokens"].max() <= version.limits.answer
    assert set(found["figures"]) == {"raw", "history", "feedback", "champion"}
    assert (
        json.loads(registry.champion(settings, "hm").tags["fresh"])["figures"] == found["figures"]
    )
    recorded = client.get_run(found["run_id"]).data.metrics
    assert recorded["champion/bm25/ndcg_at_10"] == pytest.approx(
        found["figures"]["champion"]["bm25"]
    )
    assert {"evaluation.parquet", "report.html", "summary.json"} <= {
        item.path for item in client.list_artifacts(found["run_id"])
    }

    again, same = whole_job(settings)
    assert all(result.skipped for result in again.values())
    assert (same["version"], same["aliases"]) == (registered["version"], ["champion"])
    assert {r.run_id for r in again.values()} == {r.run_id for r in results.values()}

    assert steps.finished_job(settings, "hm") == {"summary": summary, "registered": same}
    for change in ("credit.budget=8", "evaluation.max_requests=3", "algorithms=[grpo]"):
        assert steps.finished_job(micro_config(change), "hm") is None, change
    # What was evaluated is what is registered, with the parameters of the evaluation.
    done = read_json("runs/hm/evaluation/step.json")["fingerprint"]
    assert json.loads(version.tags["decision"])["evaluation"] == version.tags["evaluation"] == done
    with pytest.raises(OspoError, match="`ospo evaluate --dataset hm`, with the same --set"):
        steps.run_registration(micro_config("evaluation.max_requests=3"), "hm")
    weights = next(results["grpo"].model.glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert steps.finished_job(settings, "hm") is None
    weights.write_bytes(whole)
    version = registry.models(settings)[-1]
    with connect(settings, ".") as store:
        store.set_model_version_tag(version.name, str(version.version), "fingerprint", "another")
        assert steps.finished_job(settings, "hm") is None
        known = version.tags["fingerprint"]
        store.set_model_version_tag(version.name, str(version.version), "fingerprint", known)
        store.set_model_version_tag(version.name, str(version.version), "evaluation", "another")
        assert steps.finished_job(settings, "hm") is None
        store.set_model_version_tag(version.name, str(version.version), "evaluation", done)
    assert steps.finished_job(settings, "hm") is not None

    # Credit is an input of OSPO's step alone: GRPO and SFT stay as they are.
    changed, _ = whole_job(micro_config("credit.budget=8"))
    assert {name for name, result in changed.items() if not result.skipped} == {
        "ospo",
        "evaluation",
    }

    # A candidate meets the champion as both are served; serving never writes more than so much.
    monkeypatch.setattr("ospo.registry.candidates.MAX_NEW_TOKENS", 2)
    whole_job(micro_config("presets.nano.rl.max_completion_tokens=3"))
    met = pl.read_parquet("runs/hm/promotion/answers.parquet").filter(decoding="greedy")
    longest = {policy: part["tokens"].max() for (policy,), part in met.group_by("policy")}
    challenger = next(name for name in ("ospo", "grpo") if name in longest)
    assert longest["champion"] > 3 > longest[challenger] == 2


def test_an_interrupted_step_goes_on_in_the_same_run(workspace, monkeypatch):
    settings = micro_config("presets.nano.rl.steps=4")
    steps.run_sft(settings, "hm")
    logged: list[int] = []
    write = tracking.Run.log_metrics

    def interrupt(self, step, metrics):
        write(self, step, metrics)
        logged.append(step)
        if len(logged) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Run, "log_metrics", interrupt)
        with pytest.raises(KeyboardInterrupt):
            steps.run_rl(settings, "hm", "grpo")
    state = read_json("runs/hm/.grpo.next/step.json")
    assert not state["finished"]
    client = mlflow.MlflowClient(tracking.tracking_uri(settings, workspace))
    assert client.get_run(state["run_id"]).info.status == "KILLED"

    result = steps.run_rl(settings, "hm", "grpo")
    assert result.run_id == state["run_id"]
    assert client.get_run(result.run_id).info.status == "FINISHED"
    history = [metric.step for metric in client.get_metric_history(result.run_id, "reward")]
    assert sorted(history) == sorted(set(history)), "a step was logged twice"
    assert max(history) == 4


def test_evaluation_without_policies_says_what_to_run(workspace):
    with pytest.raises(OspoError, match="ospo sft --dataset hm"):
        steps.run_evaluation(micro_config(), "hm")


def test_registration_without_an_evaluation_says_what_to_run(workspace):
    with pytest.raises(OspoError, match="`ospo evaluate --dataset hm`"):
        steps.run_registration(micro_config(), "hm")


def imported(module: Path) -> set[Path]:
    """Files of the package that a file imports, at its top or within its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    places = [ROOT.joinpath(*name.split(".")) for name in names if name.startswith("ospo.")]
    return {
        f
        for place in places
        for f in (place.with_suffix(".py"), place / "__init__.py")
        if f.is_file()
    }


# What the steps call. An algorithm's trainer is imported by its name: all of training counts.
STARTS = {
    "training": [
        "training",
        "retrieval",
        "reward/search.py",
        "data/dataset.py",
        "evaluation/hits.py",
    ],
    "evaluation": ["evaluation/evaluate.py", "reports/evaluation.py"],
}


@pytest.mark.parametrize(
    ("step", "sources"), [("training", TRAINING_SOURCES), ("evaluation", EVALUATION_SOURCES)]
)
def test_a_fingerprint_covers_all_code_that_the_step_runs(step, sources):
    found: set[Path] = set()
    todo = {
        file
        for start in STARTS[step]
        for file in [ROOT / "ospo" / start, *(ROOT / "ospo" / start).rglob("*.py")]
        if file.is_file()
    }
    while todo:
        found |= todo
        todo = {file for module in todo for file in imported(module)} - found
    # What reads parameters and files changes no result: parameters and data are in the fingerprint
    # themselves.
    elsewhere = (
        "config/__init__.py",
        "config/loading.py",
        "config/data.py",
        "config/formats.py",
        "config/presets.py",
        "config/retrievers.py",
        "config/section.py",
        "config/strict_yaml.py",
        "config/schema.py",
        "errors.py",
        "files.py",
        "paths.py",
        "tracking/",
    )
    names = {file.relative_to(ROOT / "ospo").as_posix() for file in found}
    assert len(names) > 30
    assert {name for name in names if not name.startswith((*sources, *elsewhere))} == set()
    unused = [part for part in sources if not any(name.startswith(part) for name in names)]
    assert unused == [], "no step depends on these"


def test_a_second_run_on_the_same_dataset_is_refused(workspace):
    with (
        steps.dataset_lock("hm"),
        pytest.raises(OspoError, match="another run"),
        steps.dataset_lock("hm"),
    ):
        pass


def test_missing_data_names_the_command(workspace):
    with pytest.raises(OspoError, match="dvc repro vectors@esci"):
        steps.run_sft(micro_config(), "esci")
