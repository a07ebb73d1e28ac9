"""Full weights of a policy, for tools that know no adapters; what merging costs is measured.

W + BA is rounded to the weights' own dtype. In bfloat16, with 8 bits of mantissa, an adapter's
small changes can be lost: the merged policy then answers otherwise than the one that was evaluated.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ospo.config import Model
from ospo.data.request import Request
from ospo.errors import InputError
from ospo.policy.decoding import Decoding
from ospo.policy.generate import Generator
from ospo.policy.kind import read_answer_kind, read_context
from ospo.policy.scratch import DTYPES
from ospo.policy.sources import adapter_base, is_adapter
from ospo.policy.weights import load_policy

# Mean difference of the log-probabilities of the policy's own tokens, in nats: e^.05 is 5 per cent.
BOUND = 0.05
PROBES = ("running shoes", "gift for a coffee lover", "red linen dress for summer", "usb c cable")


def merged_policy(
    directory: Path, max_prompt_tokens: int, dtype: str = "", bound: float = BOUND
) -> tuple[Any, Any, float]:
    """(network, tokenizer, drift) of a policy directory: full weights in ``dtype`` (as saved where
    it is "").

    An adapter is merged in float32 and rounded once. drift: mean absolute difference between the
    merged and the unmerged policy's log-probabilities of its own greedy answers, 0 for full
    weights. Raises InputError where it exceeds ``bound``, and those of ``load_policy``.
    """
    if not is_adapter(directory):
        network, tokenizer = load_policy(directory)
        return (network.to(DTYPES[dtype]) if dtype else network), tokenizer, 0.0
    base = adapter_base(directory)
    wanted = dtype or base["dtype"]
    exact = Model(source=base["source"], dtype="float32")
    network, tokenizer = load_policy(directory, exact)
    generator = Generator(
        network.eval(), tokenizer, read_answer_kind(directory), read_context(directory)
    )
    rows = _answers(generator, max_prompt_tokens)
    before = log_probabilities(network, rows)
    network = network.merge_and_unload(safe_merge=True).to(DTYPES[wanted])
    after = log_probabilities(network.float(), rows)  # what rounding left of the weights
    network = network.to(DTYPES[wanted])
    drift = float((torch.cat(after) - torch.cat(before)).abs().mean())
    if not drift <= bound:
        raise InputError(
            directory,
            "adapter",
            f"merged into {wanted} weights it answers otherwise: its log-probabilities move by "
            f"{drift:.3f} on average, over {bound:g}",
            "give --dtype float32, or export it alone with --adapter",
        )
    return network, tokenizer, drift


def _answers(generator: Generator, max_prompt_tokens: int) -> list[tuple[list[int], int]]:
    """(ids, length of the prompt) of the policy's greedy answers to the probes."""
    room = max_prompt_tokens
    prompts = [generator.render(replace(Request(), query=probe), room) for probe in PROBES]
    answers = generator(prompts, Decoding(16))
    return [(p.ids + ids, len(p.ids)) for p, ids in zip(prompts, answers, strict=True)]


def log_probabilities(network: Any, rows: Sequence[tuple[list[int], int]]) -> list[torch.Tensor]:
    """Log-probabilities of each row's tokens after its prompt, float32; rows: (ids, length of the
    prompt).
    """
    found = []
    with torch.inference_mode():
        for ids, start in rows:
            ids_T = torch.tensor(ids, device=network.device)
            logits_TV = network(input_ids=ids_T[None]).logits[0, start - 1 : -1].float()
            of_T = logits_TV.log_softmax(-1).gather(1, ids_T[start:, None])[:, 0]
            found.append(of_T.cpu())
    return found
