"""What answers where no trained policy is better than a rule: the rule, by whatever way it is
asked, and it is said.
"""

import json
from pathlib import Path

import evaluation_shop
import mlflow
import polars as pl
import pytest
from registry_shop import QUERIES, Shop
from test_promotion import write_evaluation
from typer.testing import CliRunner

from ospo import registry
from ospo.cli import app
from ospo.errors import InputError
from ospo.evaluation.evaluate import evaluate
from ospo.evaluation.policies import RulePolicy, open_policy
from ospo.files import read_json, write_json, write_manifest
from ospo.policy.rules import RULES, write_rule
from ospo.policy.text import search_text
from ospo.registry import promotion
from ospo.serving.answering import RuleRewriter, load_rewriter
from ospo.serving.requests import RequestError, parse_request

BOUGHT = json.dumps(
    {
        "query": "New dress, ladieswear",
        "history": [{"name": "Anna", "type": "Dress"}, {"name": "Bea", "type": "Shirt"}],
    }
)
REPORT = "<p>figures</p>"
LIMITS = {"max_prompt_tokens": 64, "max_new_tokens": 8}


def judge(folder: Path, best: str, **validation: float) -> Path:
    """Make ``best`` the best rule of an evaluation by its validation requests; it equals the
    challenger on the test.
    """
    table = pl.read_parquet(folder / "evaluation.parquet")
    rules = [
        table.filter(policy="ospo").with_columns(pl.lit(name).alias("policy"))
        for name in validation
        if name != "raw"
    ]
    pl.concat([table, *rules]).write_parquet(folder / "evaluation.parquet")
    figures = {name: {"minilm": value} for name, value in {"raw": 0.4, **validation}.items()}
    write_json(folder / "summary.json", {"validation": figures, "test": {best: {"minilm": 0.41}}})
    return folder


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, promotion.Decision]:
    """A candidate that was no better than the history rule, and no champion before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder = tmp_path_factory.mktemp("answered")
        shop = Shop(folder)
        shop.register(seed=1, champion_if_first=False)
        evaluation = write_evaluation(folder / "e", {"minilm": 0.03, "bm25": 0.0}, against="raw")
        judge(evaluation, "history", history=0.5)
        (page := folder / "report.html").write_text(REPORT)
        return shop, promotion.consider(
            shop.config, "esci", evaluation, challenger="ospo", champion=None, report=page
        )


def test_the_best_rule_becomes_the_champion(answered: tuple[Shop, promotion.Decision]) -> None:
    shop, decision = answered
    assert decision.reason.endswith("; answering by the rule 'history' (version 2)")
    rule, candidate = registry.models(shop.config)
    assert (rule.aliases, candidate.aliases) == (("champion",), ("challenger",))
    assert (rule.tags["rule"], rule.tags["algorithm"]) == ("history", "rule: history")
    assert rule.tags["ndcg_at_10.minilm"] == "0.410000"
    assert "No policy, but a rule" in rule.description
    page = registry.policy_directory(shop.config, rule).parent / "report.html"
    assert page.read_text() == REPORT
    # Asked again, no second version: the rule is registered already.
    folder = shop.folder / "again"
    judge(write_evaluation(folder, {"minilm": 0.03}, spread=0.01), "history", history=0.5)
    summary = read_json(folder / "summary.json")
    write_json(folder / "summary.json", summary | {"test": {"history": {"minilm": 0.43}}})
    promotion.consider(shop.config, "esci", folder, challenger="ospo")
    rule, _ = registry.models(shop.config)
    assert rule.tags["ndcg_at_10.minilm"] == "0.430000", "figures are of the latest evaluation"
    assert rule.tags["data_md5"] == "0" * 32


def test_the_command_says_that_a_rule_answers(
    answered: tuple[Shop, promotion.Decision], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, _ = answered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shop.config.tracking.uri)
    result = CliRunner().invoke(app, ["rewrite", "--dataset", "esci", BOUGHT, "lamp,, lamp"])
    assert result.stdout.splitlines() == ["New dress, ladieswear anna", "lamp"]
    assert result.stderr.splitlines()[-1] == (
        "no trained policy is better than the rule history on esci; answering by the rule "
        "'history' (version 2)"
    )
    # A version that is named answers by itself, whatever the rules are worth.
    result = CliRunner().invoke(app, ["rewrite", "--dataset", "esci", "--version", "1", "lamp"])
    assert result.exit_code == 0
    assert "rule" not in result.stderr
    assert (
        result.stdout.strip()
        == registry.open_rewriter(shop.config, "esci", 1)[1].rewrite(["lamp"])[0]
    )
    shown = CliRunner().invoke(app, ["models"], env={"COLUMNS": "160"}).stdout
    [line] = [line for line in shown.splitlines() if "rule: history" in line]
    assert "@champion" in line


def test_serving_answers_by_the_rule(
    answered: tuple[Shop, promotion.Decision],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What MLflow serves as ``@champion`` is the rule, and its log says so."""
    shop, _ = answered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shop.config.tracking.uri)
    mlflow.set_tracking_uri(shop.config.tracking.uri)
    with caplog.at_level("WARNING"):
        model = mlflow.pyfunc.load_model("models:/ospo-rewriter-esci@champion")
    assert "answering by the rule 'history'" in caplog.text
    assert model.predict([BOUGHT, "lamp"]) == ["New dress, ladieswear anna", "lamp"]
    assert model.predict(["lamp"], params={"temperature": 1.0, "max_new_tokens": 4}) == ["lamp"]


