"""From one advantage per completion to one per token: pure functions, (B, T) in, (B, T) out.

Notation: A_i is completion i's group-relative advantage, A_i = (R_i − mean R) / (std R + ε); φ̃_t
is the credit of token t's segment; κ_t ∈ [0, 1] is the share of the token's characters inside the
answer. All modes give

    A_t = A_i + κ_t · d_t    with Σ_t κ_t d_t = 0, so (1/T) Σ_t A_t = A_i over its T tokens

so tokens outside the answer (thinking, tags, end of sequence) keep A_i, and the loss has GRPO's
scale. They differ in the deviation d_t. Padding gets 0, never NaN: NaN × 0 is NaN in a masked loss.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

Mode = Literal["none", "paper-prop", "paper-rank", "hybrid", "signed-prop", "additive", "to-go"]
EPSILON = 1e-4  # added to a group's std, as TRL's GRPO does
TIE = 1e-9  # credits closer than this share of their range are equal: coalition sums carry rounding


def redistribute(
    mode: Mode,
    advantages_B: Tensor,
    credit_BT: Tensor,
    mask_BT: Tensor,
    inside_BT: Tensor,
    std_B: Tensor,
    *,
    segments_B: Tensor | None = None,
    alpha: float = 1.0,
    clip: float = 2.0,
) -> Tensor:
    """Token advantages (B, T), in ``advantages_B``'s dtype and device, from the credit of segments.

    advantages_B: A_i. credit_BT: φ̃_t in units of the reward, anything finite outside the answer.
    mask_BT: 1 on completion tokens. inside_BT: κ_t. std_B: std of the group's rewards (additive).
    segments_B: segments of each answer (additive). alpha: weight of the credit (additive) or of
    Prop (hybrid; the paper's 0.7). clip: see :func:`clip_deviation`.

    Mean over completion tokens is A_i exactly, before and after clipping. A_i = 0 for a whole group
    (std 0): 0. One segment, equal credits or no answer: A_i for every token. Raises ValueError for
    an unknown mode, wrong shapes or non-finite input, and for ``to-go``, which needs the returns of
    decisions in place of credit (:func:`redistribute_returns`, or
    :func:`ospo.credit.tokens.token_advantages` for all of it).
    """
    if mode not in get_args(Mode):
        known = ", ".join(get_args(Mode))
        raise ValueError(f"redistribution: unknown mode {mode!r}, use one of {known}")
    if mode == "to-go":
        raise ValueError(
            "redistribution: to-go needs group-relative returns, not the credit of segments; use "
            "token_advantages, or redistribute_returns"
        )
    share, credit = _inputs(advantages_B, credit_BT, mask_BT, inside_BT, std_B)
    sequence = advantages_B.double()[:, None]
    if mode == "additive":
        if segments_B is None or segments_B.shape != credit_BT.shape[:1]:
            raise ValueError(
                "segments: additive needs the number of segments of each answer, shape (B,)"
            )
        std, segments = std_B.double()[:, None], segments_B.double()[:, None]
        deviation = additive(credit, share, std, segments, alpha)
    elif mode == "none":
        deviation = torch.zeros_like(credit)
    else:
        weight = rank(credit, share) if mode == "paper-rank" else prop(credit, share)
        if mode == "signed-prop":
            weight = torch.where(sequence < 0, prop(-credit, share), weight)
        if mode == "hybrid":
            weight = alpha * weight + (1 - alpha)
        deviation = sequence * (weight - 1)
    return _clipped(deviation, advantages_B, share, mask_BT, clip)


def redistribute_returns(
    advantages_B: Tensor,
    relative_BT: Tensor,
    mask_BT: Tensor,
    inside_BT: Tensor,
    std_B: Tensor,
    *,
    alpha: float = 1.0,
    clip: float = 2.0,
) -> Tensor:
    """Token advantages (B, T) of the to-go mode.

    relative_BT: group-relative returns G_j − b_j (:mod:`ospo.credit.returns`) of the decision that
    each token carries out. inside_BT: κ_t, over the answer and its closing. Everything else is as
    for :func:`redistribute`.
    """
    share, relative = _inputs(advantages_B, relative_BT, mask_BT, inside_BT, std_B)
    deviation = to_go(relative, share, std_B.double()[:, None], alpha)
    return _clipped(deviation, advantages_B, share, mask_BT, clip)


def _inputs(
    advantages_B: Tensor, credit_BT: Tensor, mask_BT: Tensor, inside_BT: Tensor, std_B: Tensor
) -> tuple[Tensor, Tensor]:
    """κ, 0 on padding, and the credit, 0 outside the answer: (B, T) float64 each."""
    shape = credit_BT.shape
    if credit_BT.ndim != 2:
        raise ValueError(f"credit: wrong shape {tuple(shape)}, (B, T) is needed")
    for name, given, needed in (
        ("advantages", advantages_B, shape[:1]),
        ("mask", mask_BT, shape),
        ("inside", inside_BT, shape),
        ("std", std_B, shape[:1]),
    ):
        if given.shape != needed:
            raise ValueError(f"{name}: wrong shape {tuple(given.shape)}, {tuple(needed)} is needed")
        if not torch.isfinite(given.float()).all():
            raise ValueError(f"{name}: non-finite value")
    share = torch.where(mask_BT.bool(), inside_BT.double(), 0.0)
    credit = torch.where(share > 0, credit_BT.double(), 0.0)
    if not torch.isfinite(credit).all():
        raise ValueError("credit: non-finite value inside an answer")
    return share, credit


def _clipped(
    deviation: Tensor, advantages_B: Tensor, share: Tensor, mask_BT: Tensor, clip: float
) -> Tensor:
    sequence = advantages_B.double()[:, None]
    deviation = clip_deviation(deviation, sequence, share, clip)
    spread = torch.where(mask_BT.bool(), sequence + share * deviation, 0.0)
    return spread.to(advantages_B.dtype)


def _mean(x_BT: Tensor, share_BT: Tensor) -> Tensor:
    """Mean over the answer's tokens, weighted by κ: (B, 1); 0 where there is no answer."""
    total = share_BT.sum(1, keepdim=True)
    return (x_BT * share_BT).sum(1, keepdim=True) / torch.where(total > 0, total, 1.0)


def _range(credit: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lowest credit in the answer, range of credits, and whether the credits differ: (B, 1)
    each.
    """
    inside = share > 0
    low = torch.where(inside, credit, torch.inf).amin(1, keepdim=True)
    high = torch.where(inside, credit, -torch.inf).amax(1, keepdim=True)
    some = inside.any(1, keepdim=True)
    low, high = torch.where(some, low, 0.0), torch.where(some, high, 0.0)
    scale = torch.maximum(low.abs(), high.abs())
    return low, high - low, high - low > TIE * scale


def prop(credit: Tensor, share: Tensor) -> Tensor:
    """OSPO-Prop's weights w_t, mean 1 over the answer; 1 where credits are equal (arXiv
    2601.08403).

    z_t = (φ̃_t − min φ̃) / (max φ̃ − min φ̃),  w_t = z_t / mean z,  A_t = A · w_t
    """
    low, spread, differ = _range(credit, share)
    z = (credit - low) / torch.where(differ, spread, 1.0)
    mean = _mean(z, share)
    return torch.where(differ, z / torch.where(mean > 0, mean, 1.0), 1.0)


def rank(credit: Tensor, share: Tensor) -> Tensor:
    """OSPO-Rank's weights, mean 1 over the answer: as Prop, with z_t the rank of the credit (arXiv
    2601.08403).

    Ranks are dense and ascend from 1: the highest credit has the highest weight, equal credits have
    equal ranks.
    """
    _, spread, differ = _range(credit, share)
    inside = share > 0
    order = torch.where(inside, credit, torch.inf).sort(dim=1)
    ascending = order.values
    step = torch.zeros_like(ascending)
    # Outside tokens sort last (inf); inf − inf there is never used.
    step[:, 1:] = (ascending[:, 1:] - ascending[:, :-1] > TIE * spread).double()
    z = torch.empty_like(step).scatter_(1, order.indices, 1 + step.cumsum(1))
    z = torch.where(inside, z, 0.0)
    mean = _mean(z, share)
    return torch.where(differ, z / torch.where(mean > 0, mean, 1.0), 1.0)


def additive(credit: Tensor, share: Tensor, std: Tensor, segments: Tensor, alpha: float) -> Tensor:
    """The additive mode's deviation: a phrase that hurt gets less, one that helped more, whatever
    the sign of A.

    d_t = α · n · (φ̃_t − mean φ̃) / (std R + ε)

    n φ̃_t estimates what the reward would be if every segment were as good as this one, so the
    deviation is on the scale of a reward; the mean is over the answer's tokens, which makes it
    mean-preserving over tokens (OSPO spec §3, "additive"). With α = 1, v(∅) = 0 and segments of
    equal length, A + d = (n φ̃_t − mean_group R) / std R: each phrase is compared with the group's
    mean reward as if the whole text were like it. A group with std 0 teaches nothing: 0.
    """
    low, _, differ = _range(credit, share)
    centred = credit - low  # equal credits give exactly 0
    deviation = alpha * segments * (centred - _mean(centred, share)) / (std + EPSILON)
    return torch.where(differ & (std > 0) & (share > 0), deviation, 0.0)


def to_go(relative: Tensor, share: Tensor, std: Tensor, alpha: float) -> Tensor:
    """The to-go mode's deviation, from group-relative returns x_t = G_j − b_j of the decision that
    token t carries out.

    d_t = α · (x_t − mean x) / (std R + ε)

    The mean over the answer's tokens and its closing keeps (1/T) Σ_t A_t = A_i. With λ = 1 and v(∅)
    = 0, x_0 is R − mean_group R, GRPO's own numerator. A group with std 0 teaches nothing: 0.
    """
    low, _, differ = _range(relative, share)
    centred = relative - low  # equal returns give exactly 0
    deviation = alpha * (centred - _mean(centred, share)) / (std + EPSILON)
    return torch.where(differ & (std > 0) & (share > 0), deviation, 0.0)


def clip_deviation(deviation: Tensor, sequence: Tensor, share: Tensor, clip: float) -> Tensor:
    """Keep A + d within ±c, c = clip · std(A), without moving the mean: the nearest such deviation.

    The paper clips token advantages to ±2·std(A), which shifts their mean. Here d becomes clamp(d +
    λ) with the λ for which Σ κ_t d_t stays 0 (the Euclidean projection onto box and hyperplane), so
    (1/T) Σ A_t = A_i after clipping too. std(A) is about zero, where group-relative advantages are
    centred, over completions with A ≠ 0: groups without a signal must not narrow the bound. c is
    never below |A_i|: clipping limits redistribution, not GRPO's A.
    """
    signal = sequence != 0
    count = signal.sum()
    std = (sequence.square().sum() / count.clamp(min=1)).sqrt()
    bound = torch.maximum(clip * std, sequence.abs())
    low, high = -bound - sequence, bound - sequence
    inside = share > 0
    over = inside & ((deviation < low) | (deviation > high))
    if not over.any():
        return deviation
    # Σ κ clamp(d + λ) rises with λ from below 0 to above 0 between these: bisection, to the last
    # bit of a double.
    reach = deviation.abs().amax(1, keepdim=True) + 2 * bound
    left, right = -reach, reach
    for _ in range(80):
        middle = (left + right) / 2
        total = (share * torch.clamp(deviation + middle, low, high)).sum(1, keepdim=True)
        left, right = torch.where(total < 0, middle, left), torch.where(total < 0, right, middle)
    projected = torch.clamp(deviation + right, low, high)
    return torch.where(over.any(1, keepdim=True), projected, deviation)


def shaped_rewards(phi_N: Tensor) -> Tensor:
    """Rewards of the segments by potential-based shaping, (n,) → (n,).

    Φ(s_j) = Σ_{i ≤ j} φ_i,  r'_j = Φ(s_j) − Φ(s_{j−1}) = φ_j

    (Ng, Harada & Russell 1999; arXiv 2601.08403).

    Their sum telescopes to v(N) − v(∅): every completion's return, and so the optimal policy, is
    unchanged.
    """
    potential = torch.cat([phi_N.new_zeros(1), phi_N.cumsum(0)])
    return potential[1:] - potential[:-1]
