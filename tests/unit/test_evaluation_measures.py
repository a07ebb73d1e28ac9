"""Ranking measures against hand-computed values, and against ir_measures and trec_eval itself over
whole rankings.
"""

import math

import ir_measures
import numpy as np
import pytest
import pytrec_eval

from ospo.evaluation.measures import (
    ANY_GRADE,
    BINARY,
    GRADED,
    HIGHEST_GRADE,
    MEASURES,
    binary_measures,
    full_catalogue,
    measure,
)


def test_hand_computed() -> None:
    # Ranked: gain 0.1, 1.0, 0, 1.0 (the pool's order is another).
    scores = np.array([[2.0, 3.0, 1.0, 4.0]])
    gains = np.array([[0.0, 1.0, 1.0, 0.1]], dtype=np.float32)
    values = measure(scores, gains)
    dcg = 0.1 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 / math.log2(2) + 1 / math.log2(3) + 0.1 / math.log2(4)
    assert values["ndcg@10"][0] == pytest.approx(dcg / ideal, rel=1e-7)
    exact = (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert values["ndcg_exact@10"][0] == pytest.approx(exact, rel=1e-7)
    assert values["rr_exact"][0] == 0.5
    assert values["ap_exact"][0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert values["recall_exact@10"][0] == 1.0
    # With every grade counted the item on rank 1 is relevant too.
    assert values["rr"][0] == 1.0
    assert values["ap"][0] == pytest.approx((1 / 1 + 2 / 2 + 3 / 4) / 3)
    assert values["recall@10"][0] == 1.0


def test_every_grade_counts_unless_the_name_says_exact() -> None:
    """Of three relevant items one has the highest grade; it stands on rank 12, the others on ranks
    2 and 30.
    """
    scores = -np.arange(40, dtype=np.float64)[None]
    gains = np.zeros((1, 40), dtype=np.float32)
    gains[0, [1, 11, 29]] = 0.1, 1.0, 0.01
    values = {name: float(value[0]) for name, value in measure(scores, gains).items()}
    assert [values[f"recall@{k}"] for k in (10, 20, 50)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [values[f"recall_exact@{k}"] for k in (10, 20, 50)] == [0, 1, 1]
    assert (values["rr"], values["rr_exact"]) == pytest.approx((1 / 2, 1 / 12))
    assert values["ap"] == pytest.approx((1 / 2 + 2 / 12 + 3 / 30) / 3)
    assert values["ap_exact"] == pytest.approx(1 / 12)


def test_cut_offs_bite() -> None:
    scores = -np.arange(60, dtype=np.float64)[None]
    gains = np.zeros((1, 60), dtype=np.float32)
    gains[0, [10, 25]] = 1.0
    values = measure(scores, gains)
    assert [values[f"recall@{k}"][0] for k in (10, 20, 50)] == [0, 0.5, 1]
    assert values["ndcg@10"][0] == 0 < values["ndcg@20"][0] < values["ndcg@50"][0]


@pytest.mark.parametrize("seed", range(3))
def test_against_ir_measures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    requests, pool = 25, 80
    scores = rng.permuted(np.tile(np.arange(pool, dtype=np.float32), (requests, 1)), axis=1)
    gains = rng.choice(
        [0, 0.01, 0.1, 1.0], p=[0.8, 0.08, 0.06, 0.06], size=(requests, pool)
    ).astype(np.float32)
    gains[:, 3] = 1.0
    ours = measure(scores, gains)
    run = {str(r): {str(p): float(scores[r, p]) for p in range(pool)} for r in range(requests)}
    # ir_measures' providers take integer gains; nDCG does not change when all gains are scaled
    # alike.
    graded = {
        str(r): {str(p): round(100 * float(gains[r, p])) for p in range(pool)}
        for r in range(requests)
    }
    exact = {q: {p: int(gain == 100) for p, gain in row.items()} for q, row in graded.items()}
    for names, qrels in ((GRADED, graded), (ANY_GRADE, graded), (HIGHEST_GRADE, exact)):
        for name, text in names.items():
            found = ir_measures.iter_calc([ir_measures.parse_measure(text)], qrels, run)
            by_request = {metric.query_id: metric.value for metric in found}
            expected = [by_request[str(r)] for r in range(requests)]
            np.testing.assert_allclose(ours[name], expected, atol=1e-7, err_msg=name)
    # trec_eval's own recall, reciprocal rank and average precision of the graded judgements.
    names = {"recip_rank": "rr", "map": "ap"} | {f"recall_{k}": f"recall@{k}" for k in (10, 20, 50)}
    asked = {"recip_rank", "map", "recall.10,20,50"}
    by_trec = pytrec_eval.RelevanceEvaluator(graded, asked).evaluate(run)
    for theirs, name in names.items():
        expected = [by_trec[str(r)][theirs] for r in range(requests)]
        np.testing.assert_allclose(ours[name], expected, atol=1e-7, err_msg=name)
    assert set(ours) == set(MEASURES)


def test_against_ranx() -> None:
    """Means that ranx 0.3.21 gives for the same scores and judgements (graded, gains × 100)."""
    rng = np.random.default_rng(5)
    scores = rng.permuted(np.tile(np.arange(80, dtype=np.float32), (25, 1)), axis=1)
    gains = rng.choice([0, 0.01, 0.1, 1.0], p=[0.8, 0.08, 0.06, 0.06], size=(25, 80))
    gains[:, 3] = 1.0
    ranx = {
        "recall@10": 0.14934426780799107,
        "recall@20": 0.27438439290626665,
        "recall@50": 0.6323370101055523,
        "rr": 0.5097435897435897,
        "ap": 0.2618320575218726,
    }
    values = measure(scores, gains.astype(np.float32))
    assert {name: values[name].mean() for name in ranx} == pytest.approx(ranx)
    assert values["recall_exact@50"].mean() != pytest.approx(ranx["recall@50"])


def by_hand(hits: list[int], relevant: int) -> dict[str, float]:
    """Binary measures from the ranks (from 1) of the relevant items found: the textbook formulas,
    one by one, by their names in ir_measures.
    """
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, min(relevant, 10) + 1))
    values = {
        "nDCG@10": sum(1 / math.log2(1 + rank) for rank in hits if rank <= 10) / ideal,
        "RR": 1 / hits[0] if hits else 0.0,
        "AP": sum((n + 1) / rank for n, rank in enumerate(hits)) / relevant,
    }
    return values | {
        f"R@{k}": sum(rank <= k for rank in hits) / relevant for k in (10, 20, 50, 100, 1000)
    }


@pytest.mark.parametrize(
    ("hits", "relevant"),
    [
        ([1], 1),
        ([100], 1),
        ([], 3),
        ([2, 3, 11], 5),
        ([1, 2, 3, 4], 4),
        ([10, 20, 50, 64, 65], 5),
        ([1, 999, 1040], 4),
    ],
)
def test_binary_measures_by_hand(hits: list[int], relevant: int) -> None:
    hits_BP = np.zeros((1, 1100), dtype=bool)
    hits_BP[0, [rank - 1 for rank in hits]] = True
    found = dict(zip(BINARY, binary_measures(hits_BP, np.array([relevant]))[0], strict=True))
    assert found == pytest.approx(by_hand(hits, relevant), abs=1e-12)


def test_ranks_are_remembered_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is asked once for a set of ranks; a full memo forgets the oldest and changes no
    value.
    """
    from ospo.evaluation import measures

    monkeypatch.setattr(measures, "_memo", type(measures._memo)())
    monkeypatch.setattr(measures, "MEMO", 5)
    hits_BP = np.random.default_rng(0).random((40, 30)) < 0.2
    hits_BP[20:] = hits_BP[:20]
    first = binary_measures(hits_BP, hits_BP.sum(axis=1))
    assert len(measures._memo) == 5
    assert np.array_equal(first[:20], first[20:])
    asked = []
    monkeypatch.setattr(
        measures, "_by_library", lambda ranks, relevant: asked.append(len(ranks)) or []
    )
    assert np.array_equal(binary_measures(hits_BP[15:20], hits_BP[15:20].sum(axis=1)), first[15:20])
    assert asked == []


def test_ties_keep_pool_order_and_padding_is_last() -> None:
    scores = np.array([[1.0, 1.0, -np.inf], [0.0, 5.0, -np.inf]])
    gains = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=np.float32)
    values = measure(scores, gains)
    assert values["rr"].tolist() == [0.5, 0.5]


def test_no_relevant_item_scores_zero() -> None:
    values = measure(np.array([[2.0, 1.0]]), np.zeros((1, 2), dtype=np.float32))
    assert all(value[0] == 0 for value in values.values())


def test_full_catalogue_counts_what_was_not_retrieved() -> None:
    pools = np.array([[7, 2, -1], [4, 9, 0]])
    gains = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.1]], dtype=np.float32)
    rows = np.array([[2, 5], [0, 9]])  # the first search misses item 7
    scores = np.array([[3.0, 2.0], [3.0, 2.0]], dtype=np.float32)
    values = measure(*full_catalogue(rows, scores, pools, gains, items=10))
    assert values["recall@1000"].tolist() == [0.5, 1.0]
    assert values["ap_exact"].tolist() == [0.5, 0.5]
    assert values["rr_exact"].tolist() == [1.0, 0.5]
    assert values["ap"].tolist() == [0.5, 1.0]
    assert values["rr"].tolist() == [1.0, 1.0]
    # Request 0: one of two relevant items, on rank 1. Request 1: 0.1 on rank 1, 1.0 on rank 2.
    ideal = 1 + 1 / math.log2(3)
    assert values["ndcg@10"][0] == pytest.approx(1 / ideal)
    assert values["ndcg@10"][1] == pytest.approx(
        (0.1 + 1 / math.log2(3)) / (1 + 0.1 / math.log2(3))
    )


def test_full_catalogue_equals_pool_where_the_pool_is_the_catalogue() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(6, 30)).astype(np.float32)
    gains = (rng.random((6, 30)) < 0.2).astype(np.float32)
    gains[:, 0] = 1
    pools = np.tile(rng.permutation(30), (6, 1))
    order = np.argsort(-scores, axis=1)
    rows = np.take_along_axis(pools, order, axis=1)
    found = measure(
        *full_catalogue(rows, np.take_along_axis(scores, order, axis=1), pools, gains, 30)
    )
    for name, value in measure(scores, gains).items():
        np.testing.assert_allclose(found[name], value, err_msg=name)
