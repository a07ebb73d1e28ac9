"""A sampler that merges adapters cannot change the base that is trained against."""

from pathlib import Path
from typing import Any

import pytest
import torch
from policy_shop import TEXTS, TINY

from ospo.config import Model
from ospo.policy.weights import create_policy, save_policy
from ospo.training.base_weights import keeping_base, kept_base


def adapted(folder: Path, dtype: str = "bfloat16") -> Any:
    base = TINY.model_copy(update={"dtype": dtype})
    save_policy(*create_policy(base, TEXTS, 1), base, folder / "base")
    model = Model(source=f"path:{folder / 'base'}", dtype=dtype, lora_rank=4, lora_alpha=8)  # type: ignore[arg-type]
    network, _ = create_policy(model, [], 1)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def state(network: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def sync(network: Any) -> None:
    """What TRL does around the copy to vLLM."""
    network.merge_adapter()
    network.unmerge_adapter()


def changed(before: dict[str, torch.Tensor], network: Any) -> list[str]:
    return [n for n, value in network.state_dict().items() if not torch.equal(value, before[n])]


def test_merging_and_unmerging_drifts_in_bfloat16_unless_the_base_is_kept(tmp_path: Path) -> None:
    network = adapted(tmp_path)
    before = state(network)
    safe = keeping_base(lambda: sync(network), network)
    for _ in range(3):
        safe()
    assert changed(before, network) == []
    sync(network)
    assert changed(before, network)  # what would be trained against otherwise


def test_what_is_sampled_from_is_the_merged_policy(tmp_path: Path) -> None:
    network = adapted(tmp_path)
    layer = network.base_model.model.model.layers[0].self_attn.q_proj
    plain = layer.get_base_layer().weight.clone()
    with kept_base(network):
        network.merge_adapter()
        assert not torch.equal(layer.get_base_layer().weight, plain)
        network.unmerge_adapter()
    assert torch.equal(layer.get_base_layer().weight, plain)


def test_a_sampler_that_fails_leaves_the_base_too(tmp_path: Path) -> None:
    network = adapted(tmp_path)
    before = state(network)

    def failing() -> None:
        sync(network)
        raise RuntimeError("no connection")

    with pytest.raises(RuntimeError, match="no connection"):
        keeping_base(failing, network)()
    assert changed(before, network) == []


def test_a_sharded_base_is_refused(tmp_path: Path) -> None:
    network = adapted(tmp_path)
    layer = network.base_model.model.model.layers[0].self_attn.q_proj.get_base_layer()
    layer.weight = torch.nn.Parameter(torch.empty(0, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="sharded base"), kept_base(network):
        pass
