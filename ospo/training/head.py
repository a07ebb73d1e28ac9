"""Log-probabilities of a completion's tokens on a CPU, and how they change with the hidden states,
in one pass over the vocabulary.

The trainer library's function scores every token that it is given, prompts and padding included,
and computes the logits again for the gradient, which it sums in float32. Where the head is frozen
the gradient of log p with respect to a hidden state is known up to a factor as soon as p is:
(1[target] − p) W / temperature. It is computed while the probabilities are in the processor's
cache, and scaled later. Every sum runs over the whole vocabulary inside one product, so nothing is
rounded in between.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 128  # tokens whose logits (128 × 49,152) are held at a time


class FrozenHeadFunction(torch.autograd.Function):
    """(log p, entropy), each (M,) float32, of ``target_M`` under softmax(h Wᵀ / temperature).

    hidden_MD: in the dtype of the products. weight_VD: no gradient. Entropy has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Tile by tile: logits, their softmax, and (1[target] − p) W."""
        wanted = ctx.needs_input_grad[0]
        logps, entropies, slopes = [], [], []
        for hidden, target in zip(hidden_MD.split(_TILE), target_M.split(_TILE), strict=True):
            z = F.linear(hidden, weight_VD).float()
            if temperature != 1.0:
                z.div_(temperature)
            most = z.amax(dim=-1, keepdim=True)
            z.sub_(most)
            found = z.gather(-1, target[:, None])[:, 0]
            e = z.exp()
            total = e.sum(dim=-1)
            log_total = total.log()
            logps.append(found - log_total)
            entropies.append(log_total - torch.linalg.vecdot(e, z) / total)
            if wanted:
                e.div_(-total[:, None])
                e.scatter_add_(-1, target[:, None], torch.ones_like(e[:, :1]))
                slopes.append(e.to(weight_VD.dtype) @ weight_VD)
        if wanted:
            ctx.save_for_backward(
                torch.cat(slopes) if slopes else hidden_MD.new_zeros(hidden_MD.shape)
            )
            ctx.temperature = temperature
        entropy_M = torch.cat(entropies) if entropies else hidden_MD.new_zeros(0).float()
        ctx.mark_non_differentiable(entropy_M)
        return torch.cat(logps) if logps else hidden_MD.new_zeros(0).float(), entropy_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The slopes, scaled."""
        [slope_MD] = ctx.saved_tensors
        scaled_MD = slope_MD.float() * (grads[0] / ctx.temperature)[:, None]
        return scaled_MD.to(slope_MD.dtype), None, None, None
