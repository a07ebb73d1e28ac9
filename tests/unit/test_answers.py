"""Answers that add (``answer: expand``): the rule of the search text, its game, and the kind that
travels with a policy.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_shop import TEXTS, TINY, write_policy
from training_shop import small_config

from ospo.config import Config
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.evaluation.evaluate import evaluate
from ospo.evaluation.examples import PER_KIND
from ospo.files import read_json, write_json
from ospo.policy.kind import FILE, read_answer_kind
from ospo.policy.text import EXPAND, REWRITE, search_text
from ospo.policy.weights import create_policy, save_policy
from ospo.reports.explain import explain
from ospo.retrieval import build_retriever
from ospo.reward.answers import AnswerReward, reward_of_answers
from ospo.reward.costs import PricedReward
from ospo.reward.credit import credit_engine
from ospo.reward.search import SearchReward
from ospo.serving.rewriter import Rewriter
from ospo.training.run import TrainingRun
from ospo.training.sft import sft_examples
from ospo.training.teacher import Teacher

WRITTEN = st.text(
    alphabet=st.one_of(st.sampled_from("ab Aß1.,;-_!? \n'+|İΣ鞋é́"), st.characters(codec="utf-8")),
    max_size=40,
)


@pytest.mark.parametrize(
    ("query", "answer", "text"),
    [
        ("red dress", "dress, summer dress", "red dress, summer"),
        ("red dress", "Summer DRESS for work", "red dress, Summer, for work"),
        ("red dress", "linen, linen, Red.", "red dress, linen"),
        ("Red  dress,,", "", "Red dress"),
        ("red dress", " ,. dress", "red dress"),
        ("men's t-shirt", "shirt, men, cotton (t-shirt)", "men's t-shirt, cotton"),
        ("shirt", "t-shirt", "shirt, t-shirt"),
        ("c book", "c++ book", "c book, c++"),
        ("dress", "women's “dress”", "dress, women's"),
        ("", "linen dress", "linen dress"),
        ("", "", ""),
    ],
)
def test_an_answer_adds_to_its_request(query: str, answer: str, text: str) -> None:
    assert EXPAND.text(query, answer) == text
    assert REWRITE.text(query, answer) == search_text(answer)


@settings(max_examples=300, deadline=None)
@given(WRITTEN, WRITTEN)
def test_the_rule_is_idempotent_and_keeps_the_request(query: str, answer: str) -> None:
    text = EXPAND.text(query, answer)
    assert search_text(text) == text
    assert EXPAND.text(query, text) == text
    assert text.startswith(search_text(query))
    assert EXPAND.text(query, "") == EXPAND.text(query, query) == search_text(query)


@pytest.fixture(scope="module")
def searches(esci_tiny: PreparedData, tiny_config: Config) -> dict[str, SearchReward]:
    names = ("bm25", "static", "minilm")
    return {
        name: SearchReward(build_retriever(name, tiny_config, esci_tiny), esci_tiny, 10, 10_000)
        for name in names
    }


def answers(data: PreparedData) -> tuple[list[str], list[int]]:
    """Answers of several phrases, some of which repeat the request's words."""
    texts, rows = [], list(range(12))
    for row in rows:
        query = data.requests[row].query.split()
        words = data.item_texts[row * 5].split()
        texts.append(f"{words[0]} {query[-1]}, {query[0]}, {' '.join(words[1:3])}, red")
    return texts, rows


@pytest.mark.parametrize("name", ["bm25", "static", "minilm"])
def test_an_empty_answer_earns_what_the_raw_query_earns(
    name: str, searches: dict[str, SearchReward], esci_tiny: PreparedData
) -> None:
    reward = reward_of_answers(searches[name], EXPAND, esci_tiny.requests)
    rows = list(range(40))
    queries = [esci_tiny.requests[row].query for row in rows]
    raw = searches[name](queries, rows)
    for nothing in ([""] * 40, queries, [" ,."] * 40):
        assert reward(nothing, rows).tolist() == raw.tolist()
    assert len(np.unique(raw)) > 5
    texts, some = answers(esci_tiny)
    assert (reward(texts, some) != raw[: len(some)]).any()


@pytest.mark.parametrize("name", ["bm25", "static"])
def test_coalitions_hold_the_request_to_the_bit(
    name: str, searches: dict[str, SearchReward], esci_tiny: PreparedData
) -> None:
    reward = reward_of_answers(searches[name], EXPAND, esci_tiny.requests)
    assert reward.coalitions is not None
    texts, rows = answers(esci_tiny)
    units = [text.split(", ") for text in texts]
    masks = [np.array(list(itertools.product([False, True], repeat=len(parts)))) for parts in units]
    for parts, row, mask_CN, value_C in zip(
        units, rows, masks, reward.coalitions(units, rows, masks), strict=True
    ):
        joined = [
            " ".join(unit for unit, kept in zip(parts, mask, strict=True) if kept)
            for mask in mask_CN
        ]
        assert reward(joined, [row] * len(joined)).tolist() == value_C.tolist()


