"""The reward: measures against hand-computed and library values, texts that try to game it,
coalitions of units.
"""

import itertools
import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ospo.credit.engine import CreditEngine
from ospo.data.dataset import PreparedData
from ospo.policy.text import search_text
from ospo.retrieval.base import Retriever, RetrieverError
from ospo.retrieval.bm25 import BM25Retriever
from ospo.retrieval.lsa import LSARetriever
from ospo.retrieval.static import StaticRetriever
from ospo.reward.ndcg import ndcg
from ospo.reward.search import SearchReward

ITEMS = [
    "red running shoes for women, waterproof, size 8",
    "blue running shoes for men with soft sole",
    "green rain jacket with hood, waterproof",
    "red dress, cotton, short sleeves",
    "blue cotton shirt for men, slim fit",
    "kids' rain boots, green, rubber",
    "black leather boots for women",
    "wool scarf, red and black, 1,000 threads",
    "運動 鞋 running shoes 5.5",
    "white cotton socks, pack of 5 for men",
]


def shop(gains: list[list[float]], items: list[str] = ITEMS) -> Any:
    """The parts of PreparedData that a reward reads; every pool holds all items, in reverse for odd
    requests.
    """
    order = np.arange(len(items), dtype=np.int32)
    pools = np.stack([order if row % 2 == 0 else order[::-1] for row in range(len(gains))])
    return SimpleNamespace(
        item_ids=[f"i{n}" for n in range(len(items))],
        item_texts=items,
        pools_RP=pools,
        gains_RP=np.take_along_axis(np.array(gains, dtype=np.float32), pools, axis=1),
    )


def indexed(retriever: Any, data: Any) -> Any:
    retriever.index(data.item_ids, data.item_texts)
    return retriever


GAINS = [
    [1, 0, 0, 0, 0, 0, 0, 0, 0.1, 0],
    [0, 0, 1, 0, 0, 0.1, 0, 0, 0, 0],
    [0, 0, 0, 0, 1, 0, 0, 0, 0, 0.01],
]


# --- nDCG


def test_ndcg_by_hand() -> None:
    # Ranked: gains 0, 1, 0.1. DCG = 1/log2(3) + 0.1/log2(4); ideal = 1/log2(2) + 0.1/log2(3).
    value = ndcg(np.array([[3.0, 1.0, 2.0]]), np.array([[0.0, 0.1, 1.0]]), k=10)
    expected = (1 / math.log2(3) + 0.1 / 2) / (1 + 0.1 / math.log2(3))
    assert value.shape == (1,)
    assert value[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "gains", "k", "expected"),
    [
        ([3, 2, 1], [1, 0, 0], 1, 1.0),
        ([2, 3, 1], [1, 0, 0], 1, 0.0),  # the relevant item is second and k is 1
        ([2, 3, 1], [1, 0, 0], 2, 1 / math.log2(3)),
        ([1, 1, 1], [0, 1, 0], 3, 1 / math.log2(3)),  # ties: pool order
        ([0, 0, -math.inf], [1, 0, 0], 3, 1.0),  # padding last
        ([-math.inf, -math.inf, 5], [0, 0, 1], 3, 1.0),
        ([3, 2, 1], [0, 0, 0], 3, 0.0),  # nothing relevant: 0, not NaN
        ([3, 2, 1], [1, 1, 1], 2, 1.0),  # the ideal stops at k too
        ([3, 2, 1], [1, 1, 1], 50, 1.0),
    ],
)
def test_ndcg_cases(scores: list[float], gains: list[float], k: int, expected: float) -> None:
    assert ndcg(np.array([scores], dtype=np.float32), np.array([gains]), k)[0] == pytest.approx(
        expected
    )


def _random_case(rng: np.random.Generator, batch: int, pool: int) -> tuple[np.ndarray, np.ndarray]:
    scores = rng.integers(0, 12, (batch, pool)).astype(np.float32)  # many ties
    gains = rng.integers(0, 4, (batch, pool)) * (rng.random((batch, pool)) < rng.random((batch, 1)))
    return scores, gains.astype(np.float32)


