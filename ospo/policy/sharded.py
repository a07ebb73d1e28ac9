"""Weights that several processes hold in pieces (FSDP 2), put together for saving."""

from typing import Any

import torch


def whole_weights(network: Any) -> dict[str, torch.Tensor] | None:
    """The weights by name, whole and on the CPU, where processes hold shards of them: in the main
    process, and an empty dictionary in the others. None where nothing is sharded.

    Every process must call it: shards travel between them. Of a network with adapters only what is
    trained is put together; the base is not part of a policy's directory.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.tensor import DTensor

    if not any(isinstance(weights, DTensor) for weights in network.parameters()):
        return None
    adapters = hasattr(network, "peft_config")
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapters
    )
    found: dict[str, Any] = get_model_state_dict(network, options=options)
    return found
