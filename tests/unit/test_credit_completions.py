"""From completions' ids to token advantages in one call: any mode, order, size and precision."""

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
    completion_advantages,
    group_advantages,
    silent_groups,
)
from ospo.credit.advantages import Mode

WORTH = {"linen": 0.4, "red": 0.3, "slim": 0.1}
ANSWERS = ["linen, red", "slim", "red, wide, slim", "linen", "red, red hot", "wide", "slim"]
GROUPS = [7, 3, 7, 3, 7, 3, 5]  # of three, three and one


class Letters:
    """A tokenizer of one token per character; 0 is padding."""

    all_special_ids = (0,)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return ["Ġ" if i == 32 else chr(i) for i in ids]


def worth(texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
    return np.array([sum(v for k, v in WORTH.items() if k in text) for text in texts])


def find(text: str) -> tuple[int, int, int]:
    """An answer between <a> and </a>."""
    end = text.find("</a>")
    return 3, len(text) if end < 0 else end, len(text) if end < 0 else end + 4


def batch(answers: list[str], left: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of "<a>answer</a>", with ``left`` tokens of padding before it."""
    texts = [f"<a>{answer}</a>" for answer in answers]
    width = max(map(len, texts)) + left
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    for b, text in enumerate(texts):
        ids[b, left : left + len(text)] = torch.tensor([ord(c) for c in text])
    return ids, (ids != 0).long()


def credits_of(answers: list[str], rewards: np.ndarray, groups: list[int], added: bool = True):
    engine = CreditEngine(worth, segments="delimiters", estimator="exact", added=added)
    return engine.credit(answers, [0] * len(answers), rewards, silent_groups(rewards, groups))


def laid(mode: Mode, order: list[int], dtype: type = np.float64, left: int = 0) -> torch.Tensor:
    answers, groups = [ANSWERS[i] for i in order], [GROUPS[i] for i in order]
    ids, mask = batch(answers, left)
    rewards: np.ndarray = worth(answers, groups).astype(dtype)
    completions = Completions.read(ids, Letters(), mask, find)
    assert completions.answers == answers
    credits = None if mode == "none" else credits_of(answers, rewards, groups)
    how = Redistribution(mode, alpha=0.7)
    result = completion_advantages(how, completions, mask, groups, rewards, credits)
    sequence = group_advantages(torch.tensor(rewards), groups)[0]
    assert torch.allclose(result.sum(1) / mask.sum(1), sequence, atol=1e-6)
    assert (result[mask == 0] == 0).all()
    assert result.dtype == torch.tensor(rewards).dtype
    return result


@pytest.mark.parametrize("mode", get_args(Mode))
def test_order_precision_and_the_side_of_padding_change_nothing(mode: Mode) -> None:
    order = [4, 1, 6, 0, 5, 3, 2]
    first = laid(mode, list(range(7)))
    second, single = laid(mode, order), laid(mode, list(range(7)), np.float32)
    padded = laid(mode, list(range(7)), left=4)
    for place, number in enumerate(order):
        width = second.shape[1]
        assert torch.allclose(second[place, :width], first[number, :width])
    assert torch.allclose(single.double(), first, atol=1e-5)
    assert torch.allclose(padded[:, 4:], first)
    assert (first[6] == 0).all()  # alone in its group
    assert mode == "none" or not torch.allclose(first[0, :10], first[0, 0])


def test_to_go_pays_no_more_than_was_added() -> None:
    """ "red hot" adds nothing to "red", though its Shapley value is half of red's."""
    answers, groups = ["red, red hot", "wide"], [0, 0]
    ids, mask = batch(answers)
    rewards = worth(answers, groups)
    completions = Completions.read(ids, Letters(), mask, find)
    credits = credits_of(answers, rewards, groups)
    how = Redistribution("to-go", discount=0.0, clip=99.0)
    result = completion_advantages(how, completions, mask, groups, rewards, credits)
    assert float(result[0, 3]) > float(result[0, 14])


def test_tokens_of_a_tool_belong_to_no_answer() -> None:
    text, tool = "<a>red, slim</a>", "tool says linen"
    ids = torch.tensor([[ord(c) for c in text[:6] + tool + text[6:]]])
    mask = torch.ones_like(ids)
    mask[0, 6 : 6 + len(tool)] = 0
    completions = Completions.read(ids, Letters(), mask, find)
    assert completions.texts == [text]
    assert completions.spans[0][6 : 6 + len(tool)].tolist() == [[0, 0]] * len(tool)
    assert completions.spans[0][6 + len(tool)].tolist() == [6, 7]


@pytest.fixture
def game() -> dict:
    answers, groups = ANSWERS[:3], [0, 0, 0]
    ids, mask = batch(answers)
    rewards = worth(answers, groups)
    return {
        "how": Redistribution("to-go"),
        "completions": Completions.read(ids, Letters(), mask, find),
        "mask_BT": mask,
        "groups_B": groups,
        "rewards_B": rewards,
        "credits": credits_of(answers, rewards, groups),
    }


def skipped(credit: Credit) -> Credit:
    engine = CreditEngine(worth, segments="delimiters")
    return engine.credit([credit.segmentation.text], [0], skip=np.array([True]))[0]


def test_what_does_not_belong_together_is_refused_in_one_line(game) -> None:
    credits, rewards = game["credits"], game["rewards_B"]
    plain = credits_of(ANSWERS[:3], rewards, [0, 0, 0], added=False)
    wrong = [
        ({"credits": plain}, "to-go needs what each segment added"),
        ({"credits": None}, "mode 'to-go' without credits"),
        ({"how": Redistribution("none")}, "mode 'none' with credits"),
        ({"credits": credits[::-1]}, "not of the answer"),
        ({"credits": credits[:2]}, "2 for 3 completions"),
        ({"credits": [c.phi_N for c in credits]}, "a Credit of a CreditEngine is needed"),
        ({"credits": [skipped(credits[0]), *credits[1:]]}, "number 0 was skipped"),
        ({"rewards_B": rewards + 0.1}, "number 0 is of a text worth"),
        ({"rewards_B": rewards[:2]}, "rewards: shape"),
        ({"groups_B": [0, 0]}, "groups: shape"),
    ]
    completion_advantages(**game)
    for change, message in wrong:
        with pytest.raises(ValueError, match=message) as caught:
            completion_advantages(**game | change)
        assert "\n" not in str(caught.value)


def test_a_place_outside_the_text_is_refused() -> None:
    ids, mask = batch(["red"])
    with pytest.raises(ValueError, match="no place in a text of 10 characters"):
        Completions.read(ids, Letters(), mask, lambda text: (0, len(text) + 1, len(text) + 1))
    with pytest.raises(ValueError, match="mask: row 0"):
        Completions.read(ids, Letters(), mask[:, :-1], find)
