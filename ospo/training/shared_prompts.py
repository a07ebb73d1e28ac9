"""The completions of a prompt share its computation: exact, and most of a step's time where prompts
are long.

A generation batch holds each prompt once a completion (8 times, say). Its keys and values are the
same each time, so

- sampling computes the prompt once and copies the cache (:func:`shared_prefill`);
- the loss computes one row a prompt: its tokens, then its completions one after another, each of
  which sees the prompt and itself only (:class:`SharedPromptsMixin`). Each completion begins with a
  copy of the prompt's last token, whose output predicts the completion's first. Nothing is padded
  but the rows' ends.

With 4 prompts of 150 tokens × 8 completions of 20 that is 1,272 tokens in place of 32 × 190
(padded) = 6,080. Values and gradients are those of the plain computation up to rounding.

On a CPU both go further, for architectures that are tested: sampling by
:mod:`ospo.policy.decoder`, which draws what the library would, and the loss of an adapter by
:mod:`ospo.training.packed` and :mod:`ospo.training.head`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import PreTrainedModel

from ospo.policy.decoder import DECODABLE, Decoder, decoder_of
from ospo.policy.draws import multinomial_choice
from ospo.policy.products import PackedWeights
from ospo.training.head import FrozenHeadFunction
from ospo.training.packed import hidden_before_completions, lay_out

IGNORE = -100


@dataclass(frozen=True)
class Packed:
    """G rows of W tokens that hold B completions.

    owner_GW: −1 padding, 0 prompt, k ≥ 1 the row's k-th completion. labels_GW: the completions'
    tokens, IGNORE elsewhere. rows_M, columns_M: where each of the M completion tokens stands;
    completions_M, places_M: whose it is, and its place there.
    """

    ids_GW: Tensor
    positions_GW: Tensor
    owner_GW: Tensor
    labels_GW: Tensor
    rows_M: Tensor
    columns_M: Tensor
    completions_M: Tensor
    places_M: Tensor

    def allowed(self) -> Tensor:
        """(G, 1, W, W), true where a query may see a key: earlier, in the prompt or in its own
        completion.

        A padding token sees itself, because a row of a softmax must see something.
        """
        query, key = self.owner_GW[:, :, None], self.owner_GW[:, None, :]
        order_W = torch.arange(query.shape[1], device=query.device)
        earlier = order_W[:, None] >= order_W[None, :]
        seen = earlier & (key >= 0) & ((key == 0) | (key == query))
        return (seen | torch.eye(len(order_W), dtype=torch.bool, device=query.device))[:, None]

    def unpack(self, values_GV: Tensor, completions: int, keep: int) -> Tensor:
        """(completions, keep) values of the completions' tokens, 0 on padding.

        values_GV: of every token but its row's first, which nothing predicts, V = W − 1.
        """
        return self.place(values_GV[self.rows_M, self.columns_M - 1], completions, keep)

    def place(self, values_M: Tensor, completions: int, keep: int) -> Tensor:
        """(completions, keep) values of the completions' tokens, 0 on padding."""
        result = values_M.new_zeros(completions, keep)
        return result.index_put((self.completions_M, self.places_M), values_M)


def pack(ids_BS: Tensor, mask_BS: Tensor, keep: int) -> Packed | None:
    """Rows of the distinct prompts with their completions, the last ``keep`` tokens of each row;
    None: none are shared.

    Prompts are padded on the left, completions on the right, ``mask_BS`` 0 there. A prompt has a
    token at least.
    """
    prompts = ids_BS[:, :-keep].masked_fill(mask_BS[:, :-keep] == 0, -1)
    distinct, group_B = torch.unique(prompts, dim=0, return_inverse=True)
    if len(distinct) == len(ids_BS):
        return None
    starts = [[token for token in prompt if token >= 0] for prompt in distinct.tolist()]
    # A row's tokens, their positions, owners and labels.
    rows: list[tuple[list[int], list[int], list[int], list[int]]] = [
        (
            start[:-1],
            list(range(len(start) - 1)),
            [0] * (len(start) - 1),
            [IGNORE] * (len(start) - 1),
        )
        for start in starts
    ]
    cells: list[tuple[int, int, int, int]] = []
    lengths = mask_BS[:, -keep:].sum(1).tolist()
    for b, (g, length, tokens) in enumerate(
        zip(group_B.tolist(), lengths, ids_BS[:, -keep:].tolist(), strict=True)
    ):
        ids, positions, owners, labels = rows[g]
        first, completion = len(starts[g]) - 1, tokens[:length]
        cells += [(g, len(ids) + 1 + t, b, t) for t in range(length)]
        owners += [owners[-1] + 1 if owners else 1] * (length + 1)
        ids += [starts[g][-1], *completion]
        positions += range(first, first + length + 1)
        labels += [IGNORE, *completion]
    width = max(len(ids) for ids, *_ in rows)
    tables = [
        torch.tensor(
            [row[i] + [filler] * (width - len(row[i])) for row in rows], device=ids_BS.device
        )
        for i, filler in enumerate((0, 0, -1, IGNORE))
    ]
    where = torch.tensor(cells, dtype=torch.long, device=ids_BS.device).view(-1, 4).unbind(1)
    return Packed(*tables, *where)


