"""GRPO-λ: every token's ratio carries a trace of the ratios before it (arXiv 2510.00194)."""

from typing import Any

import torch
from torch import Tensor

from ospo.training.ospo import OSPOTrainer

LAMBDA = 0.99


def trace(x_BT: Tensor, decay: float) -> Tensor:
    """y_t = Σ_{l=0}^{t} decay^l · x_{t−l}, (B, T) → (B, T): one product with a triangular matrix,
    no loop over T.
    """
    age_T = torch.arange(x_BT.shape[1], device=x_BT.device)
    age_TT = age_T[:, None] - age_T[None, :]
    filter_TT = torch.where(age_TT >= 0, decay ** age_TT.clamp(min=0).to(x_BT.dtype), 0.0)
    return x_BT @ filter_TT.T


class GRPOLambdaTrainer(OSPOTrainer):
    """GRPO with token ratios ρ_t = exp(Σ_{l≤t} λ^l · log-ratio_{t−l}), λ = 0.99.

    The filter is linear, so it is laid over the log-probabilities of the policy and of the old
    policy alike; the loss is the library's. Raises ValueError where log-probabilities are also used
    for something else: a KL term would be taken between traces, and vLLM's correction would compare
    a trace with the sampler's plain values.
    """

    def __init__(self, **arguments: Any):
        args = arguments["args"]
        if args.beta:
            raise ValueError(
                "grpo_lambda: its ratios are traces, a KL term would be taken between them. Set "
                "beta to 0"
            )
        if args.use_vllm:
            raise ValueError(
                "grpo_lambda: ratios are traces, vLLM's sampling correction is not. Set use_vllm: "
                "false"
            )
        super().__init__(**arguments)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's log-probabilities (B, T) of the completions, filtered; padding (on the right) does
        not leak in.
        """
        logps_BT, entropies, loss = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **options
        )
        mask_BT = attention_mask[:, -logits_to_keep:].to(logps_BT.dtype)
        return trace(logps_BT * mask_BT, LAMBDA), entropies, loss
