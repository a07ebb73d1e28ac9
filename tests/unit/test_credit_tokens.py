"""Token advantages for any trainer: groups in any order, every mode, credits that must fit."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
import torch

from ospo.credit import (
    Completions,
    Credit,
    CreditEngine,
    Redistribution,
    group_advantages,
    token_advantages,
)
from ospo.credit.advantages import EPSILON, Mode, redistribute

WORTH = {"linen": 0.4, "red": 0.3, "slim": 0.1}


def worth(texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
    """Each known word once."""
    return np.array([sum(v for k, v in WORTH.items() if k in text) for text in texts])


def completions_of(answers: list[str], closed: bool = True) -> Completions:
    """One token per character, the answer between tags of five characters."""
    texts = [f"<ans>{answer}" + ("</a>" if closed else "") for answer in answers]
    spans = [np.stack([np.arange(len(t)), np.arange(len(t)) + 1], axis=1) for t in texts]
    closings = ["</a>" if closed else ""] * len(answers)
    return Completions(texts, spans, answers, [5] * len(answers), closings)


def masks_of(completions: Completions) -> torch.Tensor:
    width = max(map(len, completions.texts))
    return torch.tensor(
        [[float(t < len(text)) for t in range(width)] for text in completions.texts]
    )


ANSWERS = ["linen, red", "slim", "red, wide, slim", "linen", "red, red hot", "wide"]
GROUPS = [7, 3, 7, 3, 7, 3]


def played(answers: list[str], added: bool = True) -> list[Credit]:
    engine = CreditEngine(worth, segments="delimiters", estimator="exact", added=added)
    return engine.credit(answers, [0] * len(answers))


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.2, 0.0, 0.2, 0.5], dtype=torch.float64)
    advantages, std = group_advantages(rewards, [4, 1, 4, 1, 9])
    spread = float(np.std([1.0, 0.0], ddof=1))
    assert std.tolist() == pytest.approx([spread, 0, spread, 0, 0])
    assert advantages.tolist() == pytest.approx(
        [0.5 / (spread + EPSILON), 0, -0.5 / (spread + EPSILON), 0, 0]
    )
    unscaled, _ = group_advantages(rewards, [4, 1, 4, 1, 9], scale=False)
    assert unscaled.tolist() == pytest.approx([0.5, 0, -0.5, 0, 0])


@pytest.mark.parametrize("mode", get_args(Mode))
def test_groups_may_stand_in_any_order(mode: Mode) -> None:
    rewards = torch.tensor(worth(ANSWERS, GROUPS))
    how = Redistribution(mode, alpha=0.7)
    order = [4, 1, 0, 5, 3, 2]

    def laid(numbers: list[int]) -> torch.Tensor:
        answers, groups = [ANSWERS[i] for i in numbers], [GROUPS[i] for i in numbers]
        completions = completions_of(answers)
        advantages, std = group_advantages(rewards[numbers], groups)
        mask = masks_of(completions)
        result = token_advantages(how, played(answers), completions, mask, groups, advantages, std)
        assert torch.allclose(result.sum(1) / mask.sum(1), advantages)
        assert (result[mask == 0] == 0).all()
        return result

    first, second = laid(list(range(6))), laid(order)
    for place, number in enumerate(order):
        assert torch.allclose(second[place], first[number])
    assert mode == "none" or not torch.allclose(first[0], first[0].mean())


def to_go(credits: list[Credit], answers: list[str], groups: list[int], **numbers: float):
    completions = completions_of(answers)
    rewards = torch.tensor([credit.total for credit in credits])
    advantages, std = group_advantages(rewards, groups)
    how = Redistribution("to-go", clip=99.0, **numbers)
    mask = masks_of(completions)
    return token_advantages(how, credits, completions, mask, groups, advantages, std), std


def test_to_go_by_hand_from_credits() -> None:
    """Two completions of one group: the baseline is the group's, stopping is a decision, and the
    discount reaches it.
    """
    answers = ["linen, wide", "red"]
    credits = played(answers)
    assert [c.phi_N.tolist() for c in credits] == [pytest.approx([0.4, 0]), pytest.approx([0.3])]
    result, std = to_go(credits, answers, [0, 0], discount=0.5)
    # Returns: (.4 + .5·0, 0, 0) and (.3, 0); baselines (.35, 0, 0): deviations ±.05 for the first
    # decision and 0 for what follows, centred over the tokens of answer and closing.
    scale = float(std[0]) + EPSILON
    share = 5 / (11 + 4)  # "linen" of "linen, wide" and its closing
    assert float(result[0, 5] - result[0, 10]) == pytest.approx(0.05 / scale, rel=1e-4)
    first = float(group_advantages(torch.tensor([0.4, 0.3]), [0, 0])[0][0])
    assert float(result[0, 5]) == pytest.approx(first + 0.05 * (1 - share) / scale, rel=1e-4)
    assert float(result[0, 0]) == pytest.approx(first, rel=1e-4)  # outside the answer
    # A better first phrase and a worthless second: the second token span hears nothing of it with
    # discount 0, and a completion that could have gone on hears of stopping.
    answers = ["wide, linen", "wide"]
    near, _ = to_go(played(answers), answers, [0, 0], discount=0.0)
    far, _ = to_go(played(answers), answers, [0, 0], discount=1.0)
    assert float(near[0, 5]) < float(near[0, 12])  # "wide" alone earned nothing
    assert float(far[0, 5]) == pytest.approx(float(far[0, 12]), rel=1e-3)
    stop = 5 + len("wide")  # the closing tag of the second completion
    assert float(near[1, stop]) < float(near[1, 5])


def test_a_baseline_of_the_completion_itself_would_be_zero_everywhere() -> None:
    answers = ["linen, red", "slim"]
    together, _ = to_go(played(answers), answers, [0, 0])
    assert not torch.allclose(together[0, 5:15], together[0, 5].expand(10))


def test_a_segment_is_paid_no_more_than_it_added() -> None:
    """ "red hot" adds nothing to "red": its credit is half of red's, its pay is nothing."""
    answers = ["red, red hot", "wide"]
    credits = played(answers)
    assert credits[0].phi_N.tolist() == pytest.approx([0.15, 0.15])
    assert credits[0].added_N is not None
    assert credits[0].added_N.tolist() == pytest.approx([0.3, 0.0])
    result, _ = to_go(credits, answers, [0, 0], discount=0.0)
    assert float(result[0, 5]) > float(result[0, 16])