def test_pool_scores_are_of_the_whole_text(
    searches: dict[str, SearchReward], esci_tiny: PreparedData
) -> None:
    reward = reward_of_answers(searches["minilm"], EXPAND, esci_tiny.requests)
    texts, rows = answers(esci_tiny)
    assert reward.pool is not None
    whole = [
        EXPAND.text(esci_tiny.requests[row].query, text)
        for text, row in zip(texts, rows, strict=True)
    ]
    scores = reward.pool.pool_scores(texts, rows)
    assert (scores == searches["minilm"].pool_scores(whole, rows)).all()
    assert reward.pool.measure(scores[:1], rows[0])[0] == reward(texts[:1], rows[:1])[0]


@pytest.mark.parametrize("name", ["bm25", "minilm"])
@pytest.mark.parametrize("estimator", ["auto", "exact"])
def test_credit_is_against_the_raw_query(
    name: str, estimator: str, searches: dict[str, SearchReward], esci_tiny: PreparedData
) -> None:
    config = small_config("credit.budget=8")
    texts, rows = answers(esci_tiny)
    reward = reward_of_answers(searches[name], EXPAND, esci_tiny.requests)
    priced = PricedReward(reward, 0.2, 0.02, frozenset())
    for value in (reward, priced):
        found = credit_engine(config, value, estimator=estimator).credit(
            texts, rows, value(texts, rows)
        )
        for text, row, credit in zip(texts, rows, found, strict=True):
            query = esci_tiny.requests[row].query
            assert credit.empty_value == searches[name]([query], [row])[0]
            assert credit.segmentation.text == text  # spans are of the completion's own text
            assert credit.phi_N.sum() == pytest.approx(credit.total - credit.empty_value)
            if estimator == "exact" and value is reward:
                for unit, phi in zip(credit.segmentation.units, credit.phi_N, strict=True):
                    if not EXPAND.added(query, unit):
                        assert phi == pytest.approx(0, abs=1e-12), "it repeats the request"


def test_a_word_of_the_request_costs_nothing_unless_it_is_said_again() -> None:
    class One:
        def __call__(self, texts: Any, rows: Any) -> np.ndarray:
            return np.ones(len(texts))

    reward = AnswerReward(One(), EXPAND, ["red dress"])
    priced = PricedReward(reward, 0.2, 0.02, frozenset({"red", "dress", "linen"}))
    said = ["linen", "dress, linen", "linen, red dress", "", "dress, dress", "linen, xyloq"]
    values = priced(said, [0] * len(said))
    assert values[:4].tolist() == [1, 1, 1, 1]
    assert values[4] == pytest.approx(1 - 0.2 * (1 - len("dress") / len("dress, dress")))
    assert values[5] == pytest.approx(1 - 0.02)
    with pytest.raises(ValueError, match="around AnswerReward"):
        AnswerReward(priced, EXPAND, ["red dress"])


def test_the_teacher_writes_only_what_is_added_and_never_nothing(hm_tiny: PreparedData) -> None:
    for noise in (0.0, 1.0):
        adds, whole = Teacher(hm_tiny, noise, 0, EXPAND), Teacher(hm_tiny, noise, 0)
        told = 0
        for row in adds.rows.tolist():
            for draw in range(4):
                (request, text), (_, full) = adds.example(row, draw), whole.example(row, draw)
                assert EXPAND.added(request.query, text) == search_text(text)
                assert text or not EXPAND.added(request.query, full), "something is known"
                told += bool(text)
        assert told > 0.9 * 4 * len(adds.rows)


def expanding(directory: Path, seed: int = 0) -> Path:
    """A random policy that says of itself that it adds."""
    network, tokenizer = create_policy(TINY, TEXTS, seed)
    save_policy(network, tokenizer, TINY, directory, answer="expand")
    return directory


def test_a_policy_says_what_its_answers_are(tmp_path: Path) -> None:
    assert read_answer_kind(expanding(tmp_path / "a")) is EXPAND
    plain = write_policy(tmp_path / "b")
    assert read_answer_kind(plain) is REWRITE
    (plain / FILE).unlink()
    assert read_answer_kind(plain) is REWRITE, "of policies made before, or by other tools"
    for broken in ({}, {"answer": "shout"}, ["expand"]):
        write_json(plain / FILE, broken)
        with pytest.raises(InputError, match=r"answer\.json"):
            read_answer_kind(plain)


def test_training_from_a_policy_of_the_other_kind_is_refused(
    tmp_path: Path, esci_tiny: PreparedData
) -> None:
    start = expanding(tmp_path / "sft")
    run = TrainingRun(small_config("answer=rewrite"), esci_tiny, tmp_path, start)
    with pytest.raises(InputError, match=r"answer.*trained to expand.*set answer: expand"):
        _ = run.policy
    assert TrainingRun(small_config("answer=expand"), esci_tiny, tmp_path, start).policy == start


