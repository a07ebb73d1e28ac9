"""From the credit of a step's completions to advantages of their tokens, and what is logged about
it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ospo.credit.advantages import Mode, redistribute
from ospo.credit.alignment import token_credit
from ospo.credit.engine import Credit
from ospo.credit.returns import decisions, group_relative_returns
from ospo.credit.segments import Segmentation
from ospo.policy.prompts import ANSWER_CLOSE


@dataclass(frozen=True)
class Rollouts:
    """This process's completions of one generation batch (B of them), decoded from their own ids.

    spans: (T_b, 2) character span of each token in ``texts``. offsets: character of the text at
    which the answer begins. values: (B,) float64 rewards, before TRL rounds them to float32.
    """

    texts: list[str]
    spans: list[np.ndarray]
    answers: list[str]
    offsets: list[int]
    rows: list[int]
    values: np.ndarray


@dataclass(frozen=True)
class Redistribution:
    """How credit becomes advantages: see :func:`ospo.credit.advantages.redistribute` and
    :mod:`ospo.credit.returns`.

    ``discount``: λ of to-go.
    """

    mode: Mode = "none"
    alpha: float = 1.0
    clip: float = 2.0
    discount: float = 0.5


def token_advantages(
    how: Redistribution,
    sequence_B: Tensor,
    std_B: Tensor,
    rollouts: Rollouts,
    credits: list[Credit],
    mask_BT: Tensor,
    group: int = 1,
) -> Tensor:
    """(B, T) advantages of the completions' tokens; padding 0, and 0 for groups with A = 0.

    sequence_B: GRPO's advantages. std_B: std of each completion's group. mask_BT: 1 on completion
    tokens. group: size of the groups of completions that share a prompt, which stand one after
    another (to-go).
    """
    credit_BT = np.zeros(tuple(mask_BT.shape))
    inside_BT = np.zeros_like(credit_BT)
    to_lay = (
        _decisions(how, rollouts, credits, group) if how.mode == "to-go" else _segments(credits)
    )
    for b, (segmentation, values_N) in enumerate(to_lay):
        if not credits[b].skipped:
            credit_T, inside_T = token_credit(
                rollouts.spans[b], rollouts.offsets[b], segmentation, values_N
            )
            credit_BT[b, : len(credit_T)], inside_BT[b, : len(inside_T)] = credit_T, inside_T
    device = sequence_B.device
    segments_B = torch.tensor([len(credit.segmentation) for credit in credits], device=device)
    return redistribute(
        how.mode,
        sequence_B,
        torch.from_numpy(credit_BT).to(device),
        mask_BT,
        torch.from_numpy(inside_BT).to(device),
        std_B,
        segments_B=segments_B,
        alpha=how.alpha,
        clip=how.clip,
    )


def _segments(credits: list[Credit]) -> list[tuple[Segmentation, np.ndarray]]:
    return [(credit.segmentation, credit.phi_N) for credit in credits]


def _decisions(
    how: Redistribution, rollouts: Rollouts, credits: list[Credit], group: int
) -> list[tuple[Segmentation, np.ndarray]]:
    """Each completion's decisions, the closing of its answer among them, and their group-relative
    returns.
    """
    relative = group_relative_returns([paid(credit) for credit in credits], group, how.discount)
    result = []
    for b, credit in enumerate(credits):
        text, end = rollouts.texts[b], rollouts.offsets[b] + len(rollouts.answers[b])
        close = text.find(ANSWER_CLOSE, end)
        after = text[end : close + len(ANSWER_CLOSE)] if close >= 0 else ""
        cut = decisions(credit.segmentation, after)
        result.append((cut, relative[b][: len(cut)]))
    return result


def paid(credit: Credit) -> np.ndarray:
    """(n,) what each segment is paid as a decision: its credit, but no more than it added to the
    text before it.

    The Shapley value is symmetric, so a variant of an earlier phrase ("stackables" after
    "stackable") takes half of what that phrase is worth, and writing variants would pay although
    none adds anything.
    """
    return credit.phi_N if credit.added_N is None else np.minimum(credit.phi_N, credit.added_N)


def credit_metrics(rollouts: Rollouts, credits: list[Credit]) -> dict[str, float]:
    """What the credit of a step looks like, over the completions it was computed for.

    credit/evaluations: coalitions for one completion. credit/segments: phrases in one answer.
    credit/outside: share of completion tokens outside the answer, which keep the sequence's
    advantage. credit/explained: mean of Σφ / (v(N) − v(∅)), 1 for an efficient estimator.
    """
    done = [b for b, credit in enumerate(credits) if not credit.skipped]
    if not done:
        return {}
    outside, explained = [], []
    for b in done:
        credit = credits[b]
        starts_T, ends_T = rollouts.spans[b][:, 0], rollouts.spans[b][:, 1]
        end = rollouts.offsets[b] + len(rollouts.answers[b])
        inside_T = (ends_T > rollouts.offsets[b]) & (starts_T < end) & (ends_T > starts_T)
        outside.append(1 - float(inside_T.mean()) if len(inside_T) else 1.0)
        gain = credit.total - credit.empty_value
        if abs(gain) > 1e-9:
            explained.append(float(credit.phi_N.sum()) / gain)
    values = {
        "credit/evaluations": float(np.mean([credits[b].evaluations for b in done])),
        "credit/segments": float(np.mean([len(credits[b].segmentation) for b in done])),
        "credit/outside": float(np.mean(outside)),
    }
    return values | ({"credit/explained": float(np.mean(explained))} if explained else {})
