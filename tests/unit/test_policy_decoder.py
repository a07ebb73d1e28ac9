"""The decoder's logits are those of the network, whatever is beside a row, and its draws those of
torch.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ospo.policy.decoder import DECODABLE, Decoder, decoder_of
from ospo.policy.draws import gumbel_choice, multinomial_choice
from ospo.policy.products import PackedWeights

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "vocab_size": 300,
    "sliding_window": None,
    **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos")},
}
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
GROUPS = [0, 2, 0, 1, 2, 2]  # the prompt of each of six completions
LEAVE = {1: [1], 2: [0, 4], 4: [3]}  # completions that end with a step


def network_of(kind: str = "llama", **settings: Any) -> Any:
    """A small random network; biases and norms too are random."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | settings))
    network = AutoModelForCausalLM.from_config(config)
    for name, weight in network.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.3)
    return network.eval()


def with_adapter(network: Any) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    lora = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    adapted = get_peft_model(network, lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0, 0.2)
    return adapted.eval()


def decode(decoder: Decoder, steps: int = 7) -> list[tuple[list[int], torch.Tensor]]:
    """(tokens so far with the prompt, logits of the next) of every row and step, rows leaving as
    LEAVE says.
    """
    texts = [list(PROMPTS[group]) for group in GROUPS]
    generator = torch.Generator().manual_seed(1)
    found = []
    cache, logits = decoder.start(PROMPTS, GROUPS, steps)
    for step in range(steps):
        assert len(logits) == len(cache.rows)
        found += [(list(texts[r]), logits[place]) for place, r in enumerate(cache.rows)]
        if step + 1 == steps:
            break
        token_R = torch.randint(20, 300, (len(cache.rows),), generator=generator)
        for row, token in zip(cache.rows, token_R.tolist(), strict=True):
            texts[row].append(token)
        still = [p for p, row in enumerate(cache.rows) if row not in LEAVE.get(step, ())]
        decoder.keep(still, cache)
        logits = decoder.step(token_R[still], cache)
    assert cache.rows == [2, 5]
    return found


def furthest(network: Any, found: Sequence[tuple[list[int], torch.Tensor]]) -> float:
    """The largest difference from the network's own logits of each text alone."""
    with torch.no_grad():
        return max(
            float((network(torch.tensor([text])).logits[0, -1].float() - logits).abs().max())
            for text, logits in found
        )


@pytest.mark.parametrize("kind", DECODABLE)
@pytest.mark.parametrize("adapter", [False, True])
@torch.no_grad()
def test_logits_are_those_of_the_network(kind: str, adapter: bool) -> None:
    network = network_of(kind)
    if adapter:
        network = with_adapter(network)
    decoder = decoder_of(network)
    assert decoder is not None
    found = decode(decoder)
    assert len(found) == 6 + 6 + 5 + 3 + 3 + 2 + 2
    assert furthest(network, found) < 2e-5


@pytest.mark.parametrize("groups", [[0, 1, 0, 1], [0, 0, 1, 1], [1, 0], [0]])
@torch.no_grad()
def test_rows_may_come_in_any_order(groups: list[int]) -> None:
    network = network_of()
    decoder = decoder_of(network)
    assert decoder is not None
    texts = [list(PROMPTS[group]) for group in groups]
    cache, logits = decoder.start(PROMPTS[: max(groups) + 1], groups, 3)
    for step in range(3):
        found = list(zip(texts, logits, strict=True))
        assert furthest(network, found) < 2e-5, step
        texts = [[*text, 20 + row + step] for row, text in enumerate(texts)]
        logits = decoder.step(torch.tensor([text[-1] for text in texts]), cache)


@torch.no_grad()
def test_many_prompts_are_attended_to_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ospo.policy.decoder._SCORES", 1)
    network = network_of()
    decoder = decoder_of(network)
    assert decoder is not None
    assert furthest(network, decode(decoder)) < 2e-5


@torch.no_grad()
def test_bfloat16_is_as_close_to_float32_as_the_network_s_own(monkeypatch: Any) -> None:
    """Weights laid out by oneDNN, an adapter in bfloat16."""
    exact = with_adapter(network_of())
    rounded = with_adapter(network_of()).to(torch.bfloat16)
    exact.load_state_dict(rounded.state_dict())
    decoder = decoder_of(rounded)
    assert decoder is not None
    assert decoder.dtype == torch.bfloat16
    found = decode(decoder)
    own = [(text, rounded(torch.tensor([text])).logits[0, -1].float()) for text, _ in found]
    assert 0 < furthest(exact, found) < 1.5 * furthest(exact, own)


