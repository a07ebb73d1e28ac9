"""A policy whose weights several processes hold in pieces is saved whole."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, micro_config

from ospo.policy.sharded import whole_weights
from ospo.policy.weights import create_policy, load_policy, save_policy


def network_of(adapters: bool) -> tuple[Any, Any, Any]:
    """A small network, its tokenizer and its settings; with adapters that are not zero."""
    model = micro_config().preset.model
    network, tokenizer = create_policy(model, ["red dress"], 0)
    if adapters:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        network = get_peft_model(network, lora)
    return network, tokenizer, model


def shard_and_save(rank: int, port: int, adapters: bool, out: str) -> None:
    """What each of two processes does: shard the network (FSDP 2), then save as the trainer does."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    address = f"tcp://127.0.0.1:{port}"
    init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    network, tokenizer, model = network_of(adapters)
    fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
    weights = whole_weights(network)
    assert weights is not None
    assert bool(weights) == (rank == 0)
    if rank == 0:
        if adapters:
            network.save_pretrained(out, selected_adapters=["default"], state_dict=weights)
        else:
            save_policy(network, tokenizer, model, out, weights=weights)
    destroy_process_group()


@pytest.mark.parametrize("adapters", [False, True])
def test_sharded_weights_are_saved_whole(adapters: bool, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "policy"
    command = [sys.executable, __file__, str(port), str(int(adapters)), str(out)]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    two = [subprocess.Popen([*command, rank], cwd=ROOT, env=env) for rank in ("0", "1")]
    assert [process.wait(120) for process in two] == [0, 0]
    wanted = network_of(adapters)[0].state_dict()
    if adapters:
        from safetensors.torch import load_file

        found = load_file(out / "adapter_model.safetensors")
        assert found
        for name, weights in found.items():
            layer, _, kind = name.rpartition(".")
            assert torch.equal(weights, wanted[f"{layer}.default.{kind}"]), name
    else:
        found = load_policy(out)[0].state_dict()
        assert set(found) == set(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_network_of_one_process_is_saved_as_it_is() -> None:
    assert whole_weights(network_of(adapters=False)[0]) is None


if __name__ == "__main__":  # one of the two processes
    shard_and_save(int(sys.argv[4]), int(sys.argv[1]), sys.argv[2] == "1", sys.argv[3])
