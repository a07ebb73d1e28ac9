"""What a rewrite changed against the raw query: hand-computed shares, and that they are shown where
a rewrite is compared with the raw query.
"""

import io
import json
import re
from pathlib import Path

import evaluation_shop as shop
import numpy as np
import pytest
from rich.console import Console

from ospo.data.dataset import PreparedData
from ospo.evaluation.changes import Changes, LostWords, changes
from ospo.evaluation.evaluate import evaluate
from ospo.reports.evaluation import write_report
from ospo.reports.explain import explain
from ospo.reports.explain_page import render, to_html
from ospo.reports.wording import signed
from ospo.retrieval import build_retriever
from ospo.reward.search import SearchReward


def game(worth: dict[str, float], both: dict[tuple[str, str], float] | None = None):
    """A reward that adds up the worth of the words a text holds, and of pairs of them."""

    def reward(texts, rows):
        found = []
        for text in texts:
            words = set(re.findall(r"\w+", text.lower()))
            value = sum(worth.get(word, 0.0) for word in words)
            value += sum(v for pair, v in (both or {}).items() if set(pair) <= words)
            found.append(value)
        return np.array(found)

    return reward


def one(reward, query: str, units: list[str], budget: int = 32) -> Changes:
    (found,) = changes(reward, [query], ["".join(units)], [units], [0], budget=budget)
    return found


def total(found: Changes) -> float:
    return sum(found.change_N) + sum(words.change for words in found.lost) + found.form


def test_added_and_lost_words_share_the_difference() -> None:
    reward = game({"blue": 0.3, "boots": 0.5, "red": -0.2, "wool": 0.1})
    found = one(reward, "Blue boots", ["red boots, ", "wool"])
    assert (found.raw, found.rewrite) == pytest.approx((0.8, 0.4))
    assert found.kept_N == (False, False)  # "red boots" brings a new word
    assert found.change_N == pytest.approx((-0.2, 0.1))
    assert found.lost == (LostWords("Blue", pytest.approx(-0.3), pytest.approx(0.3)),)
    assert found.form == 0


def test_what_words_do_together_is_shared_by_shapley() -> None:
    """Worth only together: lost "blue" and "boots" of the request are one run; "suede" needs
    "boots".
    """
    reward = game({"boots": 0.4}, {("boots", "suede"): 0.2, ("blue", "boots"): 0.1})
    found = one(reward, "blue boots", ["suede"])
    # v(request) .5, without it 0, with suede .7, only suede 0: two orders of two changes.
    assert (found.raw, found.rewrite) == pytest.approx((0.5, 0.0))
    assert found.change_N == pytest.approx(((0.2 + 0.0) / 2,))
    assert [(w.text, w.change) for w in found.lost] == [("blue boots", pytest.approx(-0.6))]
    assert found.lost[0].put_back == pytest.approx(0.7)
    assert total(found) == pytest.approx(found.rewrite - found.raw)


def test_lost_words_apart_are_apart_and_in_the_requests_spelling() -> None:
    found = one(game({"Nice": 0.0, "warm": 0.2}), "Very-nice warm BOOTS", ["boots"])
    assert [words.text for words in found.lost] == ["Very-nice warm"]
    found = one(game({"warm": 0.2}), "nice boots, warm", ["boots"])
    assert [words.text for words in found.lost] == ["nice", "warm"]
    assert [words.change for words in found.lost] == pytest.approx([0.0, -0.2])


def test_form_is_what_the_same_words_written_otherwise_change() -> None:
    def reward(texts, rows):
        return np.array([0.1 * text.split().index("boots") + 0.5 for text in texts])

    found = one(reward, "boots blue", ["blue ", "boots"])
    assert found.kept_N == (True, True)
    assert found.lost == ()
    assert found.form == pytest.approx(found.rewrite - found.raw) == pytest.approx(0.1)
    assert found.change_N == (0, 0)


def test_the_query_itself_and_an_empty_text() -> None:
    reward = game({"blue": 0.3, "boots": 0.5})
    same = one(reward, "blue boots", ["blue ", "boots"])
    assert (same.lost, same.form, same.change_N) == ((), 0, (0, 0))
    nothing = one(reward, "blue boots", [])
    assert nothing.lost == (LostWords("blue boots", pytest.approx(-0.8), pytest.approx(0.8)),)
    assert changes(reward, [], [], [], [], budget=8) == []


@pytest.mark.parametrize("new", [4, 12, 20])
def test_estimated_shares_sum_to_the_difference_too(new: int) -> None:
    rng = np.random.default_rng(new)
    words = [f"w{i}" for i in range(new)]
    pairs = {(a, b): float(rng.normal(0, 0.1)) for a in words for b in words if a < b}
    reward = game({w: float(rng.normal()) for w in words} | {"blue": 0.4}, pairs)
    found = one(reward, "blue boots", ["boots ", *(f"{word} " for word in words)], budget=16)
    assert total(found) == pytest.approx(found.rewrite - found.raw)
    again = one(reward, "blue boots", ["boots ", *(f"{word} " for word in words)], budget=16)
    assert again == found


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    return shop.write_shop(tmp_path_factory.mktemp("changes"))


