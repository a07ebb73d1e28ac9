"""Networks that learn a vector per position see a prompt at the same positions in any batch."""

from pathlib import Path

import torch
from policy_shop import resign, write_policy

from ospo.data.request import Request
from ospo.policy.decoding import Decoding
from ospo.policy.generate import Generator, render


def test_padding_takes_no_position(tmp_path: Path) -> None:
    """Rotary positions are relative and would not show it."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(write_policy(tmp_path / "llama"))
    folder = tmp_path / "gpt2"
    torch.manual_seed(0)
    network = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=256)
    )
    with torch.no_grad():
        network.transformer.wpe.weight.mul_(100)  # the positions speak louder than the words
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    resign(folder)
    generator = Generator.load(folder)
    queries = ("red", "a summer top for the evening", "linen trousers")
    prompts = [render(generator.tokenizer, Request(query=query), 128) for query in queries]
    assert len({len(prompt.ids) for prompt in prompts}) == 3
    alone = [generator([prompt], Decoding(12))[0] for prompt in prompts]
    assert generator(prompts, Decoding(12)) == alone
    inputs = torch.tensor([prompts[0].ids])
    plain = generator.model.generate(inputs, max_new_tokens=12, do_sample=False)
    assert plain[0, len(prompts[0].ids) :].tolist()[: len(alone[0])] == alone[0]
