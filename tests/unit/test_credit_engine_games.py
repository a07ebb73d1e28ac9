"""The engine's games, one by one: each answer's own, whatever stands beside it in the batch."""

import numpy as np
import pytest

from ospo.credit import CreditEngine, PoolScores, Value, group_relative_returns, paid
from ospo.credit.bayes import Surrogate, interpolate
from ospo.credit.estimators import all_masks
from ospo.credit.owen import owen_values, shapley_values

WORDS = "alpha beta gamma delta epsilon zeta eta theta".split()
rng = np.random.default_rng(5)
ITEMS = rng.normal(size=(3, len(WORDS), 30))  # per request: what each word adds to each item


class Search(Value):
    """A small engine: item scores add up over words, relative to the square root of their number;
    the reward is the reciprocal rank of item 0, discounted. An empty text is worth .01 × row.
    """

    coalitions = price = None

    def __init__(self) -> None:
        self.texts = 0

    @property
    def pool(self) -> PoolScores:
        return self

    def pool_scores(self, texts, rows):
        return np.stack([self._scores(text, row) for text, row in zip(texts, rows, strict=True)])

    def _scores(self, text, row):
        words = [WORDS.index(word) for word in text.replace(",", " ").split()]
        return ITEMS[row, words].sum(0) / np.sqrt(max(1, len(words)))

    def measure(self, scores_MP, row):
        return 1 / np.log2((scores_MP > scores_MP[:, :1]).sum(1) + 2)

    def __call__(self, texts, rows):
        self.texts += len(texts)
        scores = self.pool_scores(texts, rows)
        values = [self.measure(s[None], row)[0] for s, row in zip(scores, rows, strict=True)]
        empty = [not text.strip() for text in texts]
        return np.where(empty, 0.01 * np.asarray(rows), values)


LONG, SHORT = ", ".join(WORDS[:7]), ", ".join(WORDS[2:5])


def engine(**settings) -> CreditEngine:
    return CreditEngine(Search(), segments="delimiters", budget=32, **settings)


def test_games_beside_each_other_are_the_games_alone() -> None:
    """Small games are exact and need no scores; those of the large ones must be their own."""
    answers, rows = [SHORT, LONG, SHORT, LONG, LONG], [0, 1, 2, 0, 2]
    together = engine().credit(answers, rows)
    assert {credit.estimator for credit in together} == {"exact", "surrogate"}
    for answer, row, credit in zip(answers, rows, together, strict=True):
        [alone] = engine().credit([answer], [row])
        assert credit.phi_N == pytest.approx(alone.phi_N, abs=1e-12)
        assert credit.empty_value == 0.01 * row


