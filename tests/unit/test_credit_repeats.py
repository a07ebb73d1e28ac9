"""Repeats say nothing new: they do not share in the credit of what they repeat."""

import numpy as np
import pytest

from ospo.credit import CreditEngine, Segmentation, segment
from ospo.credit.estimators import all_masks
from ospo.credit.owen import owen_values, shapley_values
from ospo.credit.segments import join_repeats, repeated
from ospo.credit.tokens import paid
from ospo.credit.values import Value
from ospo.reward.costs import PricedReward


def worth(texts, rows):
    """.4 for linen, .3 for blue, .1 more for both; said once or often."""
    values = []
    for text in texts:
        words = set(text.lower().replace(",", " ").replace(".", " ").split())
        both = {"linen", "blue"} <= words
        values.append(0.4 * ("linen" in words) + 0.3 * ("blue" in words) + 0.1 * both)
    return np.array(values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red, blue, Red", [False, False, True]),
        ("red,,,,, red", [False, True]),
        ("red red, red", [False, True]),
        ("red shoe, shoe red", [False, False]),
        ("👟, 👟, 日本", [False, True, False]),
        (",,,,", [False]),
        ("", []),
    ],
)
def test_what_repeats(text: str, expected: list[bool]) -> None:
    assert repeated(segment(text, "delimiters")) == expected


def test_repeats_earn_nothing_and_cost_what_they_cost() -> None:
    text = "linen, blue, linen, linen, Linen"
    [credit] = CreditEngine(worth, segments="delimiters").credit([text], [0], worth([text], [0]))
    assert credit.segmentation.units == ["linen,", " blue,", " linen, linen, Linen"]
    assert credit.phi_N == pytest.approx([0.45, 0.35, 0.0])
    reward = PricedReward(worth, 0.5)
    [priced] = CreditEngine(reward, segments="delimiters").credit([text], [0], reward([text], [0]))
    assert priced.phi_N[:2] == pytest.approx(
        [0.45, 0.35], abs=0.05
    )  # a comma at the end of a coalition costs a little
    assert priced.phi_N[2] == pytest.approx(
        reward([text], [0])[0] - reward(["linen, blue,"], [0])[0]
    )
    assert priced.phi_N[2] < -0.1
    assert priced.phi_N.sum() == pytest.approx(priced.total - priced.empty_value)


def test_a_text_without_repeats_is_played_as_ever() -> None:
    text = "linen, blue, for men"
    [credit] = CreditEngine(worth, segments="delimiters").credit([text], [0])
    values = worth(
        [" ".join(np.array(["linen", "blue", "for men"])[mask]) for mask in all_masks(3)], [0] * 8
    )
    assert credit.phi_N == pytest.approx(shapley_values(values))


def test_unions_without_their_repeats() -> None:
    whole = Segmentation(
        "a, b. b, a, c", ((0, 2), (2, 5), (5, 8), (8, 11), (11, 13)), ((0, 1), (2, 3, 4))
    )
    joined, flags = join_repeats(whole, 12)
    assert joined.units == ["a,", " b.", " b, a,", " c"]
    assert flags == [False, False, True, False]
    assert joined.unions == ((0, 1), (2, 3))
    text = "linen, blue and linen. for men, blue"
    [credit] = CreditEngine(worth, segments="delimiters", unions="sentences").credit([text], [0])
    assert credit.phi_N.sum() == pytest.approx(0.8)
    played = [i for i, flag in enumerate(repeated(credit.segmentation)) if not flag]
    texts = [credit.segmentation.units[i].strip(" ,.") for i in played]
    values = worth(
        [" ".join(np.array(texts)[mask]) for mask in all_masks(len(played))],
        [0] * (1 << len(played)),
    )
    number = {segment: player for player, segment in enumerate(played)}
    unions = [
        tuple(number[i] for i in union if i in number) for union in credit.segmentation.unions
    ]
    assert credit.phi_N[played] == pytest.approx(owen_values(values, [u for u in unions if u]))


def test_the_budget_holds_and_many_repeats_cost_no_players() -> None:
    words = [f"w{i}" for i in range(9)]
    text = ", ".join(words + ["linen"] * 40)
    asked: list[str] = []

    def value(texts, rows):
        asked.extend(texts)
        return worth(texts, rows)

    [credit] = CreditEngine(value, segments="delimiters", budget=32).credit([text], [0])
    assert len(credit.segmentation) == 11  # ten players and their repeats
    assert credit.evaluations <= 32
    assert len(set(asked)) <= 32
    assert credit.phi_N[9] == pytest.approx(0.4, abs=0.02)
    assert credit.phi_N[10] == pytest.approx(0.0)


def test_linear_retrievers_skip_repeats_alike() -> None:
    class Linear(Value):
        pool = price = None

        @property
        def coalitions(self):
            return self.coalition_values

        def __call__(self, texts, rows):
            return worth(texts, rows)

        def coalition_values(self, units, rows, masks):
            return [
                worth(
                    [
                        " ".join(u for u, here in zip(parts, mask, strict=True) if here)
                        for mask in coalitions
                    ],
                    None,
                )
                for parts, coalitions in zip(units, masks, strict=True)
            ]

    text = "linen, blue, linen, for men, blue"
    [fast] = CreditEngine(Linear(), segments="delimiters").credit([text], [0])
    [direct] = CreditEngine(worth, segments="delimiters").credit([text], [0])
    assert fast.phi_N == pytest.approx(direct.phi_N)


# --- variants: near-repeats, which no comparison of words can tell
# ---------------------------------------------------


def stemmed(texts, rows):
    """A retriever that hears "stack" in "stackable" and "stacks": worth .6 said once or often;
    "green" .2 more.
    """
    return np.array([0.6 * ("stack" in text) + 0.2 * ("green" in text) for text in texts])


@pytest.mark.parametrize("estimator", ["auto", "exact", "permutation"])
def test_what_a_segment_added_to_those_before_it(estimator: str) -> None:
    texts = ["stackable, stackables, green, stacks", "green", "", "green, green, stackable"]
    credits = CreditEngine(stemmed, segments="delimiters", estimator=estimator, added=True).credit(
        texts, [0] * 4
    )
    assert [list(np.round(credit.added_N, 9)) for credit in credits] == [
        [0.6, 0.0, 0.2, 0.0], [0.2], [], [0.2, 0.0, 0.6]
    ]  # fmt: skip
    plain = CreditEngine(stemmed, segments="delimiters", estimator=estimator).credit(texts, [0] * 4)
    for credit, other in zip(credits, plain, strict=True):
        assert other.added_N is None
        assert credit.phi_N.tolist() == other.phi_N.tolist(), "the credit itself does not change"
        assert credit.added_N.sum() == pytest.approx(credit.total - credit.empty_value)


def test_variants_of_a_phrase_are_not_paid() -> None:
    text = "stackable, stackables, green, stacks"
    [credit] = CreditEngine(stemmed, segments="delimiters", estimator="exact", added=True).credit(
        [text], [0]
    )
    assert credit.phi_N == pytest.approx([0.2, 0.2, 0.2, 0.2]), "Shapley's symmetry shares it out"
    assert paid(credit) == pytest.approx([0.2, 0.0, 0.2, 0.0])
