"""The scratch policy: a small Llama with random weights, and the tokenizer trained for it."""

from collections.abc import Iterable
from typing import Any

import torch

from ospo.config import Model
from ospo.errors import InputError
from ospo.policy.prompts import ANSWER_CLOSE, ANSWER_OPEN

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CONTEXT = 512  # positions of a scratch policy: far above any prompt the presets allow

# The scratch policy reads the user's text alone, so one prompt format serves it and instruct
# models.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer trained on ``texts``: any text can be encoded, and decoding gives
    it back exactly.

    The answer tags are added tokens, not special ones, so that decoding without special tokens
    keeps them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(
        [AddedToken(tag, normalized=False, special=False) for tag in (ANSWER_OPEN, ANSWER_CLOSE)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
    )


def build_scratch(model: Model, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
    """A Llama of a few million parameters, freshly drawn under ``seed``, and its tokenizer trained
    on ``texts``.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if model.hidden_size % (2 * model.heads):
        raise InputError(
            "params.yaml",
            "model.hidden_size",
            "is not an even multiple of model.heads",
            "for example 256 and 4",
        )
    tokenizer = build_tokenizer(texts, model.vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=model.hidden_size,
        intermediate_size=round(model.hidden_size * 8 / 3 / 16) * 16,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # 1/sqrt(width): at the library's 0.02 attention starts almost flat, and copying is learned
        # twice as slowly.
        initializer_range=model.hidden_size**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: Any = LlamaForCausalLM(config)
    network.set_attn_implementation(attention("scratch"))
    # The answer's end is the end: a policy would go on until the token limit, and nothing
    # after it is read.
    network.generation_config.eos_token_id = [
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids(ANSWER_CLOSE),
    ]
    return network.to(DTYPES[model.dtype]), tokenizer


def attention(source: str) -> str:
    """Attention kernel. On a CPU the fused one is slower to differentiate than plain matrix
    products at short lengths: a training step of the scratch policy takes 0.22 s of processor time
    with it, 0.14 s without.
    """
    return "eager" if source == "scratch" and not torch.cuda.is_available() else "sdpa"
