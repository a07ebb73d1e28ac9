"""Draws of next tokens, for little more than the random numbers that they are made of."""

from collections.abc import Sequence

import torch
from torch import Tensor

_MARGIN = 1 - 1e-5  # a bound in float32 is this close to the number it bounds


def multinomial_choice(logits_RV: Tensor, live: Sequence[int], rows: int) -> Tensor:
    """Tokens (R,) that ``torch.multinomial(softmax(logits), 1)`` of ``rows`` rows would draw on a
    CPU, for the ``live`` ones of them: the same tokens, and the same state of torch's generator
    afterwards.

    logits_RV: float32, of the live rows, in ascending order of their numbers. multinomial divides
    probabilities by exponential draws q = −log(1 − u) and takes the largest; of all those logarithms
    only the few are needed that can decide: q ≥ u, so p / u bounds p / q. The rows that are not
    live only move the generator on. Raises ValueError where a row has no probabilities.
    """
    p_RV = logits_RV.softmax(dim=-1)
    if not torch.isfinite(p_RV.sum()):
        raise ValueError("the policy's logits are not finite: its weights have diverged")
    place_of = {row: place for place, row in enumerate(live)}
    u_V = torch.empty(p_RV.shape[1], dtype=torch.float64)
    token_R = torch.empty(len(live), dtype=torch.long)
    for row in range(rows):
        u_V.uniform_()  # what exponential_ draws before it takes the logarithm
        if row in place_of:
            place = place_of[row]
            token_R[place] = _largest(p_RV[place], u_V)
    return token_R


def _largest(p_V: Tensor, u_V: Tensor) -> Tensor:
    """argmax of p / −log(1 − u)."""
    bound_V = p_V / u_V.float()
    first = bound_V.argmax()
    least = p_V[first] / _exponential(u_V[first])
    able_C = (bound_V >= least * _MARGIN).nonzero()[:, 0]
    return able_C[(p_V[able_C] / _exponential(u_V[able_C])).argmax()]


def _exponential(u: Tensor) -> Tensor:
    return (-torch.log1p(-u)).float()