def test_added_is_counted_from_the_empty_text() -> None:
    """v(∅) need not be 0: an answer appended to the raw query."""

    def anchored(texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        return 0.25 + worth(texts, rows)

    engine = CreditEngine(anchored, segments="delimiters", estimator="exact", added=True)
    [credit] = engine.credit(["linen, red"], [0])
    assert credit.empty_value == 0.25
    assert credit.added_N is not None
    assert credit.added_N.tolist() == pytest.approx([0.4, 0.3])


def test_credits_that_do_not_fit_are_refused() -> None:
    completions = completions_of(["linen, red", "slim"])
    mask, zeros = masks_of(completions), torch.zeros(2)
    lacking = played(completions.answers, added=False)
    with pytest.raises(ValueError, match="added=True"):
        token_advantages(Redistribution("to-go"), lacking, completions, mask, [0, 0], zeros, zeros)
    swapped = played(completions.answers[::-1])
    with pytest.raises(ValueError, match="not of the answer"):
        token_advantages(
            Redistribution("additive"), swapped, completions, mask, [0, 0], zeros, zeros
        )
    with pytest.raises(ValueError, match="1 for 2 completions"):
        token_advantages(
            Redistribution("additive"), swapped[:1], completions, mask, [0, 0], zeros, zeros
        )
    with pytest.raises(ValueError, match="use token_advantages"):
        redistribute("to-go", zeros, mask, mask, mask, zeros)
