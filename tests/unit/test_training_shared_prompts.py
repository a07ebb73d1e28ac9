"""Prompts computed once a group: the same numbers, gradients and draws as computing them with every
completion.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from training_shop import LetterReward, make_policy, small_config
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

from ospo.data.dataset import PreparedData
from ospo.training.ospo import OSPOTrainer
from ospo.training.rl import build_trainer
from ospo.training.run import TrainingRun
from ospo.training.shared_prompts import IGNORE, SHAREABLE, can_share, pack, shared_prefill


@pytest.fixture(scope="module")
def trainer(esci_tiny: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> OSPOTrainer:
    folder = tmp_path_factory.mktemp("shared")
    policy = make_policy(small_config(), esci_tiny, folder / "model")
    config = small_config()
    return build_trainer(TrainingRun(config, esci_tiny, folder, policy, LetterReward()), "grpo")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts (3, 5 and 1 tokens, padded on the left) with 3, 1 and 2 completions (1 to 4
    tokens), mixed up.
    """
    prompts = [[0, 0, 11, 12, 13], [14, 15, 16, 17, 18], [0, 0, 0, 0, 19]]
    rows = [
        (0, [21, 22, 23, 24]),
        (1, [25, 26, 0, 0]),
        (2, [27, 0, 0, 0]),
        (0, [28, 29, 30, 0]),
        (2, [31, 32, 33, 34]),
        (0, [35, 0, 0, 0]),
    ]
    ids = torch.tensor([prompts[p] + completion for p, completion in rows])
    return ids, (ids != 0).long()


def test_rows_hold_each_prompt_once() -> None:
    packed = pack(*batch(), keep=4)
    assert packed is not None
    # The prompts sort by their tokens, padding first: 19, then 11 12 13, then 14 to 18.
    rows = [packed.ids_GW[g, : int((packed.owner_GW[g] >= 0).sum())].tolist() for g in range(3)]
    assert rows == [
        [19, 27, 19, 31, 32, 33, 34],
        [11, 12, 13, 21, 22, 23, 24, 13, 28, 29, 30, 13, 35],
        [14, 15, 16, 17, 18, 25, 26],
    ]
    assert packed.owner_GW[1].tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert packed.positions_GW[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 2, 3]
    assert packed.labels_GW[1].tolist() == [IGNORE] * 3 + [
        21,
        22,
        23,
        24,
        IGNORE,
        28,
        29,
        30,
        IGNORE,
        35,
    ]
    seen = packed.allowed()[1, 0]
    assert seen[9].nonzero()[:, 0].tolist() == [0, 1, 7, 8, 9], (
        "the prompt, and its own completion up to here"
    )
    ids, mask = batch()
    assert (
        packed.unpack(packed.ids_GW[:, 1:].float(), 6, 4).tolist() == (ids * mask)[:, 5:].tolist()
    )


def test_completions_that_are_masked_away_give_zeros_and_a_gradient(trainer: OSPOTrainer) -> None:
    """DAPO masks completions that were cut off, in a short run all of them."""
    ids, mask = batch()
    mask[:, 5:] = 0
    network: Any = trainer.model
    network.zero_grad()
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        network, ids, mask, 4, compute_entropy=True
    )
    assert logps.tolist() == [[0.0] * 4] * 6
    logps.sum().backward()
    assert all(float(p.grad.abs().max()) == 0 for p in network.parameters() if p.grad is not None)


def test_nothing_to_share_is_none() -> None:
    ids, mask = batch()
    assert pack(ids[:3], mask[:3], keep=4) is None


