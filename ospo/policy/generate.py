"""From requests to completions: the one generator of evaluation, offline training and serving.

What is served is therefore what was evaluated, sampled answers included. Decoding is greedy or by
temperature (:class:`Decoding`); what a model's ``generation_config.json`` asks for besides
(repetition penalty, top-k, top-p, temperature) is used nowhere: :mod:`ospo.policy.weights` takes it
off every policy it loads, which holds for sampling during training too.

On a CPU :mod:`ospo.policy.decoder` computes the logits where the network is one that it is tested
for; elsewhere transformers' forward pass does.

Sampling draws its noise per (seed, sample, prompt, step), so a sampled answer does not depend on
the batch in which it was generated. What remains is rounding: logits of a float32 policy differ by
about 1e-6 between batches; those of a bfloat16 one by up to 1e-1, so that a near-tie may fall
differently beside other requests (of SmolLM2's greedy answers about one in ten).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ospo.config import Answer, Model
from ospo.data.request import Request
from ospo.errors import InputError
from ospo.policy.decoder import Decoder, decoder_of
from ospo.policy.decoding import Decoding, digest, draw_seed
from ospo.policy.draws import gumbel_choice
from ospo.policy.kind import read_answer_kind, read_context
from ospo.policy.products import PackedWeights
from ospo.policy.prompts import fit_messages, prompt_messages, render_messages
from ospo.policy.text import REWRITE, SearchText
from ospo.policy.weights import load_policy

__all__ = ["Decoding", "Generator", "Prompt", "end_ids", "gumbel_choice", "render"]

_KEPT = 0.75  # ended rows leave the batch when fewer than this share of it still writes


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: its text, its token ids, and whether something was left out of it to
    fit.
    """

    text: str
    ids: list[int]
    cut: bool = False

    @property
    def key(self) -> str:
        """Identifies the prompt's text: in caches, and in the seed of a draw."""
        return digest(self.text)


def render(
    tokenizer: Any,
    request: Request,
    max_prompt_tokens: int,
    answer: Answer = "rewrite",
    hits: int = 0,
) -> Prompt:
    """A request's prompt, through the chat template and cut to at most ``max_prompt_tokens``.

    ``answer``: the kind of answers it asks for; ``hits``: how many of the request's hits it shows.
    Raises ValueError where not even one word of the
    query fits.
    """
    request = replace(request, hits=request.hits[:hits])
    messages, _ = fit_messages(request, tokenizer, max_prompt_tokens, answer=answer)
    text = render_messages(tokenizer, messages)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Prompt(text, ids, messages != prompt_messages(request, answer=answer))


