"""The base under an adapter stays what it was, however often a sampler merges the adapter into it.

For vLLM, TRL adds BA to the base's weights, copies them over and takes BA off again. In bfloat16
(W + BA) − BA is not W: each step would leave a little of itself in the base, which no checkpoint of
the adapter holds. Quantised bases are rounded twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def kept_base(network: Any) -> Iterator[None]:
    """Put the weights under ``network``'s adapters back at the end, bit for bit.

    They are copied to the CPU meanwhile; a network without adapters costs nothing. Raises
    ValueError where they are sharded (ZeRO-3) and there is nothing here to copy.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    kept: list[tuple[Any, torch.nn.Parameter, torch.Tensor]] = []
    for layer in network.modules():
        if isinstance(layer, BaseTunerLayer):
            base: Any = layer.get_base_layer()
            if not base.weight.numel():
                raise ValueError(
                    "use_vllm: merging an adapter would change a sharded base. Fix: train without "
                    "ZeRO-3, or set rl.use_vllm: false"
                )
            kept.append((base, base.weight, base.weight.data.to("cpu", copy=True)))
    try:
        yield
    finally:
        for base, parameter, data in kept:
            base.weight = parameter  # merging a quantised layer makes another one
            parameter.data.copy_(data)


def keeping_base(sync: Callable[..., Any], network: Any) -> Callable[..., Any]:
    """``sync``, a sampler's update of its weights, which leaves ``network``'s base as it was."""

    def kept(*arguments: Any, **options: Any) -> Any:
        with kept_base(network):
            return sync(*arguments, **options)

    return kept
