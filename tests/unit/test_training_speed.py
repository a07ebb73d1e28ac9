"""What makes a training step faster on a CPU changes none of its results."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from training_shop import LetterReward, make_policy, small_config, weights
from transformers import GenerationConfig
from trl import GRPOTrainer

from ospo.data.dataset import PreparedData
from ospo.training.head import FrozenHeadFunction
from ospo.training.ospo import OSPOTrainer
from ospo.training.packed import lay_out
from ospo.training.rl import build_trainer, train_rl
from ospo.training.run import TrainingRun
from ospo.training.shared_prompts import plain_sampling

IDS = [[11, 12, 13]] * 4 + [[14, 15, 16, 17, 18]] * 4


def trainer_in(folder: Path, data: PreparedData, *settings: str) -> OSPOTrainer:
    config = small_config("presets.nano.rl.max_completion_tokens=12", *settings)
    policy = make_policy(config, data, folder / "model")
    return build_trainer(TrainingRun(config, data, folder, policy, LetterReward()), "grpo")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_decoder_draws_what_the_library_draws(
    esci_tiny: PreparedData, tmp_path: Path, temperature: float
) -> None:
    """Rows end one by one: a fifth of all tokens are ends."""
    setting = f"presets.nano.rl.temperature={temperature}"
    trainer = trainer_in(tmp_path, esci_tiny, setting)
    trainer.eos_token_ids = list(range(0, 600, 5))
    trainer.generation_config.eos_token_id = trainer.eos_token_ids
    trainer.generation_kwargs["eos_token_id"] = trainer.eos_token_ids

    def sampled() -> tuple[list[list[int]], torch.Tensor]:
        torch.manual_seed(3)
        completions, _ = trainer._generate_single_turn(IDS, None, {}, 4)
        return completions, torch.get_rng_state()

    network: Any = trainer.model
    shapes = []
    handle = network.get_input_embeddings().register_forward_hook(
        lambda module, args, out: shapes.append(out.shape)
    )
    found, state = sampled()
    assert not shapes, "the network's own forward pass takes no part"
    handle.remove()
    trainer.own_passes = False
    wanted, after = sampled()
    assert found == wanted
    assert len({len(ids) for ids in found}) > 3, "lengths must differ for this test to see anything"
    assert torch.equal(state, after)


def test_twenty_steps_give_the_same_weights(
    esci_tiny: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config("presets.nano.rl.steps=20", "presets.nano.rl.checkpoint_every=20")
    policy = make_policy(config, esci_tiny, tmp_path / "model")
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for name, found in (("new", after), ("old", before)):
        if name == "old":
            monkeypatch.setattr(OSPOTrainer, "own_passes", False)
        out = tmp_path / name
        train_rl(TrainingRun(config, esci_tiny, out, policy, LetterReward()), "grpo")
        found["weights"] = weights(out / "model")
        found["rows"] = pl.read_parquet(out / "completions.parquet")["completion"].to_list()
    assert after["rows"] == before["rows"]
    start = weights(policy)
    for name, weight in before["weights"].items():
        torch.testing.assert_close(after["weights"][name], weight, atol=1e-5, rtol=1e-5)
        assert float((weight - start[name]).abs().max()) > 1e-3, "it has learned"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tokens", [5, 300])
def test_the_frozen_head_gives_log_probabilities_and_their_gradient(
    tokens: int, temperature: float
) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, 16, dtype=torch.float64), torch.randn(50, 16).double()
    target = torch.randint(50, (tokens,))
    hidden.requires_grad_(True)
    upstream = torch.randn(tokens)
    logps = (hidden @ weight.T / temperature).log_softmax(dim=-1)
    entropy = -(logps.exp() * logps).sum(dim=-1)
    wanted = logps.gather(1, target[:, None])[:, 0]
    (wanted * upstream).sum().backward()
    gradient = hidden.grad
    assert gradient is not None
    plain = hidden.detach().float().requires_grad_(True)
    found, spread = FrozenHeadFunction.apply(plain, weight.float(), target, temperature)
    (found * upstream).sum().backward()
    assert plain.grad is not None
    torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(spread.double(), entropy, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(plain.grad.double(), gradient, atol=1e-4, rtol=1e-5)
    assert not spread.requires_grad


def adapter_trainer(folder: Path, data: PreparedData) -> OSPOTrainer:
    """A trainer of an adapter on a frozen network; TRL's trainer takes it as it is."""
    from peft import LoraConfig, TaskType, get_peft_model

    trainer = trainer_in(folder, data)
    network: Any = trainer.model
    lora = LoraConfig(r=4, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    torch.manual_seed(1)
    trainer.model = get_peft_model(network, lora)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0, 0.2)
    return trainer


@pytest.mark.parametrize("even", [True, False], ids=["groups of two", "groups of two and one"])
def test_an_adapter_is_trained_as_the_library_trains_it(
    esci_tiny: PreparedData, tmp_path: Path, even: bool
) -> None:
    trainer = adapter_trainer(tmp_path, esci_tiny)
    prompts = [[0, 0, 11, 12, 13], [14, 15, 16, 17, 18], [0, 0, 0, 0, 19]] * 2
    tails = [[21, 22, 23], [24, 0, 0], [25, 26, 0], [27, 28, 29], [30, 0, 0], [31, 32, 0]]
    rows = [p + t for p, t in zip(prompts, tails, strict=True)][: 6 if even else 5]
    ids = torch.tensor(rows)
    assert (lay_out(ids, (ids != 0).long(), 3) is not None) is even

    def run(method: Any) -> list[torch.Tensor]:
        network: Any = trainer.model
        network.zero_grad()
        logps, entropies, _ = method(
            trainer, network, ids, (ids != 0).long(), 3, compute_entropy=True
        )
        mask = ids[:, 5:] != 0
        (logps * mask).sum().backward()
        grads = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        return [logps.detach() * mask, entropies.detach() * mask, *grads]

    plain = run(GRPOTrainer._get_per_token_logps_and_entropies)
    assert trainer._head_is_frozen(trainer.model)
    forwards: list[int] = []
    network: Any = trainer.model
    network.get_base_model().model.register_forward_hook(lambda *_: forwards.append(1))
    ours = run(OSPOTrainer._get_per_token_logps_and_entropies)
    assert len(forwards) == (0 if even else 1)
    assert len(plain) == len(ours) > 10
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-4)
    trainer.args.entropy_coef = 0.1  # type: ignore[attr-defined]
    assert not trainer._head_is_frozen(trainer.model), "an entropy bonus needs entropy's gradient"


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({}, True),
        ({"top_k": 0, "top_p": 1.0, "temperature": 0.7, "max_new_tokens": 3}, True),
        ({"top_k": 5}, False),
        ({"top_p": 0.9}, False),
        ({"min_p": 0.1}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"do_sample": False}, False),
        ({"no_repeat_ngram_size": 2}, False),
        ({"num_beams": 2}, False),
        ({"suppress_tokens": [3]}, False),
        ({"cache_implementation": "static"}, False),
    ],
)
def test_only_plain_draws_are_made_by_the_decoder(settings: dict[str, Any], plain: bool) -> None:
    asked = GenerationConfig(**({"do_sample": True, "eos_token_id": [1], "top_k": 0} | settings))
    assert plain_sampling(asked.to_diff_dict()) is plain