def test_a_rule_that_needs_a_search_is_beaten_but_never_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feedback is the best rule: the candidate must beat it; the best rule that can, answers."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shop = Shop(tmp_path)
    shop.register(seed=1)  # the champion, by hand
    folder = write_evaluation(tmp_path / "e", {"minilm": 0.03, "bm25": 0.0})
    judge(folder, "raw", feedback=0.5, history=0.3)
    decision = promotion.consider(shop.config, "esci", folder, challenger="ospo", version=1)
    assert "against the best rule (rule: feedback)" in decision.reason
    used = registry.champion(shop.config, "esci")
    assert used.tags["rule"] == "raw"
    assert registry.rule_note(used, "esci") == (
        "no trained policy is better than the rule feedback on esci, which needs the search "
        "engine; answering by the rule 'raw' (version 2)"
    )
    # Its place is given back as any champion's.
    assert registry.rollback(shop.config, "esci").version == 1
    with pytest.raises(ValueError, match="needs a search"):
        registry.answer_by_rule(
            shop.config, "esci", RULES["feedback"], used, best="feedback", figures={}, decision={}
        )


def test_a_champion_that_is_better_than_the_rules_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shop = Shop(tmp_path)
    shop.register(seed=1)
    folder = write_evaluation(tmp_path / "e", {"minilm": -0.2, "bm25": 0.0})
    decision = promotion.consider(shop.config, "esci", folder, challenger="ospo", version=1)
    assert "answering by" not in decision.reason
    [only] = registry.models(shop.config)
    assert "champion" in only.aliases


@pytest.mark.parametrize("name", ["raw", "history"])
def test_what_is_served_is_what_was_scored(name: str, tmp_path: Path) -> None:
    write_rule(RULES[name], tmp_path)
    write_manifest(tmp_path)
    inputs = [*QUERIES, BOUGHT, "", "a\x00b,, a b"]
    served = load_rewriter(tmp_path, **LIMITS).rewrite(inputs)
    policy = open_policy(tmp_path, evaluation_shop.config(), None)
    assert isinstance(policy, RulePolicy)
    requests = [parse_request(value) for value in inputs[:-1]]
    scored = [c.answer for c in policy.complete(requests, None)]  # type: ignore[arg-type]
    assert served[:-1] == [search_text(text) for text in scored]
    assert served[-1] == "a b"  # what cannot be shown does not go out
    with pytest.raises(RequestError, match="unknown parameter"):
        load_rewriter(tmp_path, **LIMITS).rewrite(["x"], {"temperatur": 1})
    (tmp_path / "rule.json").write_text('{"rule": "raw" }')
    with pytest.raises(InputError, match="sha256"):
        load_rewriter(tmp_path, **LIMITS)


def test_a_folder_of_a_rule_that_searches_is_refused(tmp_path: Path) -> None:
    write_rule(RULES["feedback"], tmp_path)
    write_manifest(tmp_path)
    with pytest.raises(InputError, match=r"feedback needs a search.*name raw or history"):
        load_rewriter(tmp_path, **LIMITS)
    with pytest.raises(InputError, match="feedback needs a search"):
        open_policy(tmp_path, evaluation_shop.config(), None)
    with pytest.raises(ValueError, match="needs a search"):
        RuleRewriter(RULES["feedback"])


def test_a_rules_folder_is_evaluated_as_the_rule(tmp_path: Path) -> None:
    """As a champion that is a rule is, beside its challenger and on fresh data."""
    data = evaluation_shop.write_shop(tmp_path)
    write_rule(RULES["history"], tmp_path / "model")
    out = tmp_path / "out"
    summary = evaluate(
        evaluation_shop.config(), data, {"champion": tmp_path / "model"}, out, cache=None
    )
    assert summary["test"]["champion"] == summary["test"]["history"]
    assert len(read_json(out / "details.json")["policies"]["champion"]["hash"]) == 20