def close_to_plain(trainer: OSPOTrainer) -> None:
    """The shared computation's values and gradients are those of TRL's own."""
    network: Any = trainer.model
    ids, mask = batch()
    upstream = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

    def run(method: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        network.zero_grad()
        logps, entropies, _ = method(trainer, network, ids, mask, 4, compute_entropy=True)
        ((logps * upstream).sum() + entropies.detach().sum()).backward()
        gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        return logps.detach(), entropies.detach(), gradients

    plain = run(GRPOTrainer._get_per_token_logps_and_entropies)
    calls = []
    handle = network.get_input_embeddings().register_forward_hook(
        lambda module, args, out: calls.append(out.shape)
    )
    shared = run(OSPOTrainer._get_per_token_logps_and_entropies)
    handle.remove()
    rows = [tuple(shape[:2]) for shape in calls]
    assert rows == ([(3, 13)] if can_share(network) else [(6, 9)]), "three rows, or six of nine"
    torch.testing.assert_close(shared[0], plain[0], atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(shared[1], plain[1], atol=5e-6, rtol=1e-5)
    for name, gradient in plain[2].items():
        torch.testing.assert_close(
            shared[2][name],
            gradient,
            atol=3e-5,
            rtol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert max(float(gradient.abs().max()) for gradient in plain[2].values()) > 1e-2


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_values_and_gradients_are_those_of_the_plain_computation(
    trainer: OSPOTrainer, kernel: str
) -> None:
    network: Any = trainer.model
    network.set_attn_implementation(kernel)
    assert can_share(network)
    close_to_plain(trainer)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def trainer_of(kind: str, data: PreparedData, folder: Path, **settings: Any) -> OSPOTrainer:
    """A trainer of a small random network of another architecture, with the tests' tokenizer."""
    policy = make_policy(small_config(), data, folder / "nano")
    tokenizer = AutoTokenizer.from_pretrained(policy)
    ids = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos")}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer) + 8, **SMALL, **ids, **settings)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    for part in (network, tokenizer):
        part.save_pretrained(folder / "model")
    run = TrainingRun(small_config(), data, folder, folder / "model", LetterReward())
    return build_trainer(run, "grpo")


@pytest.mark.parametrize("kind", SHAREABLE)
def test_every_shareable_architecture_gives_the_same(
    esci_tiny: PreparedData, tmp_path: Path, kind: str
) -> None:
    settings = {"sliding_window": None} if kind in ("mistral", "phi3") else {}
    trainer = trainer_of(kind, esci_tiny, tmp_path, **settings)
    assert can_share(trainer.model)
    close_to_plain(trainer)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mistral", {"sliding_window": 3}),  # sliding window
        ("qwen2", {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 0}),
        ("gemma2", {"sliding_window": 3}),  # soft-capped scores
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1}),  # attention sinks
        ("bloom", {"n_layer": 2, "n_head": 2}),  # ALiBi
        ("mpt", {"d_model": 32, "n_heads": 2, "n_layers": 2}),  # ALiBi
        ("mamba", {"state_size": 4}),  # recurrent
        ("rwkv", {"attention_hidden_size": 32, "context_length": 64}),  # recurrent
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}),  # never tried
        ("deepseek_v3", {}),  # latent attention
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_other_architecture_is_computed_the_library_s_way(
    kind: str, settings: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(kind, vocab_size=50, **SMALL, **settings)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    assert not can_share(network)


def test_an_architecture_that_cannot_share_gives_the_library_s_numbers(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    """A sliding window of three tokens: sharing would let completions see too much or too little."""
    trainer = trainer_of("mistral", esci_tiny, tmp_path, sliding_window=3)
    close_to_plain(trainer)


def test_sampling_draws_the_same_tokens(trainer: OSPOTrainer) -> None:
    network: Any = trainer.model
    network.eval()
    prompts = torch.tensor([[0, 0, 11, 12, 13]] * 3 + [[14, 15, 16, 17, 18]] * 3)
    options: dict[str, Any] = {
        "input_ids": prompts,
        "attention_mask": (prompts != 0).long(),
        "generation_config": trainer.generation_config,
    }
    torch.manual_seed(3)
    plain = network.generate(**options)
    widths = []
    handle = network.get_input_embeddings().register_forward_hook(
        lambda module, args, out: widths.append(out.shape)
    )
    torch.manual_seed(3)
    with shared_prefill(network):
        shared = network.generate(**options)
    handle.remove()
    assert shared.tolist() == plain.tolist()
    assert [tuple(shape[:2]) for shape in widths[:2]] == [(2, 4), (6, 1)], (
        "prompts once, then a token a sequence"
    )
    assert "generate" not in vars(network)


def test_the_key_turns_it_off(
    esci_tiny: PreparedData, trainer: OSPOTrainer, tmp_path: Path
) -> None:
    policy = make_policy(small_config(), esci_tiny, tmp_path / "model")
    config = small_config("presets.nano.rl.share_prompts=false")
    plain = build_trainer(TrainingRun(config, esci_tiny, tmp_path, policy, LetterReward()), "grpo")
    assert (plain.share_prompts, trainer.share_prompts) == (False, True)
    shapes = []
    network: Any = plain.model
    network.get_input_embeddings().register_forward_hook(
        lambda module, args, out: shapes.append(out.shape)
    )
    plain._get_per_token_logps_and_entropies(network, *batch(), 4, compute_entropy=True)
    plain._generate_single_turn([[11, 12, 13]] * 2, None, {}, 2)
    assert [tuple(shape[:2]) for shape in shapes[:2]] == [(6, 9), (2, 3)]


def test_a_window_of_attention_is_left_to_the_library(
    trainer: OSPOTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = trainer.model
    monkeypatch.setattr(network.config, "sliding_window", 2, raising=False)
    shapes = []
    handle = network.get_input_embeddings().register_forward_hook(
        lambda module, args, out: shapes.append(out.shape)
    )
    trainer._get_per_token_logps_and_entropies(network, *batch(), 4, compute_entropy=True)
    handle.remove()
    assert [tuple(shape[:2]) for shape in shapes] == [(6, 9)]
