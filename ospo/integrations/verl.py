"""Phrase credit as an advantage estimator in verl's registry, which sees token-level tensors only.

verl hands an estimator the rewards of tokens, the response mask and the ids of groups: no text. So
the credit comes in the rewards. :func:`phrase_rewards` writes what each phrase is paid onto the
token that ends it and the rest of the reward onto the last token; :func:`to_go_advantage` reads
that back and returns the token advantages of the mode ``to-go``. Load
``ospo.integrations.verl_plugin`` in verl (``VERL_USE_EXTERNAL_MODULES``) to have it registered as
``ospo_to_go``.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ospo.credit.advantages import redistribute_returns
from ospo.credit.engine import Credit
from ospo.credit.returns import decisions, group_relative_returns
from ospo.credit.tokens import Completions, Redistribution, group_advantages, paid

NAME = "ospo_to_go"
# A mark that pays nothing: where an answer begins (negative), or a phrase worth nothing ends. In
# float32 it is exact alone and lost in any sum.
TINY = 1e-30


def phrase_rewards(
    completions: Completions,
    credits: Sequence[Credit],
    rewards_B: Sequence[float] | np.ndarray | Tensor,
    width: int,
) -> Tensor:
    """(B, T) float32 rewards of tokens, whose sums are the rewards; T is ``width``.

    completions: read without padding (:meth:`ospo.credit.Completions.read`). credits: of a
    CreditEngine made with ``added=True``. A completion's last token is always that of its end: a
    phrase there is paid with the rest. Raises ValueError for credits that were skipped or lack what
    each segment added, and for completions longer than ``width``.
    """
    if not len(completions) == len(credits) == len(rewards_B):
        raise ValueError(
            f"credits: {len(credits)} credits and {len(rewards_B)} rewards for {len(completions)} "
            "completions"
        )
    table_BT = np.zeros((len(completions), width), dtype=np.float32)
    for b, credit in enumerate(credits):
        if credit.skipped or credit.added_N is None:
            raise ValueError(
                f"credits: number {b} is no credit for to-go; make the CreditEngine with "
                "added=True and skip nothing"
            )
        spans_T2, offset = completions.spans[b], completions.offsets[b]
        if not 0 < len(spans_T2) <= width:
            raise ValueError(f"completions: number {b} has {len(spans_T2)} tokens, 1 to {width}")
        row_T, last = table_BT[b], len(spans_T2) - 1
        begun = np.flatnonzero(spans_T2[:last, 1] <= offset)
        if len(begun):
            row_T[begun[-1]] = -TINY
        for (_, end), pay in zip(
            decisions(credit.segmentation, "").spans, paid(credit), strict=True
        ):
            t = int(np.searchsorted(spans_T2[:, 1], offset + end))
            if t < last:
                row_T[t] = row_T[t] + pay or TINY
        row_T[last] = float(rewards_B[b]) - float(row_T[:last].sum(dtype=np.float64))
    return torch.from_numpy(table_BT)


def to_go_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: np.ndarray | Sequence[Any],
    config: Any = None,
    how: Redistribution = Redistribution("to-go"),  # noqa: B008 (frozen)
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), (B, T) each and the same, as verl's outcome estimators give them.

    token_level_rewards: (B, T) of :func:`phrase_rewards`. response_mask: (B, T). index: (B,) ids of
    groups, in any order and of any size. config: verl's ``algorithm`` section. Raises ValueError
    where no response holds a phrase (rewards of whole responses), or verl adds a KL term to them.
    """
    if config is not None and config.get("use_kl_in_reward", False):
        raise ValueError(f"{NAME}: algorithm.use_kl_in_reward hides the phrases. Fix: set it false")
    mask_BT = response_mask.bool()
    rewards_BT = torch.where(mask_BT, token_level_rewards, 0.0).double().cpu().numpy()
    _names, groups_B = np.unique(np.asarray(index).astype(str), return_inverse=True)
    # The sums of float32: equal rewards are equal again to the sixth digit.
    rewards_B = torch.from_numpy(rewards_BT.sum(1)).round(decimals=6)
    cuts = [
        _pieces(row_T, own_T)
        for row_T, own_T in zip(rewards_BT, mask_BT.cpu().numpy(), strict=True)
    ]
    if not any(len(ends) for _, ends, _ in cuts):
        raise ValueError(
            f"{NAME}: no response holds a phrase's reward. Fix: write rewards by phrase_rewards"
        )
    pays = [
        np.where(np.abs(r[e]) <= 1.01 * TINY, 0.0, r[e])
        for r, (_, e, _) in zip(rewards_BT, cuts, strict=True)
    ]
    relative = group_relative_returns(pays, groups_B, how.discount)
    laid_BT, inside_BT = np.zeros_like(rewards_BT), np.zeros_like(rewards_BT)
    for b, (start, ends, last) in enumerate(cuts):
        bounds = [start, *(ends + 1), last + 1]
        for j, value in enumerate(relative[b]):
            laid_BT[b, bounds[j] : bounds[j + 1]] = value
        inside_BT[b, start : last + 1] = 1.0
    advantages_B, std_B = group_advantages(rewards_B, groups_B)
    device = token_level_rewards.device
    advantages_BT = redistribute_returns(
        advantages_B, torch.from_numpy(laid_BT), mask_BT.cpu(), torch.from_numpy(inside_BT), std_B,
        alpha=how.alpha, clip=how.clip,
    ).to(device, token_level_rewards.dtype)  # fmt: skip
    return advantages_BT, advantages_BT


def _pieces(row_T: np.ndarray, own_T: np.ndarray) -> tuple[int, np.ndarray, int]:
    """(the answer's first token, the last token of each phrase, the response's last token)."""
    own = np.flatnonzero(own_T)
    last = int(own[-1]) if len(own) else -1
    marks = np.flatnonzero(row_T[: max(last, 0)])
    begins = marks[(row_T[marks] < 0) & (row_T[marks] >= -TINY * 1.01)]
    start = int(begins[0]) + 1 if len(begins) else 0
    return start, marks[marks >= start], last


def register(
    name: str = NAME, estimator: Callable[..., tuple[Tensor, Tensor]] | None = None
) -> None:
    """Put the estimator into verl's registry under ``name``, for ``algorithm.adv_estimator``."""
    # verl is no dependency: it brings its own torch, Ray and samplers.
    import_module("verl.trainer.ppo.core_algos").register_adv_est(name)(
        estimator or to_go_advantage
    )