def test_evaluation_and_serving_form_texts_by_the_policys_own_kind(
    tmp_path: Path, esci_tiny: PreparedData
) -> None:
    settings = ["retrievers.training=static", "retrievers.unseen=[]", "answer=rewrite"]
    config = small_config(*settings, "evaluation.resamples=100")
    policies = {"adds": expanding(tmp_path / "a"), "plain": write_policy(tmp_path / "b")}
    evaluate(config, esci_tiny, policies, tmp_path / "out", cache=None)
    import polars as pl

    rows = pl.read_parquet(tmp_path / "out" / "answers.parquet")
    for policy, rule in (("adds", EXPAND), ("plain", REWRITE), ("raw", REWRITE)):
        mine = rows.filter(pl.col("policy") == policy)
        for query, answer, text in mine.select("query", "answer", "text").rows():
            assert text == rule.text(query, answer)
    details = read_json(tmp_path / "out" / "details.json")["policies"]
    assert (details["adds"]["answer"], details["plain"]["answer"]) == ("expand", "rewrite")
    scored = pl.read_parquet(tmp_path / "out" / "evaluation.parquet").filter(
        (pl.col("policy") == "adds") & (pl.col("scope") == "pool") & (pl.col("split") == "test")
    )
    reward = SearchReward(build_retriever("static", config, esci_tiny), esci_tiny, 10, 0)
    number = {request.request_id: row for row, request in enumerate(esci_tiny.requests)}
    at = [number[name] for name in scored["request_id"]]
    assert reward(scored["text"].to_list(), at).tolist() == scored["ndcg@10"].to_list()
    examples = read_json(tmp_path / "out" / "examples.json")
    assert 0 < len(examples) <= 4 * PER_KIND
    for one in examples:
        assert one["answers"] == details[one["policy"]]["answer"]
        if one["answers"] == "expand":
            assert one["empty_ndcg"] == one["raw_ndcg"]
            assert one["lost"] == []
    assert {one["answers"] for one in examples} == {"expand", "rewrite"}

    request = esci_tiny.requests[number[scored["request_id"][0]]]
    rewriter = Rewriter.load(policies["adds"], max_prompt_tokens=128, max_new_tokens=8)
    [text] = rewriter.rewrite([{"query": request.query}])
    shown = "".join(c if c.isprintable() else " " for c in scored["answer"][0])
    assert text == EXPAND.text(request.query, shown)  # serving writes no control characters
    assert text.startswith(search_text(request.query))
    assert rewriter._shown(request, "<answer> , </answer>") == search_text(request.query)


def test_an_explanation_is_of_what_was_added(
    tiny_config: Config, esci_tiny: PreparedData, searches: dict[str, SearchReward]
) -> None:
    request = esci_tiny.requests[0]
    retriever = searches["bm25"].retriever
    text = f"{request.query}, red cotton, blue"
    found = explain(tiny_config, esci_tiny, retriever, request.request_id, text, EXPAND)
    assert found.base == search_text(request.query)
    assert "".join(phrase.text for phrase in found.phrases) == "red cotton, blue"
    assert found.text == EXPAND.text(request.query, text)
    assert found.empty_reward == found.raw_reward == searches["bm25"]([request.query], [0])[0]
    assert found.reward == searches["bm25"]([found.text], [0])[0]
    assert [phrase.change for phrase in found.phrases] == [p.credit for p in found.phrases]
    raw = explain(tiny_config, esci_tiny, retriever, request.request_id, request.query, EXPAND)
    assert (raw.base, raw.text) == ("", request.query)


def test_a_warm_start_that_adds_sees_histories_from_its_first_step(
    hm_tiny: PreparedData,
) -> None:
    """Without the history there is nothing to copy, and additions are learned at random."""
    config = small_config("answer=expand", "presets.nano.sft.steps=10")
    tokenizer = create_policy(config.preset.model, TEXTS, 0)[1]
    lengths = {}
    for rule in (EXPAND, REWRITE):
        teacher = Teacher(hm_tiny, 0.0, 0, rule)
        first = sft_examples(config, hm_tiny, tokenizer, teacher, 400)[:128]
        lengths[rule.kind] = np.mean([example["labels"].count(-100) for example in first])
    assert lengths["expand"] > 2 * lengths["rewrite"]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("silk,silk,silk,silk", "silk"),
        ("silk,Silk , SILK", "silk"),
        ("silk,paisley,silk", "silk, paisley"),
        ("silk/silk/silk silk", "silk"),
        ("silk.silk.silk", "silk"),
        ("silk-silk-silk-silk", "silk"),
        ("silk+silk&silk", "silk"),
        ("yo-yo, pom-pom", "yo-yo, pom-pom"),
        ("1,000 pieces,000", "1,000 pieces, 000"),
        ("5.5 5.5.5 u.s", "5.5 5.5.5 u.s"),
        ("99.99 11/11", "99.99 11/11"),
        ("and/or w/o", "and/or w/o"),
    ],
)
def test_a_word_said_again_counts_once_with_and_without_spaces(answer: str, text: str) -> None:
    assert search_text(answer) == text
    assert search_text(text) == text
    assert EXPAND.text("scarf", answer) == search_text(f"scarf, {text}")
