"""Rules as policies: what each writes, that none sees what it must not, and where they stand."""

from dataclasses import replace
from pathlib import Path

import evaluation_shop as shop
import numpy as np
import polars as pl
import pytest

from ospo.data.dataset import PreparedData
from ospo.data.request import Purchase, Request
from ospo.errors import InputError
from ospo.evaluation.analysis import analyse
from ospo.evaluation.evaluate import evaluate
from ospo.evaluation.hits import FirstHits
from ospo.evaluation.selection import best_rule
from ospo.files import read_json
from ospo.policy.rules import RULES, read_rule, write_rule
from ospo.reports.compare import compare, resolve


def bought(*pairs: tuple[str, str]) -> tuple[Purchase, ...]:
    return tuple(Purchase(name=name, type=kind) for name, kind in pairs)


@pytest.mark.parametrize(
    ("query", "history", "text"),
    [
        # The latest, not the oldest; of the type, not any; as it is where there is none.
        ("new dress, ladieswear", [("Anna", "Dress"), ("Bea", "Dress")], "Bea"),
        ("dress", [("Anna", "Dress"), ("Bea", "Shirt")], "Anna"),
        ("dress", [("Bea", "Shirt")], ""),
        ("dress", [], ""),
        # Whole words, and the longest type: a t-shirt is no shirt, a vest top no top.
        ("t-shirt", [("Bea", "Shirt")], ""),
        ("vest top in divided", [("Vera", "Vest top"), ("Tina", "Top")], "Vera"),
        ("dress", [("Anna", "Dress"), ("", "Dress")], "Anna"),
        ("dress", [("Bad\n<answer> name", "Dress")], "bad name"),
    ],
)
def test_history(query: str, history: list[tuple[str, str]], text: str) -> None:
    found = RULES["history"].text(Request(query=query, history=bought(*history)))
    assert found == f"{query} {text.lower()}".strip()


def test_feedback_is_the_most_frequent_new_word_of_the_first_ten_titles() -> None:
    rule, request = RULES["feedback"], Request(query="Lamp for the desk")
    assert rule.text(request) == "Lamp for the desk"
    titles = ["Desk lamp with brass arm", "lamp, LED", "the Brass lamp", "LED with desk"]
    assert rule.text(request, titles) == "Lamp for the desk brass"  # as often as led, and earlier
    assert rule.text(request, ["lamp"] * 10 + ["oak oak oak"]) == "Lamp for the desk"
    assert rule.text(request, ["12 60 lamp"]) == "Lamp for the desk"


def test_a_directory_can_be_a_rule(tmp_path: Path) -> None:
    write_rule(RULES["history"], tmp_path / "rule")
    assert read_rule(tmp_path / "rule") is RULES["history"]
    assert read_rule(tmp_path) is None
    (tmp_path / "rule.json").write_text('{"rule": "magic"}')
    with pytest.raises(InputError, match=r"names no rule: 'magic'.*history"):
        read_rule(tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return shop.write_shop(tmp_path_factory.mktemp("shop"))


def test_feedback_searches_the_catalogue_and_sees_no_judgement(data: PreparedData) -> None:
    """Other pools, other gains: the same titles. They are those of a search of everything."""
    requests = [data.requests[int(row)] for row in data.rows("test")]
    titles = FirstHits(shop.config(), data, {})(requests)
    blind = replace(
        data,
        pools_RP=np.zeros_like(data.pools_RP[:, :1]),
        gains_RP=np.ones_like(data.gains_RP[:, :1]),
    )
    assert FirstHits(shop.config(), blind, {})(requests) == titles
    built: dict = {}
    FirstHits(shop.config(), data, built)(requests)
    rows, _ = built["bm25"].search([requests[0].query], 10)
    assert titles[0] == tuple(data.catalogue["title"][row] for row in rows[0].tolist())


def test_rules_stand_in_every_evaluation(data: PreparedData, tmp_path: Path) -> None:
    """Beside the raw query, with the same statistics; none of them is the policy of the report."""
    file = shop.write_answers(tmp_path / "a.jsonl", data, lambda r, colour: "pink")
    summary = evaluate(shop.config(), data, {"ospo": file}, tmp_path / "out", cache=None)
    assert list(read_json(tmp_path / "out/summary.json")["test"]) == sorted(summary["test"])
    analysis = analyse([tmp_path / "out"], resamples=200)
    assert analysis.policies == ["raw", "history", "feedback", "ospo"]
    assert analysis.best == "ospo"
    pairs = {(c.policy, c.reference) for c in analysis.comparisons}
    rule = best_rule(summary, "bm25")
    assert {("history", "raw"), ("feedback", "raw"), ("ospo", "raw"), ("ospo", rule)} == pairs
    answers = pl.read_parquet(tmp_path / "out/answers.parquet")
    for request_id, answer in answers.filter(policy="history")["request_id", "answer"].iter_rows():
        request = data.requests[data.row_of(request_id)]
        assert answer == RULES["history"].text(request)
    examples = read_json(tmp_path / "out/examples.json")
    assert {example["policy"] for example in examples} == {"ospo"}
    with pytest.raises(InputError, match="is the name of a rule"):
        evaluate(shop.config(), data, {"history": file}, tmp_path / "no", cache=None)


def test_a_report_is_about_a_policy_even_where_a_rule_is_better(
    data: PreparedData, tmp_path: Path
) -> None:
    file = shop.write_answers(tmp_path / "a.jsonl", data, lambda r, colour: "zzz")
    evaluate(shop.config(), data, {"mine": file}, tmp_path / "out", cache=None)
    assert analyse([tmp_path / "out"], resamples=200).best == "mine"


def test_a_rule_that_cannot_apply_is_left_out(data: PreparedData, tmp_path: Path) -> None:
    """Hits of the pool never stand in for a search of the catalogue."""
    bare = replace(
        data, requests=type(data.requests).of(replace(r, history=()) for r in data.requests)
    )
    out = tmp_path / "out"
    summary = evaluate(shop.config("evaluation.catalogue=false"), bare, {}, out, cache=None)
    assert set(summary["test"]) == {"raw"}
    left_out = read_json(out / "details.json")["rules_left_out"]
    assert set(left_out) == {"history", "feedback"}
    assert "evaluation.catalogue" in left_out["feedback"]


def test_rules_can_be_compared(data: PreparedData, tmp_path: Path) -> None:
    a, b = (resolve(name, shop.config()) for name in ("feedback", "history"))
    found = compare(shop.config(), data, a, b, tmp_path / "out", cache=None).comparisons
    assert {(c.policy, c.reference) for c in found} == {
        ("history", "feedback"),
        ("history", "raw"),
        ("feedback", "raw"),
    }
    off = shop.config("evaluation.catalogue=false")
    with pytest.raises(InputError, match=r"feedback: cannot apply: .*evaluation.catalogue"):
        compare(off, data, a, b, tmp_path / "off", cache=None)


def test_the_rule_to_beat_is_chosen_on_validation() -> None:
    summary = {
        "test": {"raw": {"m": 0.9}, "history": {"m": 0.1}, "sft": {"m": 1.0}},
        "validation": {"raw": {"m": 0.1}, "history": {"m": 0.2}, "sft": {"m": 1.0}},
    }
    assert best_rule(summary, "m") == "history"
    summary["validation"]["history"]["m"] = 0.1
    assert best_rule(summary, "m") == "raw"