# Architectures whose log-probabilities are tested to be the same with shared prompts
# (tests/unit/test_training_shared_prompts.py). Any other is computed the trainer library's way:
# recurrent layers, sliding windows, position biases, attention sinks and the like do not follow
# from the mask that sharing needs.
SHAREABLE = ("gemma", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")


def can_share(network: Any) -> bool:
    """Whether prompts may be shared: a tested architecture, all layers with full attention, and a
    kernel that takes the mask it is given.
    """
    text = network.config.get_text_config().to_dict()
    kinds = set(text.get("layer_types") or ["full_attention"])
    # Qwen's configurations name a window that is switched off.
    windowed = text.get("sliding_window") is not None and text.get("use_sliding_window", True)
    kernel = network.config.get_text_config()._attn_implementation
    return (
        text["model_type"] in SHAREABLE
        and kernel in ("eager", "sdpa")
        and kinds == {"full_attention"}
        and not windowed
    )


class SharedPromptsMixin:
    """For TRL's GRPOTrainer: prompts are computed once a group, in sampling and in the loss, where
    that is possible.

    It is not where sequences are more than tokens (images), where the network's attention is not
    full, under vLLM, and, for sampling, where the weights are sharded; then TRL's own way is taken,
    as it is where ``share_prompts`` is false.
    """

    share_prompts = True
    # Whether prompts that are shared on a CPU also go through this project's own decoder and
    # forward pass, where a network is one that they are tested for; benchmarks turn it off.
    own_passes = True

    def __init__(self, *args: Any, **options: Any):
        self._packed = PackedWeights()
        super().__init__(*args, **options)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities and entropies (B, T) of the completions, as TRL's."""
        plain = {
            "compute_entropy",
            "batch_size",
            *(name for name, value in options.items() if value is None),
        }
        network = self.accelerator.unwrap_model(model)  # type: ignore[attr-defined]
        more = [name for name, value in options.items() if name not in plain and value is not False]
        packed = None
        if self.share_prompts and not args and not more and can_share(network):
            scored = self._score_adapter(network, input_ids, attention_mask, logits_to_keep)
            if scored is not None:
                return *scored, None
            packed = pack(input_ids, attention_mask, logits_to_keep)
        if packed is None:
            return super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model, input_ids, attention_mask, logits_to_keep, *args, **options
            )
        mask = packed.allowed()
        if network.config.get_text_config()._attn_implementation == "eager":  # it adds its mask
            dtype = network.get_input_embeddings().weight.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
                ~mask, torch.finfo(dtype).min
            )
        inputs = {
            "input_ids": packed.ids_GW,
            "attention_mask": mask,
            "position_ids": packed.positions_GW,
        }
        shape = len(input_ids), logits_to_keep
        with self.accelerator.autocast():  # type: ignore[attr-defined]
            if self._head_is_frozen(network):
                logps_M, entropy_M = self._score(network, inputs, packed)
                return packed.place(logps_M, *shape), packed.place(entropy_M, *shape), None
            outputs = model(**inputs, labels=packed.labels_GW, fused_lm_head=True)
        entropies = (
            packed.unpack(outputs.entropy, *shape) if options.get("compute_entropy") else None
        )
        return packed.unpack(outputs.log_probs, *shape), entropies, None

    def _head_is_frozen(self, network: Any) -> bool:
        """Whether log-probabilities may come from :class:`FrozenHeadFunction`: one process on a
        CPU, a plain head without a gradient, an entropy that is only looked at.
        """
        head, text = network.get_output_embeddings(), network.config.get_text_config().to_dict()
        alone = self.accelerator.distributed_type == DistributedType.NO  # type: ignore[attr-defined]
        return (
            self.own_passes
            and alone
            and type(head) is torch.nn.Linear
            and head.weight.device.type == "cpu"
            and head.bias is None
            and not head.weight.requires_grad
            and text["model_type"] in DECODABLE  # others scale or cap their logits
            and not self.args.cast_lm_head_to_fp32
            and not self.args.entropy_coef
            and not self.args.use_adaptive_entropy
        )

    def _score(
        self, network: Any, inputs: dict[str, Tensor], packed: Packed
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (M,) of the completions' tokens; no other is scored."""
        plain = _plain(network)
        hidden_GWD = plain.base_model(**inputs, use_cache=False).last_hidden_state
        hidden_MD = hidden_GWD[packed.rows_M, packed.columns_M - 1]
        return self._head(plain, hidden_MD, packed.labels_GW[packed.rows_M, packed.columns_M])

    def _head(self, plain: Any, hidden_MD: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
        weight, heat = plain.lm_head.weight, self.temperature  # type: ignore[attr-defined]
        scored: tuple[Tensor, Tensor] = FrozenHeadFunction.apply(
            hidden_MD.to(weight.dtype), weight, target_M, heat
        )
        return scored

    def _score_adapter(
        self, network: Any, ids_BS: Tensor, mask_BS: Tensor, keep: int
    ) -> tuple[Tensor, Tensor] | None:
        """Log-probabilities and entropies (B, T) by the forward pass of
        :mod:`ospo.training.packed`; None where it is not made for the network or the batch.
        """
        autocast = self.args.bf16 or self.args.fp16  # type: ignore[attr-defined]
        if isinstance(network, PreTrainedModel) or autocast or not self._head_is_frozen(network):
            return None
        layout = lay_out(ids_BS, mask_BS, keep)
        hidden_MD = hidden_before_completions(network, layout) if layout is not None else None
        if layout is None or hidden_MD is None:
            return None
        logps_M, entropy_M = self._head(_plain(network), hidden_MD, layout.target_M)
        shape = len(ids_BS), keep
        return layout.place(logps_M, *shape), layout.place(entropy_M, *shape)

    def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
        """TRL's sampling, with the prompts' caches computed once each; by our own decoder where
        the network and the sampling are ones that it is tested for. The draws are the same.
        """
        network = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        kind = self.accelerator.distributed_type  # type: ignore[attr-defined]
        sharded = kind in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if not self.share_prompts or self.use_vllm or sharded or not can_share(network):  # type: ignore[attr-defined]
            return super()._generate_single_turn(*args, **options)  # type: ignore[misc]
        prompts, images, fields, *_ = args
        plain = self.own_passes and images is None and not fields
        if plain and plain_sampling(self.generation_config.to_diff_dict()):  # type: ignore[attr-defined]
            dtype = torch.bfloat16 if self.args.bf16 else None  # type: ignore[attr-defined]
            decoder = decoder_of(network, dtype, self._packed)
            if decoder is not None:
                return self._sample(decoder, prompts), None
        with shared_prefill(network):
            return super()._generate_single_turn(*args, **options)  # type: ignore[misc]

    @torch.no_grad()
    def _sample(self, decoder: Decoder, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The completions that ``generate`` of transformers would draw from torch's generator."""
        asked, ends = self.generation_config, set(self.eos_token_ids)  # type: ignore[attr-defined]

        def choose(logits_RV: Tensor, live: list[int]) -> Tensor:
            if asked.temperature != 1.0:
                logits_RV = logits_RV / asked.temperature
            return multinomial_choice(logits_RV, live, len(prompts))

        return decoder.write(prompts, asked.max_new_tokens, ends, choose)


def _plain(network: Any) -> Any:
    """The network without an adapter's wrapping."""
    return network if isinstance(network, PreTrainedModel) else network.get_base_model()


@contextmanager
def shared_prefill(network: Any) -> Iterator[None]:
    """While it is open, ``network.generate(input_ids, attention_mask, …)`` computes repeated
    prompts once.

    The draws are the same as without it: sampling begins at the prompts' last token, all sequences
    together.
    """
    original = network.generate

    def generate(*, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        rows = input_ids.masked_fill(attention_mask == 0, -1)
        distinct, inverse_B = torch.unique(rows, dim=0, return_inverse=True)
        if len(distinct) < len(rows) and rows.shape[1] > 1:
            ids_GS, mask_GS = distinct[:, :-1].clamp(min=0), (distinct[:, :-1] >= 0).long()
            cache = network(
                input_ids=ids_GS,
                attention_mask=mask_GS,
                position_ids=(mask_GS.cumsum(1) - 1).clamp(min=0),
                use_cache=True,
                logits_to_keep=1,
            ).past_key_values
            cache.batch_select_indices(inverse_B)
            options["past_key_values"] = cache
        return original(input_ids=input_ids, attention_mask=attention_mask, **options)

    network.generate = generate
    try:
        yield
    finally:
        del network.generate


# What TRL's generation settings may say for sampling to be a plain draw at a temperature.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "do_sample": (True,),
    "top_p": (1.0,),
    "top_k": (0, None),
    "min_p": (None,),
    "repetition_penalty": (1.0,),
    "disable_compile": (True,),
}
_ANY = ("max_new_tokens", "temperature", "transformers_version", "_from_model_config")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def plain_sampling(settings: Mapping[str, Any]) -> bool:
    """Whether settings of ``generate`` that differ from its defaults ask for nothing but draws at a
    temperature.
    """
    for name, value in settings.items():
        if name not in (*_ANY, *_TOKENS) and value not in _PLAIN.get(name, ()):
            return False
    return settings.get("do_sample") is True