@pytest.fixture(scope="module")
def evaluation(data: PreparedData, tmp_path_factory) -> Path:
    """A policy that adds what helps for some requests, and for the others drops what is sought,
    keeping words that still earn more than no text.
    """

    def answer(request, colour: str) -> str:
        if int(request.request_id[1:]) % 4 == 0:
            return f"{colour}, cotton"
        return f"{colour}, {request.query}"

    root = tmp_path_factory.mktemp("evaluation")
    file = shop.write_answers(root / "ospo.jsonl", data, answer)
    evaluate(shop.config(), data, {"ospo": file}, root / "out", cache=None)
    return root / "out"


def test_examples_sum_to_both_differences(evaluation: Path, data: PreparedData) -> None:
    examples = json.loads((evaluation / "examples.json").read_text())
    assert {example["kind"] for example in examples} == {"improved", "worse"}
    config = shop.config()
    reward = SearchReward(build_retriever("bm25", config, data), data, config.reward.k, 1000)
    for example in examples:
        row = data.row_of(example["request_id"])
        credit = sum(phrase["credit"] for phrase in example["phrases"])
        assert credit == pytest.approx(example["ndcg"] - example["empty_ndcg"])
        parts = [*example["phrases"], *example["lost"]]
        change = sum(part["change"] for part in parts) + example["form"]
        assert change == pytest.approx(example["ndcg"] - example["raw_ndcg"])
        texts = ["", example["query"], example["answer"]]
        values = [example["empty_ndcg"], example["raw_ndcg"], example["ndcg"]]
        assert values == pytest.approx(reward(texts, [row] * 3).tolist())
        for words in example["lost"]:
            back = f"{example['answer']} {words['text']}"
            assert words["put_back"] == pytest.approx(reward([back], [row])[0] - example["ndcg"])
        for phrase in example["phrases"]:
            words = set(re.findall(r"\w+", phrase["text"].lower()))
            assert phrase["kept"] == (words <= set(example["query"].lower().split()))
            assert not (phrase["kept"] and phrase["change"])
        assert example["estimator"] == "exact"


def test_a_worse_example_shows_what_hurt(evaluation: Path, tmp_path: Path) -> None:
    """Every phrase may earn credit over no text although the request earned more: the loss must
    show, on the words that were dropped.
    """
    examples = json.loads((evaluation / "examples.json").read_text())
    worse = [example for example in examples if example["kind"] == "worse"]
    assert any(all(p["credit"] >= 0 for p in example["phrases"]) for example in worse)
    dropped = [example for example in worse if example["lost"]]
    assert dropped
    for example in dropped:
        assert sum(words["change"] for words in example["lost"]) < 0
        assert max(words["put_back"] for words in example["lost"]) > 0
    write_report(evaluation, tmp_path / "report.html", resamples=200)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    part = page[page.index("Got worse most") : page.index('<section id="measures"')]
    assert len(re.findall(r'<span class="phrase b[123]"><del>', part)) >= len(dropped)
    assert part.count("put back:") == sum(len(example["lost"]) for example in worse)
    better = page[page.index("Improved most") : page.index("Got worse most")]
    assert '<span class="phrase kept">' in better
    # Nothing is green by its credit over no text alone: the figures shown are the changes.
    numbers = [signed(p["change"], 2) for e in worse for p in e["phrases"] if not p["kept"]]
    assert re.findall(r"<small>added ([^<]*)<", part) == numbers
    shown = re.findall(
        r'class="phrase (\w\d?)"><(?:del><)?bdi>.*?<small>[^<]*?([+−]?\d\.\d\d)<', part
    )
    assert shown
    for kind, number in shown:
        value = float(number.replace("−", "-"))
        if abs(abs(value) - 0.02) < 0.005:  # rounded: on either side of the step
            continue
        assert kind[0] == ("h" if value >= 0.02 else "b" if value <= -0.02 else "n")


def test_explain_compares_with_the_raw_query(data: PreparedData) -> None:
    config = shop.config()
    retriever = build_retriever("bm25", config, data)
    request = data.requests[3]  # "nice boots"
    found = explain(config, data, retriever, request.request_id, "cotton, blue")
    assert found.rewritten
    changed = [*(p.change for p in found.phrases), *(words.change for words in found.lost)]
    assert sum(changed) + found.form == pytest.approx(found.reward - found.raw_reward)
    assert found.raw_reward == pytest.approx(0.76, abs=0.005)
    loss = found.lost[0].change
    assert loss < 0 < found.lost[0].put_back
    assert [words.text for words in found.lost] == ["nice boots"]
    shown = io.StringIO()
    Console(file=shown, width=160).print(render(found))
    page = to_html(found)
    for text in (shown.getvalue(), page):
        assert "nice boots" in text
        assert f"{found.raw_reward:.3f}" in text
        assert found.estimator == "exact"
        assert "exact" in text
    assert re.search(r'class="phrase b[123]"><del><bdi>nice boots', page)
    heading = page[page.index('<p class="text">') : page.index('<dl class="facts">')]
    numbers = [signed(p.change, 2) for p in found.phrases if not p.kept]
    assert numbers != [signed(p.credit, 2) for p in found.phrases if not p.kept]
    assert re.findall(r"</bdi><small>([+−.\d]+)<", heading) == numbers
    itself = explain(config, data, retriever, request.request_id)
    assert not itself.rewritten
    assert "lost" not in to_html(itself).split("</style>")[1]
