"""The credit engine: one batched evaluation, v(N) equal to the reward, seeded, and clear about bad
input.
"""

import subprocess
import sys

import numpy as np
import pytest

from ospo.credit import (
    ESTIMATORS,
    CreditEngine,
    Value,
    coalition_text,
    get_estimator,
    segment,
    shapley_values,
)
from ospo.credit.estimators import all_masks

ANSWERS = [
    "red cotton dress for the beach, slim fit and soft lining, with long sleeves",
    "warm waterproof jacket with hood, dark blue",
    "dress",
    "",
    "red cotton dress for the beach, slim fit and soft lining, with long sleeves",
]
ROWS = [0, 1, 1, 2, 3]


class WordValue:
    """A reward with interactions, seen by texts alone; counts its calls and texts."""

    def __init__(self):
        self.calls: list[list[tuple[str, int]]] = []

    def __call__(self, texts, rows):
        self.calls.append(list(zip(texts, map(int, rows), strict=True)))
        return np.array([self.one(text, int(row)) for text, row in zip(texts, rows, strict=True)])

    def one(self, text, row):
        words = set(text.replace(",", " ").split())
        value = (
            0.3 * ("dress" in words)
            + 0.2 * ("red" in words and "slim" in words)
            - 0.1 * ("hood" in words)
        )
        return value * (1 + 0.1 * row) + 0.013 * len(words) ** 0.5 if words else 0.0


def test_coalition_texts():
    seg = segment("red dress , slim  fit; for beach")
    assert [unit.strip() for unit in seg.units] == ["red dress ,", "slim  fit;", "for beach"]
    assert (
        coalition_text(seg, np.array([True, True, True])) == "red dress , slim  fit; for beach"
    )  # verbatim
    assert coalition_text(seg, np.array([True, False, True])) == "red dress , for beach"
    assert coalition_text(seg, np.array([False, False, False])) == ""
    with pytest.raises(ValueError, match="mask: wrong length 2, the text has 3 segments"):
        coalition_text(seg, np.array([True, False]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_call_for_all_completions_and_every_text_once(estimator):
    value = WordValue()
    credits = CreditEngine(value, estimator=estimator, budget=32).credit(ANSWERS, ROWS)
    assert len(value.calls) == 1
    assert len(value.calls[0]) == len(set(value.calls[0]))
    for answer, row, credit in zip(ANSWERS, ROWS, credits, strict=True):
        assert credit.segmentation.text == answer
        assert credit.phi_N.shape == (len(credit.segmentation),)
        assert credit.total == value.one(answer, row)
        assert credit.empty_value == 0
        assert credit.evaluations <= 32 or estimator == "exact"
        if get_estimator(estimator).efficient:
            assert credit.phi_N.sum() == pytest.approx(credit.total - credit.empty_value, abs=1e-9)


def test_exact_is_the_shapley_value_of_the_texts():
    value = WordValue()
    (credit,) = CreditEngine(value, estimator="exact").credit(ANSWERS[:1], [2])
    seg = credit.segmentation
    masks = all_masks(len(seg))
    values = np.array([value.one(coalition_text(seg, mask), 2) for mask in masks])
    assert credit.phi_N == pytest.approx(shapley_values(values), abs=1e-12)
    assert credit.evaluations == len(masks)


def test_v_of_all_must_be_the_terminal_reward():
    # Trap 2: coalition values from another game (no pool, other relevant items) than the reward's.
    value = WordValue()
    rewards = value(ANSWERS, ROWS)
    engine = CreditEngine(value, estimator="permutation")
    for credit, reward in zip(engine.credit(ANSWERS, ROWS, rewards), rewards, strict=True):
        assert credit.total == reward
    other = rewards.copy()
    other[1] = np.nextafter(other[1], 1)
    with pytest.raises(ValueError, match=r"answer 1 has reward .* but v\(N\) is"):
        engine.credit(ANSWERS, ROWS, other)
    with pytest.raises(ValueError, match=r"answer 0 .* v\(N\)"):
        engine.credit(ANSWERS, [row + 1 for row in ROWS], rewards)


@pytest.mark.parametrize("estimator", ["contiguous", "permutation", "stratified", "kernel", "auto"])
def test_seeded_and_independent_of_the_batch(estimator):
    # Trap 7: unseeded sampling. The same answer has the same credit in any batch and any run.
    text = "a red dress, slim fit, soft lining, long sleeves, deep pockets, blue belt, wide collar, gold buttons"

    def run(answers, rows, seed=0):
        np.random.seed(len(answers))  # noqa: NPY002 - the global generator must not matter
        return CreditEngine(
            WordValue(), estimator=estimator, budget=18, window=3, seed=seed
        ).credit(answers, rows)

    alone = run([text], [4])[0].phi_N
    assert run([*ANSWERS, text, "red"], [*ROWS, 4, 0])[5].phi_N.tolist() == alone.tolist()
    assert len(alone) >= 8
    others = [run([text], [4], seed)[0].phi_N.tolist() for seed in range(1, 5)]
    if estimator not in ("auto", "kernel"):
        assert any(other != alone.tolist() for other in others)


def test_groups_without_signal_are_not_evaluated():
    value = WordValue()
    skip = np.array([True, False, True, True, True])
    credits = CreditEngine(value, estimator="exact").credit(
        ANSWERS, ROWS, value(ANSWERS, ROWS), skip
    )
    assert {row for _, row in value.calls[1]} == {1}
    assert all(
        text in ("", *ANSWERS[1:2])
        or text in ANSWERS[1]
        or "jacket" in text
        or "hood" in text
        or "blue" in text
        for text, _ in value.calls[1]
    )
    for answer, credit, skipped in zip(ANSWERS, credits, skip, strict=True):
        assert credit.skipped == skipped
        if skipped:
            assert credit.phi_N.tolist() == [0.0] * len(credit.segmentation)
            assert credit.segmentation.text == answer
            assert credit.evaluations == 0
    before = len(value.calls)
    CreditEngine(value).credit(ANSWERS, ROWS, skip=np.ones(5, dtype=bool))
    assert len(value.calls) == before


def test_expansion_has_the_raw_querys_reward_as_empty_value():
    value = WordValue()

    def anchored(texts, rows):
        return value([f"red hood {text}".strip() for text in texts], rows)

    (credit,) = CreditEngine(anchored, estimator="exact").credit(["slim fit, dress"], [0])
    assert credit.empty_value == value.one("red hood", 0)
    assert credit.phi_N.sum() == pytest.approx(credit.total - credit.empty_value)


class PartsValue(WordValue, Value):
    """An additive reward whose coalitions can be scored from their parts."""

    pool = price = None

    @property
    def coalitions(self):
        return self.coalition_values

    def one(self, text, row):
        return sum(
            0.1 * (row + 1)
            for word in text.replace(",", " ").split()
            if word in ("red", "dress", "slim")
        )

    def coalition_values(self, units, rows, masks):
        self.parts = (units, list(rows), masks)
        return [
            masks_KN @ np.array([self.one(unit, row) for unit in units_N] or np.zeros(0))
            for units_N, row, masks_KN in zip(units, rows, masks, strict=True)
        ]


def test_parts_are_scored_alone_where_the_value_offers_it():
    value, direct = PartsValue(), WordValue()
    direct.one = value.one  # type: ignore[method-assign]
    rewards = value(ANSWERS, ROWS)
    fast = CreditEngine(value, estimator="permutation").credit(ANSWERS, ROWS, rewards)
    slow = CreditEngine(direct, estimator="permutation").credit(ANSWERS, ROWS, rewards)
    for a, b in zip(fast, slow, strict=True):
        assert a.phi_N == pytest.approx(b.phi_N, abs=1e-12)
        assert (a.total, a.empty_value) == (b.total, b.empty_value)
    # Only ∅ and N went through the text.
    assert {text for text, _ in value.calls[1]} == {"", *ANSWERS}
    assert all("" not in units for units in value.parts[0])


def test_long_answers_become_fewer_segments():
    text = "looking for a red dress with long sleeves, slim fit and soft lining. " * 100
    value = WordValue()
    (credit,) = CreditEngine(value, budget=32).credit([text], [0])
    assert 2 <= len(credit.segmentation) <= 16
    assert "".join(credit.segmentation.units) == text
    assert credit.evaluations <= 32


@pytest.mark.parametrize("unions", ["sentences", "clauses"])
@pytest.mark.parametrize("estimator", ["exact", "contiguous", "permutation", "auto"])
def test_unions(estimator, unions):
    (credit,) = CreditEngine(WordValue(), estimator=estimator, unions=unions).credit(
        ANSWERS[:1], [0]
    )
    assert sorted(i for union in credit.segmentation.unions for i in union) == list(
        range(len(credit.segmentation))
    )


def _returns(result):
    return lambda texts, rows: result(texts) if callable(result) else result


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            _returns(lambda texts: np.full(len(texts), np.nan)),
            r"values: non-finite value nan of coalition \[\].* 'red dress",
        ),
        (_returns(lambda texts: np.zeros(len(texts) + 1)), "values: wrong length"),
    ],
)
def test_bad_values_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        CreditEngine(value).credit(["red dress, slim fit"], [7])