@torch.no_grad()
def test_products_may_be_in_bfloat16_over_float32_weights() -> None:
    network = network_of()
    decoder = decoder_of(network, torch.bfloat16)
    assert decoder is not None
    found = decode(decoder)
    with torch.autocast("cpu", torch.bfloat16):
        own = [(text, network(torch.tensor([text])).logits[0, -1].float()) for text, _ in found]
    assert 0 < furthest(network, found) < 1.5 * furthest(network, own)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_now(dtype: torch.dtype) -> None:
    """What is laid out once is laid out again after an update, of the network or of its adapter."""
    network = with_adapter(network_of()).to(dtype)
    packed = PackedWeights()
    before = decoder_of(network, None, packed)
    again = decoder_of(network, None, packed)
    assert before is not None
    assert again is not None
    assert before.layers[0].qkv.weight is again.layers[0].qkv.weight, "laid out once"
    bound = 2e-5 if dtype == torch.float32 else 0.5
    first = decode(again)
    for part in ("q_proj.base_layer", "down_proj.lora_B", "lora_A", "lm_head", "layernorm"):
        for name, weight in network.named_parameters():
            if part in name:
                weight.mul_(1.5)
        now = decoder_of(network, None, packed)
        assert now is not None
        second = decode(now)
        moved = [(a - b).abs().max() for (_, a), (_, b) in zip(first, second, strict=True)]
        assert float(max(moved)) > 0.1, part
        assert furthest(network, second) < bound * max(1, float(second[0][1].abs().max())), part
        first = second


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("gemma", {}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": 3}),
    ("llama", {"hidden_act": "gelu"}),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
]


@pytest.mark.parametrize(("kind", "settings"), REFUSED)
def test_any_other_network_is_refused(kind: str, settings: dict[str, Any]) -> None:
    assert decoder_of(network_of(kind, **settings)) is None


def test_an_adapter_that_is_not_plain_is_refused() -> None:
    from peft import LoraConfig, TaskType, get_peft_model

    def of(**settings: Any) -> Any:
        lora = LoraConfig(target_modules="all-linear", task_type=TaskType.CAUSAL_LM, **settings)
        return get_peft_model(network_of(), lora)

    assert decoder_of(of()) is not None
    assert decoder_of(of(use_dora=True)) is None
    dropping = of(lora_dropout=0.5)
    assert decoder_of(dropping.train()) is None, "what is dropped is drawn"
    assert decoder_of(dropping.eval()) is not None
    merged = of()
    merged.merge_adapter()
    assert decoder_of(merged) is None
    half = network_of().half()
    assert decoder_of(half) is None


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_draws_are_those_of_torch(scale: float) -> None:
    """Near-uniform, ordinary and nearly certain distributions; some rows are no longer live."""
    live = [0, 2, 3, 5]
    for seed in range(20):
        logits = torch.randn(6, 4000, generator=torch.Generator().manual_seed(seed)) * scale
        torch.manual_seed(seed)
        wanted = torch.multinomial(logits.softmax(dim=-1), 1)[:, 0]
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        found = multinomial_choice(logits[live], live, 6)
        assert found.tolist() == wanted[live].tolist()
        assert torch.equal(torch.get_rng_state(), state), "as much is drawn"


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        multinomial_choice(torch.full((1, 4), torch.nan), [0], 1)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_gumbel_draws_are_those_of_the_whole_formula(temperature: float) -> None:
    for seed in range(20):
        logits = torch.randn(3, 4000, generator=torch.Generator().manual_seed(seed)) * 5
        found = gumbel_choice(
            logits, temperature, [torch.Generator().manual_seed(n) for n in range(3)]
        )
        noise = torch.stack(
            [
                torch.rand(4000, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
                for n in range(3)
            ]
        ).clamp_(1e-300, 1 - 1e-16)
        wanted = (logits.double() / temperature - torch.log(-torch.log(noise))).argmax(dim=-1)
        assert found.tolist() == wanted.tolist()
