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
    probabilities by exponential draws q = −log(1 − u) and takes the largest; of all those
    logarithms only the few are needed that can decide: q ≥ u, so p / u bounds p / q. The rows that
    are not live only move the generator on. Raises ValueError where a row has no probabilities.
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


def gumbel_choice(
    logits_RV: Tensor, temperature: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """Next tokens (R,): the largest logit, or, above temperature 0, a draw from
    softmax(logits / temperature).

    Draws are made by the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): argmax(log p + g)
    with g = −log(−log u) has law p. One generator per row, so a row's draw does not depend on the
    batch. −log u ≥ 1 − u, so −log(1 − u) bounds g: only tokens that can be the largest need g
    itself.
    """
    if temperature == 0:
        return logits_RV.argmax(dim=-1)
    token_R = torch.empty(len(logits_RV), dtype=torch.long, device=logits_RV.device)
    for place, generator in enumerate(generators):
        u_V = torch.rand(logits_RV.shape[1], generator=generator, dtype=torch.float64)
        u_V = u_V.clamp_(1e-300, 1 - 1e-16).to(logits_RV.device)
        token_R[place] = _likeliest(logits_RV[place], temperature, u_V)
    return token_R


def _likeliest(logits_V: Tensor, temperature: float, u_V: Tensor) -> Tensor:
    """argmax of logits / temperature − log(−log u)."""
    scaled_V = logits_V / temperature
    bound_V = scaled_V - (1 - u_V).float().log_()
    first = bound_V.argmax()[None]
    least = _perturbed(logits_V[first], temperature, u_V[first])
    # What float32 rounds away is below 1e-5 of the largest number in it.
    spread = 1e-5 * (40 + scaled_V.abs().amax())
    able_C = (bound_V >= least - spread).nonzero()[:, 0]
    best = _perturbed(logits_V[able_C], temperature, u_V[able_C]).argmax()
    return able_C[best]


def _perturbed(logits: Tensor, temperature: float, u: Tensor) -> Tensor:
    return logits.double() / temperature - torch.log(-torch.log(u))