def test_exceptions_are_not_swallowed():
    # Trap 7, second half: a failing retriever must not become a reward of 0.
    def broken(texts, rows):
        raise RuntimeError("retriever down")

    with pytest.raises(RuntimeError, match="retriever down"):
        CreditEngine(broken).credit(["red dress"], [0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": [0]}, "rows: wrong length 1, there are 2 answers"),
        ({"rewards": np.zeros(3)}, "rewards: wrong length 3"),
        ({"rewards": np.array([0.1, np.inf])}, "rewards: non-finite"),
        ({"skip": np.zeros(1, dtype=bool)}, "skip: wrong length 1"),
    ],
)
def test_bad_batches_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CreditEngine(WordValue()).credit(**({"answers": ["a", "b"], "rows": [0, 0]} | arguments))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="estimator: unknown name 'exactly'"):
        CreditEngine(WordValue(), estimator="exactly")
    with pytest.raises(ValueError, match="budget: 1"):
        CreditEngine(WordValue(), budget=1)
    with pytest.raises(ValueError, match="window of 0"):
        CreditEngine(WordValue(), estimator="contiguous", window=0)


def test_credit_imports_alone():
    code = (
        "import sys, ospo.credit; from ospo.credit import CreditEngine; "
        "bad = {'transformers', 'trl', 'mlflow', 'prefect', 'dvc', 'datasets', 'spacy', 'pandas'} "
        "& set(sys.modules); "
        "others = {m for m in sys.modules if m.startswith('ospo.') and not "
        "m.startswith('ospo.credit')}; "
        "sys.exit(f'{bad} {others}' if bad or others else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
