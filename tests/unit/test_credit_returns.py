"""Returns of decisions relative to the group, by hand; and what the to-go mode makes of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ospo.credit import (
    Segmentation,
    decisions,
    group_relative_returns,
    redistribute_returns,
    returns,
    segment,
)


def test_returns_by_hand() -> None:
    phi = np.array([0.4, -0.2, 0.1])
    assert returns(phi, 1.0) == pytest.approx([0.3, -0.1, 0.1, 0.0])
    assert returns(phi, 0.5) == pytest.approx([0.4 - 0.1 + 0.025, -0.15, 0.1, 0.0])
    assert returns(phi, 0.0) == pytest.approx([0.4, -0.2, 0.1, 0.0])
    assert returns(np.zeros(0), 0.5).tolist() == [0.0]
    with pytest.raises(ValueError, match="discount"):
        returns(phi, 1.5)


def test_the_baseline_is_the_groups_at_the_same_place() -> None:
    # The second completion stopped after one segment: it still counts at place 1, with 0, and not
    # at place 2.
    long, short = np.array([0.4, 0.2]), np.array([0.2])
    first, second = group_relative_returns([long, short], [0, 0], 0.0)
    assert first == pytest.approx([0.4 - 0.3, 0.2 - 0.1, 0.0])
    assert second == pytest.approx(
        [0.2 - 0.3, 0.0 - 0.1]
    )  # stopping cost what the other gained by going on
    with pytest.raises(ValueError, match="wrong shape"):
        group_relative_returns([long, short, long], [0, 0], 0.0)


@given(
    st.lists(
        arrays(np.float64, st.integers(0, 6), elements=st.floats(-1, 1, allow_subnormal=False)),
        min_size=4,
        max_size=4,
    ),
    st.floats(0, 1),
)
def test_relative_returns_sum_to_0_at_each_place(phis: list[np.ndarray], discount: float) -> None:
    for group in (phis[:2], phis[2:]):
        relative = group_relative_returns(group, [0, 0], discount)
        for j in range(max(map(len, relative))):
            assert sum(r[j] for r in relative if len(r) > j) == pytest.approx(0, abs=1e-9)


def test_with_discount_1_the_first_return_is_grpos_numerator() -> None:
    phis = [np.array([0.3, 0.1]), np.array([0.2]), np.array([0.0, -0.1, 0.3]), np.zeros(0)]
    rewards = np.array([phi.sum() for phi in phis])
    relative = group_relative_returns(phis, [0, 0, 0, 0], 1.0)
    assert [r[0] for r in relative] == pytest.approx((rewards - rewards.mean()).tolist())


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        ("red dress, linen", "</answer>", ["red dress", ", linen", "</answer>"]),
        ("red dress,linen", "", ["red dress", ",linen"]),
        ("red dress", " </answer>", ["red dress", " </answer>"]),
        ("größe 38, 👟, 日本", "", ["größe 38", ", 👟,", " 日本"]),
        ("", "</answer>", ["</answer>"]),
        ("", "", []),
    ],
)
def test_a_separator_belongs_to_the_segment_that_it_opens(
    text: str, after: str, expected: list[str]
) -> None:
    found = decisions(segment(text, "delimiters"), after)
    assert found.text == text + after
    assert found.units == expected


def test_punctuation_alone_stays_a_segment() -> None:
    found = decisions(Segmentation("a;;;b", ((0, 1), (1, 4), (4, 5))), "")
    assert found.units == ["a", ";;;", "b"]


def test_to_go_by_hand() -> None:
    # One completion of two segments of one token each and its closing; x = G − b.
    x = torch.tensor([[0.3, -0.1, 0.1]], dtype=torch.float64)
    ones = torch.ones(1, 3)
    result = redistribute_returns(
        torch.tensor([0.5]), x, ones, ones, torch.tensor([0.2]), alpha=1.0, clip=99.0
    )[0].tolist()
    # A + (x − mean x) / (std + ε), mean x = 0.1.
    assert result == pytest.approx([0.5 + 0.2 / 0.2001, 0.5 - 0.2 / 0.2001, 0.5], rel=1e-5)
    assert sum(result) / 3 == pytest.approx(0.5)


def test_to_go_gives_a_bad_phrase_of_a_good_completion_less_and_stopping_its_due() -> None:
    good, poor = np.array([0.6, -0.2]), np.array([0.1])
    relative = group_relative_returns([good, poor], [0, 0], 0.5)
    credit = torch.zeros(2, 3, dtype=torch.float64)
    credit[0], credit[1, :2] = torch.tensor(relative[0]), torch.tensor(relative[1])
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    advantages = torch.tensor([0.7, -0.7], dtype=torch.float64)
    result = redistribute_returns(
        advantages, credit, mask, mask, torch.tensor([0.2, 0.2]), clip=9.0
    )
    assert result[0, 0] > result[0, 2] > result[0, 1]
    assert (
        result[1, 1] > result[1, 0]
    )  # stopping after one segment was right: the other went on and lost
    assert result[1, 2] == 0  # padding