@pytest.mark.parametrize("pool", [1, 7, 100, 300])  # 300: ranks do not fit a byte
def test_ndcg_equals_sorting(pool: int) -> None:
    rng = np.random.default_rng(0)
    scores, gains = _random_case(rng, 200, pool)
    for k in (1, 10, 1000):
        expected = []
        for s, g in zip(scores, gains, strict=True):
            order = sorted(range(pool), key=lambda i: (-s[i], i))
            dcg = sum(float(g[i]) / math.log2(r + 2) for r, i in enumerate(order[:k]))
            best = sum(
                float(x) / math.log2(r + 2) for r, x in enumerate(sorted(g, reverse=True)[:k])
            )
            expected.append(dcg / best if best else 0.0)
        np.testing.assert_allclose(ndcg(scores, gains, k), expected, rtol=1e-12)


def test_ndcg_equals_ir_measures() -> None:
    import ir_measures
    from ir_measures import Qrel, ScoredDoc, nDCG

    scores, gains = _random_case(np.random.default_rng(1), 40, 30)
    scores += (
        np.random.default_rng(2).random(scores.shape).astype(np.float32)
    )  # libraries break ties by item id
    qrels = [Qrel(str(b), str(p), int(g)) for b, row in enumerate(gains) for p, g in enumerate(row)]
    run = [
        ScoredDoc(str(b), str(p), float(s))
        for b, row in enumerate(scores)
        for p, s in enumerate(row)
    ]
    theirs = {int(m.query_id): m.value for m in ir_measures.iter_calc([nDCG @ 10], qrels, run)}
    np.testing.assert_allclose(
        ndcg(scores, gains, 10), [theirs[b] for b in range(len(scores))], atol=1e-9
    )


def test_ndcg_does_not_depend_on_the_batch() -> None:
    scores, gains = _random_case(np.random.default_rng(3), 300, 100)
    together = ndcg(scores, gains, 10)
    alone = np.concatenate([ndcg(scores[b : b + 1], gains[b : b + 1], 10) for b in range(300)])
    assert (together == alone).all()
    assert (ndcg(scores[::-1], gains[::-1], 10)[::-1] == together).all()


@pytest.mark.parametrize("pool", [40, 300])
def test_rewards_of_one_request_and_of_many_agree(pool: int) -> None:
    rng = np.random.default_rng(4)
    scores, gains = _random_case(rng, 60, pool)

    class Fixed:
        name, linear = "fixed", False

        def score(self, texts: list[str], rows_BP: np.ndarray) -> np.ndarray:
            return scores[[int(text[1:]) for text in texts]]

    data = SimpleNamespace(pools_RP=np.tile(np.arange(pool), (60, 1)), gains_RP=gains)
    reward = SearchReward(Fixed(), data, 10, 0)  # type: ignore[arg-type]
    texts = [f"x{n}" for n in range(60)]
    for row in range(5):  # one request, 60 texts
        assert (
            reward(texts, [row] * 60).tolist()
            == ndcg(scores, np.tile(gains[row], (60, 1)), 10).tolist()
        )
    assert reward(texts, range(60)).tolist() == ndcg(scores, gains, 10).tolist()  # 60 requests


def test_ndcg_bad_input() -> None:
    with pytest.raises(ValueError, match=r"minilm.*NaN"):
        ndcg(np.array([[1.0, np.nan]]), np.array([[1.0, 0.0]]), 10, retriever="minilm")
    with pytest.raises(ValueError, match="shape"):
        ndcg(np.zeros((2, 3)), np.zeros((2, 4)), 10)
    with pytest.raises(ValueError, match="k must be"):
        ndcg(np.zeros((2, 3)), np.zeros((2, 3)), 0)


