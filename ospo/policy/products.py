"""Products with weights that are laid out once: linear layers side by side, adapters in two thin
products.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 32  # of a product that oneDNN lays weights out for


@dataclass(frozen=True)
class Adapted:
    """A linear layer's parts. weight: (E, D); bias: (E,) or None; down, up: an adapter's (r, D) and
    (E, r), its scaling in ``up``, or None.
    """

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    up: Tensor | None = None


def adapted(module: nn.Module, wrapped: bool) -> Adapted | None:
    """The parts of a plain linear layer, or, in a network that peft has ``wrapped``, of one with a
    plain LoRA adapter; None for any other.
    """
    if type(module) is nn.Linear:
        return Adapted(module.weight, module.bias)
    return _adapted_lora(module) if wrapped else None  # peft is there only where it is needed


def _adapted_lora(module: nn.Module) -> Adapted | None:
    from peft.tuners.lora import Linear

    if not isinstance(module, Linear) or type(module.base_layer) is not nn.Linear:
        return None
    base, names = module.base_layer, module.active_adapters
    if module.disable_adapters or not names:
        return Adapted(base.weight, base.bias) if not module.merged else None
    [name, *more] = names
    if more or module.merged or name not in module.lora_A or name in module.lora_variant:
        return None
    dropout, down, up = module.lora_dropout[name], module.lora_A[name], module.lora_B[name]
    whole = isinstance(dropout, nn.Identity) or not module.training
    if not whole or down.bias is not None or up.bias is not None:
        return None
    return Adapted(base.weight, base.bias, down.weight, up.weight.float() * module.scaling[name])


class PackedWeights:
    """Weights laid out for products, each kept until the tensors that it was made of change."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Any, Any, Any]] = {}

    def get(self, slot: int, parts: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What ``make`` gave for these tensors in this place, or gives now."""
        state = [(part.data_ptr(), part._version, part.dtype, part.shape) for part in parts]
        if slot not in self._kept or self._kept[slot][0] != state:
            self._kept[slot] = (state, make(), parts)  # held, so that no other takes their place
        return self._kept[slot][1]


def _packs(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()


class Product:
    """x (T, D) → x @ Wᵀ + b (T, E) of linear layers that read the same input, side by side."""

    def __init__(
        self, layers: Sequence[Adapted], dtype: torch.dtype, packed: PackedWeights, slot: int
    ):
        parts = [layer.weight for layer in layers]
        biases = [layer.bias for layer in layers]

        def lay_out() -> Tensor:
            weight = torch.cat([part.detach().to(dtype) for part in parts]).contiguous()
            if not _packs(dtype):
                return weight
            return torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)

        self.packs = _packs(dtype)
        self.weight = packed.get(slot, parts, lay_out)
        self.bias = None
        if any(bias is not None for bias in biases):
            filled = [
                bias if bias is not None else part.new_zeros(len(part))
                for bias, part in zip(biases, parts, strict=True)
            ]
            self.bias = torch.cat([bias.detach().to(dtype) for bias in filled])
        self.down: Tensor | None = None
        self.up: Tensor | None = None
        adapters = [(layer.down, layer.up, len(layer.weight)) for layer in layers]
        with_adapter = [(d, u, n) for d, u, n in adapters if d is not None and u is not None]
        if with_adapter:
            self.down = torch.cat([d.detach().to(dtype) for d, _, _ in with_adapter]).T.contiguous()
            blocks = [
                u.detach().to(dtype).T if u is not None else torch.zeros(0, n, dtype=dtype)
                for _, u, n in adapters
            ]
            self.up = torch.block_diag(*blocks).contiguous()

    def __call__(self, x_TD: Tensor) -> Tensor:
        if self.packs:
            y_TE = torch.ops.mkldnn._linear_pointwise(x_TD, self.weight, self.bias, "none", [], "")
        else:
            y_TE = F.linear(x_TD, self.weight, self.bias)
        if self.down is None or self.up is None:
            return y_TE
        return y_TE.addmm_(x_TD @ self.down, self.up)