class Generator:
    """A loaded policy that writes completions. Not for several threads at once.

    ``answer``: what its answers are, ``hits``: how many hits its prompts show, as its folder says
    (:mod:`ospo.policy.kind`). Raises
    InputError for a network that keeps no key-value cache (recurrent ones): this loop cannot run
    it.
    """

    def __init__(self, model: Any, tokenizer: Any, answer: SearchText = REWRITE, hits: int = 0):
        self.model, self.tokenizer, self.answer, self.hits = model, tokenizer, answer, hits
        self.ends = end_ids(model, tokenizer)
        text = model.config.get_text_config()
        name = text.attribute_map.get("max_position_embeddings", "max_position_embeddings")
        # Tokens that prompt and completion may have together; None where the architecture has no
        # such limit.
        self.context: int | None = text.to_dict().get(name)
        self._packed = PackedWeights()
        self._accepted = set(inspect.signature(_network(model).forward).parameters)

    @classmethod
    def load(
        cls, directory: str | Path, model: Model | None = None, *, verify: bool = True
    ) -> "Generator":
        """The policy of ``directory``, ready to write, on the GPU if there is one.

        Arguments and errors are those of :func:`ospo.policy.weights.load_policy`.
        """
        network, tokenizer = load_policy(directory, model, verify=verify)
        if model is not None and model.source == "scratch":
            network.set_attn_implementation("sdpa")  # the other kernel is for training only
        network.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(network, tokenizer, read_answer_kind(directory), read_context(directory))

    def render(self, request: Request, max_prompt_tokens: int) -> Prompt:
        """The request's prompt, which asks for the policy's kind of answers; see :func:`render`."""
        return render(self.tokenizer, request, max_prompt_tokens, self.answer.kind, self.hits)

    def check_length(self, prompt_tokens: int, new_tokens: int) -> None:
        """Raise InputError where a prompt and its completion exceed the model's context."""
        if self.context is not None and prompt_tokens + new_tokens > self.context:
            raise InputError(
                "params.yaml",
                "max_prompt_tokens",
                f"a prompt of {prompt_tokens} tokens and {new_tokens} new ones exceed the model's "
                f"{self.context}",
                "lower max_prompt_tokens or max_completion_tokens of the preset",
            )

    def __call__(
        self, prompts: Sequence[Prompt], decoding: Decoding, samples: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Completion ids of a batch of prompts: no padding, the end token kept where one was
        written.

        ``samples``: the number of each row's draw, where it is not ``decoding.sample`` for all.
        """
        return self.with_logprobs(prompts, decoding, samples)[0]

    def with_logprobs(
        self, prompts: Sequence[Prompt], decoding: Decoding, samples: Sequence[int] | None = None
    ) -> tuple[list[list[int]], list[float]]:
        """Completion ids as of a call, and of each completion the mean log-probability of its
        tokens at temperature 1.
        """
        if samples is None:
            samples = [decoding.sample] * len(prompts)
        width = max(len(prompt.ids) for prompt in prompts)
        self.check_length(width, decoding.max_new_tokens)
        generators = [
            torch.Generator().manual_seed(draw_seed(decoding.seed, sample, prompt.key))
            for prompt, sample in zip(prompts, samples, strict=True)
        ]
        with torch.inference_mode():
            decoder = decoder_of(self.model, None, self._packed)
            if decoder is not None:
                return self._decode(decoder, prompts, decoding, generators)
        pad = self.tokenizer.pad_token_id
        lengths = [len(prompt.ids) for prompt in prompts]
        ids_BT = self._tensor(
            [[pad] * (width - n) + p.ids for n, p in zip(lengths, prompts, strict=True)]
        )
        mask_BT = self._tensor([[0] * (width - n) + [1] * n for n in lengths])
        with torch.inference_mode():
            return self._write(ids_BT, mask_BT, decoding, generators)

    def _decode(
        self,
        decoder: Decoder,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        generators: Sequence[torch.Generator],
    ) -> tuple[list[list[int]], list[float]]:
        """The completions by our own decoder, equal prompts computed once."""
        sums = [0.0] * len(prompts)

        def choose(logits_RV: Tensor, live: list[int]) -> Tensor:
            draws = [generators[row] for row in live]
            token_R = gumbel_choice(logits_RV, decoding.temperature, draws)
            for row, logprob in zip(live, _logprobs(logits_RV, token_R), strict=True):
                sums[row] += logprob
            return token_R

        ids = [prompt.ids for prompt in prompts]
        written = decoder.write(ids, decoding.max_new_tokens, self.ends, choose)
        return written, _means(sums, written)

    def logits(self, prompt: Prompt) -> Tensor:
        """Logits (V,) of the first token after a prompt, as the model gives them."""
        with torch.inference_mode():
            return self.model(self._tensor([prompt.ids])).logits[0, -1].cpu()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=self.model.device)

    def _write(
        self,
        ids_BT: Tensor,
        mask_BT: Tensor,
        decoding: Decoding,
        generators: Sequence[torch.Generator],
    ) -> tuple[list[list[int]], list[float]]:
        """The loop: one token of every row per step; rows that have ended leave the batch."""
        out: list[list[int]] = [[] for _ in generators]
        sums = [0.0] * len(out)
        rows = list(range(len(out)))  # which completion each row of the tensors belongs to
        ended: set[int] = set()
        position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        cache: Any = None
        for _ in range(decoding.max_new_tokens):
            logits_BV, cache = self._step(ids_BT, mask_BT, position_BT, cache)
            token_B = gumbel_choice(
                logits_BV, decoding.temperature, [generators[row] for row in rows]
            )
            columns = (rows, token_B.tolist(), _logprobs(logits_BV, token_B))
            for row, token, logprob in zip(*columns, strict=True):
                if row in ended:
                    continue
                out[row].append(token)
                sums[row] += logprob
                if token in self.ends:
                    ended.add(row)
            if len(ended) == len(out):
                break
            ids_BT, position_BT = token_B[:, None], position_BT[:, -1:] + 1
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
            still = [place for place, row in enumerate(rows) if row not in ended]
            if len(still) <= _KEPT * len(rows):
                keep = torch.tensor(still, device=ids_BT.device)
                cache.batch_select_indices(keep)
                ids_BT, position_BT, mask_BT = ids_BT[keep], position_BT[keep], mask_BT[keep]
                rows = [rows[place] for place in still]
        return out, _means(sums, out)

    def _step(
        self, ids_BT: Tensor, mask_BT: Tensor, position_BT: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """(logits (B, V) of the next token in float32, the grown cache)."""
        inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask_BT}
        inputs |= {"past_key_values": cache, "use_cache": True}
        # Architectures differ: positions may be told by the mask, logits computed for every token.
        wanted = {"position_ids": position_BT, "logits_to_keep": 1}
        inputs |= {name: value for name, value in wanted.items() if name in self._accepted}
        step = self.model(**inputs)
        if step.get("past_key_values") is None:
            raise InputError(
                self.model.config.model_type,
                "past_key_values",
                "the network keeps no key-value cache, so it cannot write here",
                "take a policy with attention",
            )
        return step.logits[:, -1].float(), step.past_key_values


def _logprobs(logits_RV: Tensor, token_R: Tensor) -> list[float]:
    """Log-probability of each row's token at temperature 1."""
    chosen_R = logits_RV.gather(1, token_R[:, None])[:, 0] - logits_RV.logsumexp(dim=1)
    return list(chosen_R.tolist())


def _means(sums: list[float], written: list[list[int]]) -> list[float]:
    """Sums over completions as means over their tokens; 0 where there is no token."""
    return [total / max(len(ids), 1) for total, ids in zip(sums, written, strict=True)]


def _network(model: Any) -> Any:
    """The network itself, without an adapter's wrapping (peft is there only where it is needed)."""
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Token ids that end a completion: those of the model, the tokenizer's end and its padding."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return {i for i in (*listed, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None}