# --- the search text


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        ("red  running\tshoes", "red running shoes"),
        ("fit,,,,,,", "fit"),
        ("fit,,,, Fit ,fit fit", "fit"),
        ("Fit fit FIT jeans", "Fit jeans"),
        ("red shoes, blue shoes. Red Shoes; size 8", "red shoes, blue shoes, size 8"),
        ("1,000 threads, 5.5 inch. u.s. size", "1,000 threads, 5.5 inch, u.s, size"),
        ("c++ book!!!! C++ book", "c++ book"),
        ("- - - shoes ---", "shoes"),
        ("shoes | boots\nboots", "shoes, boots"),
        ("鞋，鞋子。鞋", "鞋, 鞋子"),
        ("_red_shoes__ _", "red shoes"),
        (
            "Straße, STRASSE, straße",
            "Straße, STRASSE",
        ),  # other words to a retriever, so not the same segment
        ("👟👟 , !?", ""),
        (" ", ""),
        ("", ""),
    ],
)
def test_search_text(answer: str, seen: str) -> None:
    assert search_text(answer) == seen


TEXTS = st.text(
    alphabet=st.one_of(st.sampled_from("ab Aß1.,;-_!? \n'+|İΣ鞋é́"), st.characters(codec="utf-8")),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_search_text_properties(first: str, second: str) -> None:
    def words(text: str) -> set[str]:
        return set(re.findall(r"[^\W_]+", text.lower()))

    seen = search_text(first)
    assert search_text(seen) == seen
    assert words(seen) == words(first)
    # What a linear retriever sees of two units side by side is what it sees of each.
    assert words(search_text(f"{first} {second}")) == words(search_text(first)) | words(
        search_text(second)
    )


@pytest.mark.timeout(20)
@pytest.mark.parametrize("noise", ["-.", ", ", "- ", "a ", "!?", "\n", "_ ", "a,", "~="])
def test_search_text_takes_linear_time(noise: str) -> None:
    search_text(noise * 200_000 + "x")


# --- the reward


@pytest.fixture(scope="module")
def static() -> StaticRetriever:
    return StaticRetriever()


def test_reward_by_hand() -> None:
    data = shop(GAINS)
    reward = SearchReward(indexed(BM25Retriever(), data), data, 10, 100)
    values = reward(
        ["red running shoes waterproof", "rain", "shirt", "zzz", " ,,"], [0, 1, 2, 0, 0]
    )
    assert values[0] > 0.9
    # "rain": the jacket and the boots hold it; the shorter boots come first, gains 0.1 then 1.
    assert values[1] == pytest.approx((0.1 + 1 / math.log2(3)) / (1 + 0.1 / math.log2(3)))
    # No other item holds "shirt": all others score 0 and keep pool order, so the socks come last
    # but one, or last.
    assert values[2] == pytest.approx(
        (1 + 0.01 / math.log2(11)) / (1 + 0.01 / math.log2(3)), abs=1e-6
    )
    # Unknown words: pool order, target first, the other ninth.
    assert values[3] == pytest.approx((1 + 0.1 / math.log2(10)) / (1 + 0.1 / math.log2(3)))
    assert values[4] == 0.0  # blank, whatever the pool's order would give


def test_reward_does_not_depend_on_batch_or_memo(
    esci_tiny: PreparedData, static: StaticRetriever
) -> None:
    retriever = indexed(static, esci_tiny)
    texts = [
        f"{esci_tiny.requests[r].query} {w}"
        for r in range(30)
        for w in ("", "red", "for women", "cheap")
    ]
    rows = [r for r in range(30) for _ in range(4)]
    whole = SearchReward(retriever, esci_tiny, 10, 10_000)
    values = whole(texts, rows)
    assert len(np.unique(values)) > 5
    alone = SearchReward(retriever, esci_tiny, 10, 0)
    assert [
        alone([text], [row])[0] for text, row in zip(texts, rows, strict=True)
    ] == values.tolist()
    assert (whole(texts[::-1], rows[::-1])[::-1] == values).all()


def test_reward_memo_is_bounded_and_counted() -> None:
    data = shop(GAINS)
    reward = SearchReward(indexed(BM25Retriever(), data), data, 10, 3)
    first = reward(["red shoes", "RED shoes,,", "red shoes", "boots", ""], [0, 0, 1, 0, 0])
    assert (reward.counts.misses, reward.counts.hits) == (
        4,
        1,
    )  # case is kept for the retriever: "RED shoes" is another text
    assert first[0] == first[1]
    assert len(reward._memo) == 3
    reward(["boots"], [0])
    assert (reward.counts.misses, reward.counts.hits) in {(4, 2), (5, 1)}
    assert reward.seconds > 0
    assert reward([], []).shape == (0,)


def test_padding_never_ranks() -> None:
    data = shop(GAINS)
    data.pools_RP = np.array(data.pools_RP)
    data.pools_RP[0, 5:] = -1
    data.gains_RP[0, 5:] = 0

    class Same:
        name, linear = "same", False

        def score(self, texts: list[str], rows_BP: np.ndarray) -> np.ndarray:
            return np.where(rows_BP < 0, 100.0, -np.arange(rows_BP.shape[1])).astype(np.float32)

    assert SearchReward(Same(), data, 10, 10)(["x"], [0])[0] == 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "problem"),
    [(np.full((1, 10), np.nan), "NaN"), (np.zeros((1, 9)), "shape"), (None, "NoneType")],
)
def test_bad_retriever_is_named(scores: Any, problem: str) -> None:
    class Bad:
        name, linear = "bad-one", False

        def score(self, texts: list[str], rows_BP: np.ndarray) -> Any:
            return scores

    with pytest.raises(RetrieverError, match=f"bad-one.*{problem}"):
        SearchReward(Bad(), shop(GAINS), 10, 10)(["x"], [0])  # type: ignore[arg-type]


