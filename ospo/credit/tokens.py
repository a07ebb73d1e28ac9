"""From rewards and credit to the advantages of tokens: all modes, ready for any trainer.

A trainer needs three calls: :func:`group_advantages` (GRPO's sequence advantages),
:class:`ospo.credit.CreditEngine` (credit of each completion's segments) and
:func:`token_advantages`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ospo.credit.advantages import EPSILON, Mode, redistribute, redistribute_returns
from ospo.credit.alignment import token_credit
from ospo.credit.engine import Credit
from ospo.credit.returns import decisions, group_relative_returns
from ospo.credit.segments import Segmentation


@dataclass(frozen=True)
class Completions:
    """B completions, decoded from their own token ids, and where the answer stands in each.

    texts: the decoded completions. spans: (T_b, 2) character span of each token in its text
    (:func:`ospo.credit.alignment.token_spans`). answers, offsets: the answer and the character of
    the text at which it begins. closings: the text from the answer's end to the end of its closing
    tag, "" where the completion was cut off before it: the decision to stop, under ``to-go``.
    """

    texts: list[str]
    spans: list[np.ndarray]
    answers: list[str]
    offsets: list[int]
    closings: list[str]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Redistribution:
    """How credit becomes advantages: see :mod:`ospo.credit.advantages`, :mod:`ospo.credit.returns`.

    ``alpha``: weight of the credit. ``clip``: token advantages stay within this many std(A).
    ``discount``: λ of to-go.
    """

    mode: Mode = "none"
    alpha: float = 1.0
    clip: float = 2.0
    discount: float = 0.5


def group_advantages(
    rewards_B: Tensor, groups_B: Tensor | Sequence[int] | np.ndarray, *, scale: bool = True
) -> tuple[Tensor, Tensor]:
    """GRPO's sequence advantages (B,), and the std (B,) of each completion's group.

    A_i = (R_i − mean R) / (std R + ε) over the completions of i's group (arXiv 2402.03300); std is
    the sample standard deviation (n − 1), exactly 0 where all rewards of a group are equal.

    rewards_B: rewards. groups_B: which completions share a prompt, in any order and of any size.
    ``scale=False``: without the division (Dr.GRPO, arXiv 2503.20783).
    """
    groups = torch.as_tensor(np.asarray(groups_B), device=rewards_B.device)
    advantages_B, std_B = torch.zeros_like(rewards_B), torch.zeros_like(rewards_B)
    for group in groups.unique():
        here = groups == group
        rewards = rewards_B[here]
        centred = rewards - rewards.mean()
        same = len(rewards) == 1 or bool((rewards == rewards[0]).all())
        std = rewards.new_zeros(()) if same else rewards.std()
        std_B[here] = std
        advantages_B[here] = (centred / (std + EPSILON) if scale else centred) * (not same)
    return advantages_B, std_B


def token_advantages(
    how: Redistribution,
    credits: Sequence[Credit],
    completions: Completions,
    mask_BT: Tensor,
    groups_B: Tensor | Sequence[int] | np.ndarray,
    advantages_B: Tensor,
    std_B: Tensor,
) -> Tensor:
    """(B, T) advantages of the completions' tokens; 0 on padding, and for groups with A = 0.

    Their mean over each completion's tokens is its sequence advantage, whatever the mode.

    how: the mode and its numbers. credits: of the completions' answers, from a
    :class:`ospo.credit.CreditEngine`; for ``to-go`` one with ``added=True``. mask_BT: 1 on
    completion tokens. groups_B: which completions share a prompt, in any order and of any size.
    advantages_B, std_B: sequence advantages and the std of each completion's group
    (:func:`group_advantages`, or a trainer's own).

    Raises ValueError for wrong lengths, for credits that are not of these answers, and for
    ``to-go`` with credits that lack what each segment added.
    """
    _check(how, credits, completions)
    if how.mode == "to-go":
        groups = groups_B.cpu().numpy() if isinstance(groups_B, Tensor) else np.asarray(groups_B)
        to_lay = _decisions(how, completions, credits, groups)
    else:
        to_lay = [(credit.segmentation, credit.phi_N) for credit in credits]
    credit_BT = np.zeros(tuple(mask_BT.shape))
    inside_BT = np.zeros_like(credit_BT)
    for b, (segmentation, values_N) in enumerate(to_lay):
        if not credits[b].skipped:
            spans, offset = completions.spans[b], completions.offsets[b]
            credit_T, inside_T = token_credit(spans, offset, segmentation, values_N)
            credit_BT[b, : len(credit_T)], inside_BT[b, : len(inside_T)] = credit_T, inside_T
    device = advantages_B.device
    laid = torch.from_numpy(credit_BT).to(device)
    inside = torch.from_numpy(inside_BT).to(device)
    if how.mode == "to-go":
        return redistribute_returns(
            advantages_B, laid, mask_BT, inside, std_B, alpha=how.alpha, clip=how.clip
        )
    segments_B = torch.tensor([len(credit.segmentation) for credit in credits], device=device)
    return redistribute(
        how.mode,
        advantages_B,
        laid,
        mask_BT,
        inside,
        std_B,
        segments_B=segments_B,
        alpha=how.alpha,
        clip=how.clip,
    )


def _check(how: Redistribution, credits: Sequence[Credit], completions: Completions) -> None:
    if len(credits) != len(completions):
        raise ValueError(f"credits: {len(credits)} for {len(completions)} completions")
    for b, credit in enumerate(credits):
        if credit.segmentation.text != completions.answers[b]:
            raise ValueError(
                f"credits: number {b} is of {credit.segmentation.text!r:.60}, not of the answer "
                f"{completions.answers[b]!r:.60}"
            )
        if how.mode == "to-go" and not credit.skipped and credit.added_N is None:
            raise ValueError(
                "credits: to-go needs what each segment added; make the CreditEngine with "
                "added=True"
            )


def _decisions(
    how: Redistribution,
    completions: Completions,
    credits: Sequence[Credit],
    groups: np.ndarray,
) -> list[tuple[Segmentation, np.ndarray]]:
    """Each completion's decisions, the closing of its answer among them, and their group-relative
    returns.
    """
    relative = group_relative_returns([paid(c) for c in credits], groups, how.discount)
    result = []
    for b, credit in enumerate(credits):
        cut = decisions(credit.segmentation, completions.closings[b])
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


def credit_metrics(completions: Completions, credits: Sequence[Credit]) -> dict[str, float]:
    """What the credit of a step looks like, over the completions it was computed for.

    credit/evaluations: coalitions per completion. credit/segments: segments per answer.
    credit/outside: share of completion tokens outside the answer, which keep the sequence's
    advantage. credit/explained: mean of Σφ / (v(N) − v(∅)), 1 for an efficient estimator.
    """
    done = [b for b, credit in enumerate(credits) if not credit.skipped]
    if not done:
        return {}
    outside, explained = [], []
    for b in done:
        credit = credits[b]
        starts_T, ends_T = completions.spans[b][:, 0], completions.spans[b][:, 1]
        end = completions.offsets[b] + len(completions.answers[b])
        inside_T = (ends_T > completions.offsets[b]) & (starts_T < end) & (ends_T > starts_T)
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