def _game(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    masks = all_masks(n)
    texts = [" ".join(w for w, here in zip(WORDS, mask, strict=False) if here) for mask in masks]
    value = Search()
    return masks, value(texts, [1] * len(texts)), value.pool_scores(texts, [1] * len(texts))


def test_evaluated_values_are_kept_by_the_surrogate() -> None:
    """Predictions fill in what was not evaluated, and nothing else."""
    masks, values, scores = _game(6)
    seen = np.sort(np.random.default_rng(0).permutation(np.arange(1, 63))[:20])
    seen = np.concatenate([[0], seen, [63]])
    found = Surrogate().fit_scores(
        6, (), masks[seen], values[seen], scores[seen], lambda given: np.full(len(given), 0.5)
    )
    game = np.full(64, 0.5)
    game[seen] = values[seen]
    assert found == pytest.approx(shapley_values(game))
    unions = ((0, 1, 2), (3, 4, 5))
    owen = Surrogate().fit_scores(
        6, unions, masks[seen], values[seen], scores[seen], lambda given: np.full(len(given), 0.5)
    )
    assert owen == pytest.approx(owen_values(game, unions))


def test_a_text_in_which_the_retriever_sees_nothing_tells_nothing() -> None:
    """The empty text scores every item alike: others are inferred as if it had not been scored."""
    masks, values, scores = _game(6)
    seen = np.concatenate([[0], np.random.default_rng(0).permutation(np.arange(1, 63))[:20], [63]])
    shifted = scores[seen] + 3.0  # as if all texts scored around 3
    zero, same = shifted.copy(), shifted.copy()
    zero[0], same[0] = 0.0, 3.0
    measure = Search().measure

    def fit(given: np.ndarray) -> np.ndarray:
        return Surrogate().fit_scores(
            6, (), masks[seen], values[seen], given, lambda s: measure(s, 1)
        )

    game = measure(interpolate(masks[seen[1:]], shifted[1:], masks), 1)
    game[seen] = values[seen]
    assert fit(zero) == pytest.approx(shapley_values(game))
    assert fit(zero) == pytest.approx(fit(same))


def test_unions_are_of_the_players_where_repeats_do_not_play() -> None:
    """ "alpha" again in the second sentence: its union then is of the two words that play."""
    text = "alpha, beta. alpha, gamma, delta."
    worth = {"alpha": 0.3, "beta": 0.1, "gamma": 0.2, "delta": 0.4}

    def value(texts, rows):
        found = []
        for one in texts:
            words = {word.strip(",.") for word in one.split()}
            together = 0.5 * ({"gamma", "beta", "delta"} <= words) + 0.25 * (
                {"delta", "gamma"} <= words
            )
            found.append(sum(worth[word] for word in words) + together)
        return np.array(found)

    settings = {"segments": "delimiters", "unions": "sentences", "estimator": "exact"}
    [credit] = CreditEngine(value, **settings).credit([text], [0])
    order = ["alpha", "beta", "gamma", "delta"]
    masks = all_masks(4)
    game = value(
        [" ".join(w for w, here in zip(order, mask, strict=True) if here) for mask in masks], None
    )
    expected = owen_values(game, ((0, 1), (2, 3)))
    assert credit.phi_N[[0, 1, 3, 4]] == pytest.approx(expected)
    assert expected != pytest.approx(shapley_values(game))


def test_different_answers_draw_different_coalitions() -> None:
    draws = []
    for answer in (", ".join(WORDS[:7]), ", ".join(WORDS[1:8])):
        seen: list[frozenset[int]] = []

        def value(texts, rows, answer=answer, seen=seen):
            words = answer.replace(",", "").split()
            for text in texts:
                held = text.replace(",", "").split()
                seen.append(frozenset(words.index(word) for word in held))
            return np.zeros(len(texts))

        CreditEngine(value, segments="delimiters", estimator="permutation").credit([answer], [0])
        draws.append(set(seen))
    assert draws[0] != draws[1]


def test_coalitions_scored_from_their_parts_are_all_played() -> None:
    """Eight phrases and a budget of 32: all 256 coalitions, because they cost next to nothing."""

    class Linear(Value):
        pool = price = None

        def __call__(self, texts, rows):
            return np.array([float(len(text.split())) for text in texts])

        @property
        def coalitions(self):
            return lambda units, rows, masks: [mask.sum(axis=1) * 1.0 for mask in masks]

    answer = ", ".join(WORDS)
    linear = CreditEngine(Linear(), segments="delimiters", budget=32)
    [credit] = linear.credit([answer], [0])
    assert (credit.evaluations, credit.estimator) == (256, "exact")


def test_what_is_paid_is_the_smaller_of_credit_and_addition() -> None:
    def worth(texts, rows):
        return np.array([0.3 * ("red" in text) for text in texts])

    [credit] = CreditEngine(worth, segments="delimiters", added=True).credit(["red, red hot"], [0])
    assert credit.phi_N == pytest.approx([0.15, 0.15])
    assert paid(credit) == pytest.approx([0.15, 0.0])


def test_each_group_has_a_baseline_of_its_own() -> None:
    phis = [np.array([0.4, 0.1]), np.array([0.9]), np.array([0.2]), np.array([0.1, 0.3])]
    together = group_relative_returns(phis, [5, 2, 5, 2], 0.5)
    first = group_relative_returns([phis[0], phis[2]], [0, 0], 0.5)
    second = group_relative_returns([phis[1], phis[3]], [0, 0], 0.5)
    for found, expected in zip(together, [first[0], second[0], first[1], second[1]], strict=True):
        assert found == pytest.approx(expected)