def test_reward_bad_rows() -> None:
    data = shop(GAINS)
    reward = SearchReward(indexed(BM25Retriever(), data), data, 10, 10)
    for rows in ([3], [-1]):
        with pytest.raises(ValueError, match="outside the 3 requests"):
            reward(["x"], rows)
    with pytest.raises(ValueError, match="2 texts but 1"):
        reward(["x", "y"], [0])


# --- coalitions

UNITS = [
    ["red", "running shoes,", "waterproof.", "for women"],
    ["rain", "rain", "jacket, jacket", "green rain"],  # words and segments that repeat across units
    ["5.5", "運動 鞋,", "5", "1,000", "_x_", "..."],
    ["Straße,", "STRASSE,", "strasse", "ΣΑΣ", "İ"],
    [",,", "!", " "],
    ["socks"],
    [],
    ["the", "of for", "pack of 5"],  # stop words only, or in part
]


def all_masks(n: int) -> np.ndarray:
    return np.array(list(itertools.product([False, True], repeat=n)), dtype=bool).reshape(2**n, n)


@pytest.mark.parametrize("make", [BM25Retriever, StaticRetriever, LSARetriever])
def test_coalitions_of_linear_retrievers_equal_the_direct_way(make: Any) -> None:
    items = [*ITEMS, "straße sign", "STRASSE map", "ΣΑΣ İ x"]
    data = shop([[*g, 0, 0, 0] for g in GAINS], items)
    data.gains_RP[0, 10:] = 0.5
    reward = SearchReward(indexed(make(), data), data, 10, 0)
    assert reward.retriever.linear
    rows = [b % 3 for b in range(len(UNITS))]
    masks = [all_masks(len(units)) for units in UNITS]
    values = reward.coalitions(UNITS, rows, masks)
    for units, row, mask_CN, value_C in zip(UNITS, rows, masks, values, strict=True):
        texts = [
            " ".join(u.strip() for u, kept in zip(units, mask, strict=True) if kept)
            for mask in mask_CN
        ]
        assert reward(texts, [row] * len(texts)).tolist() == value_C.tolist(), units
    assert len(np.unique(np.concatenate(values))) > 8


@pytest.mark.parametrize("make", [BM25Retriever, StaticRetriever])
def test_coalitions_of_real_phrases(make: Any, esci_tiny: PreparedData) -> None:
    reward = SearchReward(indexed(make(), esci_tiny), esci_tiny, 10, 0)
    units, rows = [], []
    for row in range(40):
        words = esci_tiny.item_texts[row * 7].split()
        units.append([" ".join(words[at : at + 2]) for at in range(0, 12, 2)])
        rows.append(row % 25)
    masks = [all_masks(6)] * 40
    for unit, row, value_C in zip(units, rows, reward.coalitions(units, rows, masks), strict=True):
        texts = [
            " ".join(u for u, kept in zip(unit, mask, strict=True) if kept) for mask in masks[0]
        ]
        assert reward(texts, [row] * 64).tolist() == value_C.tolist()


