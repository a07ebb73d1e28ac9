"""From rewards and credit to the advantages of tokens: all modes, ready for any trainer.

A trainer needs three calls: :meth:`Completions.read` (what its token ids say, and where the answer
stands), :class:`ospo.credit.CreditEngine` (credit of each answer's segments) and
:func:`completion_advantages`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ospo.credit.advantages import EPSILON, Mode, redistribute, redistribute_returns
from ospo.credit.alignment import token_credit, token_spans
from ospo.credit.engine import Credit
from ospo.credit.returns import decisions, group_relative_returns
from ospo.credit.segments import Segmentation

Find = Callable[[str], tuple[int, int, int]]
"""Where a completion's answer stands: characters [start, end) of the answer, and the end of what
closes it (``end`` where nothing does).
"""
Groups = Tensor | Sequence[int] | np.ndarray


def whole_text(text: str) -> tuple[int, int, int]:
    """The answer is the whole completion, without the white space around it."""
    stripped = text.strip()
    start = text.find(stripped)
    return start, start + len(stripped), start + len(stripped)


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

    @classmethod
    def read(
        cls,
        ids: Sequence[Sequence[int]] | Tensor,
        tokenizer: Any,
        mask: Sequence[Sequence[int]] | Tensor | None = None,
        find: Find = whole_text,
    ) -> "Completions":
        """The completions of B rows of token ids.

        ids: (B, T), or B lists of their own lengths. mask: of the same shape, 1 on the policy's own
        tokens; padding on either side and tokens of a tool are 0 and belong to no text. None: all
        tokens are its own. find: where the answer stands in a text.

        Raises ValueError where ids and mask differ in shape, or ``find`` names a place outside the
        text.
        """
        texts, spans, answers, offsets, closings = [], [], [], [], []
        if mask is not None and len(mask) != len(ids):
            raise ValueError(f"mask: {len(mask)} rows for {len(ids)} completions")
        for b in range(len(ids)):
            ids_T = np.asarray(torch.as_tensor(ids[b]).cpu(), dtype=np.int64)
            own_T = np.ones(len(ids_T), dtype=bool)
            if mask is not None:
                own_T = np.asarray(torch.as_tensor(mask[b]).cpu()) != 0
            if own_T.shape != ids_T.shape:
                raise ValueError(f"mask: row {b} has {len(own_T)} entries for {len(ids_T)} ids")
            text, own_spans = token_spans(ids_T[own_T].tolist(), tokenizer)
            spans_T2 = np.zeros((len(ids_T), 2), dtype=np.int64)
            spans_T2[own_T] = own_spans
            start, end, closed = find(text)
            if not 0 <= start <= end <= closed <= len(text):
                raise ValueError(
                    f"find: ({start}, {end}, {closed}) is no place in a text of {len(text)} "
                    "characters"
                )
            texts.append(text)
            spans.append(spans_T2)
            answers.append(text[start:end])
            offsets.append(start)
            closings.append(text[end:closed])
        return cls(texts, spans, answers, offsets, closings)


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


def silent_groups(rewards_B: Tensor | Sequence[float] | np.ndarray, groups_B: Groups) -> np.ndarray:
    """(B,) bool: completions of groups with equal rewards, which have no advantage and need no
    credit (``skip`` of :meth:`ospo.credit.CreditEngine.credit`).
    """
    rewards = torch.as_tensor(rewards_B)
    return (group_advantages(rewards, groups_B)[1] == 0).cpu().numpy()


def completion_advantages(
    how: Redistribution,
    completions: Completions,
    mask_BT: Tensor,
    groups_B: Groups,
    rewards_B: Tensor | Sequence[float] | np.ndarray,
    credits: Sequence[Credit] | None,
    *,
    scale: bool = True,
    sequence_B: Tensor | None = None,
) -> Tensor:
    """(B, T) advantages of the completions' tokens under any mode, on ``mask_BT``'s device.

    Their mean over each completion's tokens is its sequence advantage; 0 on padding, and where a
    group's rewards are equal. float64 where the rewards are, else float32.

    how: the mode and its numbers. completions: of :meth:`Completions.read`. mask_BT: 1 on the
    policy's own tokens. groups_B: which completions share a prompt, in any order and of any size.
    rewards_B: float32 or float64. credits: of the answers, from a
    :class:`ospo.credit.CreditEngine` (made with ``added=True`` for ``to-go``); None for mode
    "none". scale: whether advantages are divided by their group's std (GRPO) or not (Dr.GRPO).
    sequence_B: a trainer's own sequence advantages, in place of :func:`group_advantages`.

    Raises ValueError, one line, for wrong shapes and for credits that are not of these answers,
    rewards and mode.
    """
    rewards = torch.as_tensor(rewards_B, device=mask_BT.device)
    rewards = rewards if rewards.dtype == torch.float64 else rewards.float()
    groups = np.asarray(groups_B.cpu() if isinstance(groups_B, Tensor) else groups_B)
    for name, shape in (("rewards", tuple(rewards.shape)), ("groups", groups.shape)):
        if shape != (len(completions),):
            raise ValueError(f"{name}: shape {shape}, ({len(completions)},) is needed")
    advantages_B, std_B = group_advantages(rewards, groups, scale=scale)
    if sequence_B is not None:
        advantages_B = sequence_B
    if not scale:  # then advantages are in units of the reward
        std_B = torch.where(std_B > 0, 1 - EPSILON, 0.0)
    if credits is None or how.mode == "none":
        if credits is not None or how.mode != "none":
            given = "without credits" if credits is None else "with credits"
            raise ValueError(
                f"credits: mode {how.mode!r} {given}; mode 'none' takes None, every other one the "
                "credits of a CreditEngine"
            )
        return torch.where(mask_BT.bool(), advantages_B[:, None], 0.0).to(advantages_B.dtype)
    _check(how, credits, completions)
    _check_rewards(credits, rewards, std_B)
    return token_advantages(how, credits, completions, mask_BT, groups, advantages_B, std_B)


def _check_rewards(credits: Sequence[Credit], rewards_B: Tensor, std_B: Tensor) -> None:
    """Refuse credits of another game, and credits that were skipped where they are needed."""
    for b, (credit, reward, std) in enumerate(
        zip(credits, rewards_B.cpu().numpy(), std_B.tolist(), strict=True)
    ):
        if credit.skipped and std > 0:
            raise ValueError(
                f"credits: number {b} was skipped, but the rewards of its group differ; skip only "
                "silent_groups"
            )
        if not credit.skipped and reward != reward.dtype.type(credit.total):
            raise ValueError(
                f"credits: number {b} is of a text worth {credit.total!r}, but the reward is "
                f"{float(reward)!r}; value the texts with the function that gives the rewards"
            )


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
        if not isinstance(credit, Credit):
            raise ValueError(
                f"credits: number {b} is {type(credit).__name__}, a Credit of a CreditEngine is "
                "needed"
            )
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