def test_coalitions_bad_input_and_dense() -> None:
    data = shop(GAINS)
    reward = SearchReward(indexed(BM25Retriever(), data), data, 10, 0)
    with pytest.raises(ValueError, match=r"answer 0 has 2 units but masks of shape \(1, 3\)"):
        reward.coalitions([["a", "b"]], [0], [np.ones((1, 3), bool)])
    assert reward.coalitions([], [], []) == []

    class Dense:
        name, linear = "dense", False

    assert SearchReward(Dense(), data, 10, 0).coalitions is None  # type: ignore[arg-type]


class WholeTexts(SearchReward):
    """A reward that scores no coalition from its parts."""

    coalitions = None


@pytest.mark.parametrize("make", [BM25Retriever, StaticRetriever])
def test_credit_plays_the_same_game(make: Any) -> None:
    data = shop(GAINS)
    retriever: Retriever = indexed(make(), data)
    reward = SearchReward(retriever, data, 10, 1000)
    answers = [
        "red running shoes, waterproof",
        "green rain jacket; with a hood",
        "slim fit shirt, slim fit shirt",
    ]
    values = reward(answers, [0, 1, 2])
    engine = CreditEngine(reward, segments="delimiters", estimator="auto", budget=32)
    fast = engine.credit(answers, [0, 1, 2], rewards=values)  # raises where v(N) is not the reward
    whole = WholeTexts(retriever, data, 10, 1000)
    engine = CreditEngine(whole, segments="delimiters", estimator="auto", budget=32)
    slow = engine.credit(answers, [0, 1, 2], rewards=values)
    for a, b in zip(fast, slow, strict=True):
        assert a.phi_N.tolist() == b.phi_N.tolist()


# --- a share of the whole pool's nDCG


@pytest.mark.parametrize("kind", [StaticRetriever, BM25Retriever])
def test_a_share_of_the_whole_pools_ndcg_by_hand(kind: type[Retriever]) -> None:
    # One item of ten within the first two ranks' reach: beyond them nDCG@2 is 0, the pool's is not.
    data = shop(GAINS)
    retriever = indexed(kind(), data)
    texts, rows = ["red shoes", "boots, green", "wool scarf"] * 2, [0, 1, 2, 2, 0, 1]
    first, whole, mixed = (
        SearchReward(retriever, data, 2, 100, share)(texts, rows) for share in (0.0, 1.0, 0.25)
    )
    scores = retriever.score(texts, data.pools_RP[rows])
    assert first.tolist() == ndcg(scores, data.gains_RP[rows], 2).tolist()
    assert whole.tolist() == ndcg(scores, data.gains_RP[rows], len(ITEMS)).tolist()
    np.testing.assert_allclose(mixed, 0.75 * first + 0.25 * whole, rtol=1e-12)
    assert ((first == 0) & (whole > 0)).any()  # what it is for


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_credit_plays_the_game_of_the_mixed_reward(share: float) -> None:
    # Coalitions from parts, coalitions as texts and shown scores have the reward's own measure.
    data = shop(GAINS)
    reward = SearchReward(indexed(StaticRetriever(), data), data, 2, 100, share)
    assert reward.coalitions is not None
    units = ["green rubber", "boots", "for men"]
    masks = np.array(list(itertools.product([False, True], repeat=3)))
    texts = [" ".join(itertools.compress(units, mask)) for mask in masks]
    for row in range(len(GAINS)):
        [parts] = reward.coalitions([units], [row], [masks])
        assert parts.tolist() == reward(texts, [row] * len(texts)).tolist()
        shown = reward.measure(reward.pool_scores(texts[1:], [row] * len(texts[1:])), row)
        assert shown.tolist() == parts[1:].tolist()
