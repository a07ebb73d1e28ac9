"""A decoder written for short answers on a CPU: each prompt computed once, no padding, weights laid
out once.

transformers' forward pass is made for every network and every machine. On two cores a decode step
of a small language model is then mostly other things: weights laid out anew for each product, a
cache copied to grow by a token, an adapter's three products and conversions beside every one of the
network's. Here

- weights lie as the processor wants them (oneDNN), those that read the same input side by side, an
  adapter's as one more pair of thin products;
- the rows of a group share the keys and values of their prompt. The cache has a fixed size; a
  group's own tokens follow its prompt in order of time, so that attention is one call over all rows
  of all groups, under a mask that shows a row its prompt and its own tokens;
- only the rows that still write are computed.

Its logits are those of the network up to rounding (float32: about 1e-6). It is for architectures
that are tested to (:data:`DECODABLE`); :func:`decoder_of` gives None for any other.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ospo.policy.products import Adapted, PackedWeights, Product, adapted

# Architectures whose logits are tested to be the same (tests/unit/test_policy_decoder.py).
DECODABLE = ("llama", "mistral", "qwen2")
# A network of more weights is left to transformers: laid out anew they are there twice.
MOST_WEIGHTS = 1_000_000_000
# Position encodings that do not depend on how long a text has become.
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")
_SCORES = 1 << 24  # attention scores held at a time while prompts are computed
_KEPT = 0.75  # the cache is moved together when fewer than this share of its rows still writes


@dataclass(frozen=True)
class _Layer:
    norm_1: Tensor
    qkv: Product
    out: Product
    norm_2: Tensor
    gate_up: Product
    down: Product


def decoder_of(
    model: Any, dtype: torch.dtype | None = None, packed: PackedWeights | None = None
) -> "Decoder | None":
    """A decoder of a network's weights as they are now; None where the network is not one that it
    is tested for: another architecture, machine, kind of layer or of adapter.

    ``dtype``: of the products, that of the weights where it is None. ``packed``: keeps what has
    been laid out from call to call.
    """
    blocks = plain_blocks(model)
    network = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    weights = dtype or network.dtype
    if blocks is None or weights not in (torch.float32, torch.bfloat16):
        return None
    return Decoder(network, blocks, weights, packed or PackedWeights())


def plain_blocks(model: Any) -> list[list[list[Adapted]]] | None:
    """The linear layers of each block of a network, with or without an adapter; None where the
    network is not of a tested architecture, or on another machine than a CPU, or not plain.
    """
    network = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    config = network.config
    if config.model_type not in DECODABLE or network.device.type != "cpu":
        return None
    settings = config.to_dict()
    rope = (settings.get("rope_parameters") or {}).get("rope_type", "default")
    kinds = set(settings.get("layer_types") or ["full_attention"])
    # Qwen's configurations name a window that is switched off.
    windowed = settings.get("sliding_window") and settings.get("use_sliding_window", True)
    if settings["hidden_act"] != "silu" or rope not in _FIXED_ROPE:
        return None
    if kinds != {"full_attention"} or windowed:
        return None
    if type(network.lm_head) is not nn.Linear or network.num_parameters() > MOST_WEIGHTS:
        return None
    blocks = [_parts(layer, model is not network) for layer in network.model.layers]
    known = [block for block in blocks if block is not None]
    return known if len(known) == len(blocks) else None


def _parts(layer: Any, wrapped: bool) -> list[list[Adapted]] | None:
    """The layers of a block that read the same input, in order: attention's input, its output, the
    MLP's input, its output; None where one is not plain.
    """
    attention, mlp = layer.self_attn, layer.mlp
    modules = [
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    ]
    found: list[list[Adapted]] = []
    for group in modules:
        parts = [adapted(module, wrapped) for module in group]
        if any(part is None for part in parts):
            return None
        found.append([part for part in parts if part is not None])
    return found


@dataclass
class Cache:
    """Keys and values of G groups: P slots of the prompt, then one per row of a group and step.

    keys, values: per layer (G, Hkv, S, E). prompt_G: the prompts' lengths, ≤ P. at: slots in use.
    rows: which completion each live row is. place_R: where it stands, group × N + its place there.
    position_R: of its next token. mask: (G, 1, N × Hq / Hkv, S), 0 where a row sees a slot.
    """

    keys: list[Tensor]
    values: list[Tensor]
    prompt_G: Tensor
    prompt: int
    group: int
    steps: int
    at: int
    rows: list[int]
    place_R: Tensor
    position_R: Tensor
    mask: Tensor

    def in_order(self) -> bool:
        """Whether every place of every group is taken, by the live rows in their order."""
        places = len(self.prompt_G) * self.group
        return len(self.place_R) == places and bool((self.place_R.diff() == 1).all())


class Decoder:
    """Writes with a network's weights as they were when it was made (:func:`decoder_of`)."""

    def __init__(
        self,
        network: Any,
        blocks: Sequence[list[list[Adapted]]],
        dtype: torch.dtype,
        packed: PackedWeights,
    ):
        config, inner = network.config, network.model
        self.dtype, self.epsilon = dtype, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = inner.layers[0].self_attn.head_dim
        self.width, self.rotary = config.hidden_size, inner.rotary_emb
        self.tokens = inner.embed_tokens.weight.detach()
        self.layers = [
            _Layer(
                layer.input_layernorm.weight.detach(),
                Product(qkv, dtype, packed, 4 * number + 1),
                Product(out, dtype, packed, 4 * number + 2),
                layer.post_attention_layernorm.weight.detach(),
                Product(gate_up, dtype, packed, 4 * number + 3),
                Product(down, dtype, packed, 4 * number + 4),
            )
            for number, (layer, (qkv, out, gate_up, down)) in enumerate(
                zip(inner.layers, blocks, strict=True)
            )
        ]
        self.norm = inner.norm.weight.detach()
        head = network.lm_head
        self.head = Product([Adapted(head.weight, head.bias)], dtype, packed, 0)

    def start(
        self, prompts: Sequence[Sequence[int]], group_B: Sequence[int], steps: int
    ) -> tuple[Cache, Tensor]:
        """The cache of distinct ``prompts`` for ``steps`` tokens of each of B completions, and the
        logits (B, V), float32, of their first.

        ``group_B``: the prompt of each completion.
        """
        lengths = [len(prompt) for prompt in prompts]
        longest, count = max(lengths), len(prompts)
        places, sizes = [], [0] * count
        for group in group_B:
            places.append(sizes[group])
            sizes[group] += 1
        group_size = max(sizes)
        shape = (count, self.kv_heads, longest + group_size * steps, self.size)
        position_T = torch.cat([torch.arange(n) for n in lengths])
        owner_T = torch.repeat_interleave(torch.arange(count), torch.tensor(lengths))
        causal_PP = torch.ones(longest, longest, dtype=torch.bool).tril()
        cache = Cache(
            keys=[torch.zeros(shape, dtype=self.dtype) for _ in self.layers],
            values=[torch.zeros(shape, dtype=self.dtype) for _ in self.layers],
            prompt_G=torch.tensor(lengths),
            prompt=longest,
            group=longest,
            steps=steps,
            at=0,
            rows=[],
            place_R=owner_T * longest + position_T,
            position_R=position_T,
            mask=self._repeat(_hide(causal_PP, self.dtype)[None]),
        )
        ids_T = torch.tensor([token for prompt in prompts for token in prompt])
        x_TD = self._forward(ids_T, cache)
        last_G = torch.tensor(lengths).cumsum(0) - 1
        logits_GV = self._logits(x_TD[last_G])
        of_B = torch.tensor(list(group_B))
        cache.at, cache.group = longest, group_size
        cache.rows = list(range(len(group_B)))
        cache.place_R = of_B * group_size + torch.tensor(places)
        cache.position_R = cache.prompt_G[of_B]
        cache.mask = self._mask(cache)
        return cache, logits_GV[of_B]

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        steps: int,
        ends: Set[int],
        choose: Callable[[Tensor, list[int]], Tensor],
    ) -> list[list[int]]:
        """A completion of each of ``prompts``, which may repeat: at most ``steps`` tokens, the last
        one of ``ends`` where it ended by itself.

        choose: (logits (R, V) float32, the numbers of the R prompts whose completions still grow)
        → their next tokens (R,).
        """
        distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        number = {prompt: group for group, prompt in enumerate(distinct)}
        cache, logits_RV = self.start(distinct, [number[tuple(p)] for p in prompts], steps)
        out: list[list[int]] = [[] for _ in prompts]
        for step in range(steps):
            token_R = choose(logits_RV, cache.rows)
            still = []
            for place, (row, token) in enumerate(zip(cache.rows, token_R.tolist(), strict=True)):
                out[row].append(token)
                if token not in ends:
                    still.append(place)
            if not still or step + 1 == steps:
                break
            self.keep(still, cache)
            logits_RV = self.step(token_R[still], cache)
        return out

    def step(self, token_R: Tensor, cache: Cache) -> Tensor:
        """Logits (R, V), float32, of the token after ``token_R``, the newest of each live row."""
        x_RD = self._forward(token_R, cache)
        cache.at += cache.group
        cache.position_R = cache.position_R + 1
        return self._logits(x_RD)

    def keep(self, still: Sequence[int], cache: Cache) -> None:
        """Leave only the live rows in places ``still`` of the cache's rows, at least one."""
        if len(still) == len(cache.rows):
            return
        keep_R = torch.tensor(still)
        cache.rows = [cache.rows[place] for place in still]
        cache.place_R, cache.position_R = cache.place_R[keep_R], cache.position_R[keep_R]
        group_R = cache.place_R // cache.group
        live_G, sizes_G = torch.unique(group_R, return_counts=True)
        grid = len(cache.prompt_G) * cache.group
        if len(live_G) * int(sizes_G.max()) <= _KEPT * grid:
            self._compact(cache, group_R, live_G, int(sizes_G.max()))

    def _compact(self, cache: Cache, group_R: Tensor, live_G: Tensor, size: int) -> None:
        """Move the caches of the live rows together: groups ``live_G`` of ``size`` rows."""
        new_R = torch.searchsorted(live_G, group_R)
        place_R = torch.zeros(len(new_R), dtype=torch.long)
        taken = [0] * len(live_G)
        old_GN = torch.zeros(len(live_G), size, dtype=torch.long)  # its place in the group before
        for row, group in enumerate(new_R.tolist()):
            place_R[row] = group * size + taken[group]
            old_GN[group, taken[group]] = cache.place_R[row] % cache.group
            taken[group] += 1
        written = (cache.at - cache.prompt) // cache.group
        first_T = cache.prompt + torch.arange(written) * cache.group
        own_GS = (first_T[None, :, None] + old_GN[:, None, :]).flatten(1)
        prompt_GS = torch.arange(cache.prompt).expand(len(live_G), -1)
        slot_GS = torch.cat([prompt_GS, own_GS], dim=1)
        used, length = slot_GS.shape[1], cache.prompt + size * cache.steps
        index = slot_GS[:, None, :, None].expand(-1, self.kv_heads, -1, self.size)
        for store in (cache.keys, cache.values):
            for number, old in enumerate(store):
                new = old.new_zeros(len(live_G), self.kv_heads, length, self.size)
                new[:, :, :used] = old[live_G].gather(2, index)
                store[number] = new
        cache.prompt_G, cache.group, cache.at = cache.prompt_G[live_G], size, used
        cache.place_R = place_R
        cache.mask = self._mask(cache)

    def _mask(self, cache: Cache) -> Tensor:
        """(G, 1, N × Hq / Hkv, S): a row of a group sees its prompt and its own tokens."""
        slot_S = torch.arange(cache.keys[0].shape[2])
        prompt_GNS = (slot_S < cache.prompt_G[:, None])[:, None]
        own_S = (slot_S - cache.prompt) % cache.group
        own_NS = (slot_S >= cache.prompt) & (own_S == torch.arange(cache.group)[:, None])
        return self._repeat(_hide(prompt_GNS | own_NS, self.dtype))

    def _repeat(self, mask_GNS: Tensor) -> Tensor:
        return mask_GNS.repeat_interleave(self.heads // self.kv_heads, dim=1)[:, None]

    def _norm(self, x_TD: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(x_TD, (self.width,), weight_D, self.epsilon).to(self.dtype)

    def _logits(self, x_TD: Tensor) -> Tensor:
        return self.head(self._norm(x_TD, self.norm)).float()

    def _forward(self, ids_T: Tensor, cache: Cache) -> Tensor:
        """Last hidden states (T, D) of tokens, whose keys and values enter the cache."""
        x_TD, in_order = self.tokens[ids_T], cache.in_order()
        cos, sin = self.rotary(x_TD[None].float(), cache.position_R[None])
        turned = self.heads + self.kv_heads
        cos_TE, sin_TE = (part[0].to(self.dtype)[:, None] for part in (cos, sin))
        half = self.size // 2
        # rotate-half is a roll whose first half is negated
        sin_TE = torch.cat([-sin_TE[..., :half], sin_TE[..., half:]], dim=-1)
        for number, layer in enumerate(self.layers):
            qkv = layer.qkv(self._norm(x_TD, layer.norm_1)).view(len(ids_T), -1, self.size)
            both = qkv[:, :turned]
            qkv[:, :turned] = (both * cos_TE).addcmul_(both.roll(half, -1), sin_TE)
            mixed_TD = self._attention(qkv, number, cache, in_order)
            x_TD = x_TD + layer.out(mixed_TD)
            gate, up = layer.gate_up(self._norm(x_TD, layer.norm_2)).chunk(2, dim=-1)
            x_TD = x_TD + layer.down(F.silu(gate).mul_(up))
        return x_TD

    def _attention(self, qkv_THE: Tensor, number: int, cache: Cache, in_order: bool) -> Tensor:
        """(T, Hq × E): every row over the slots of its group that the mask shows it."""
        keys, values = cache.keys[number], cache.values[number]
        groups, size, shared = len(keys), cache.group, self.heads // self.kv_heads
        if in_order:
            grid = qkv_THE
        else:
            grid = qkv_THE.new_zeros(groups * size, *qkv_THE.shape[1:])
            grid[cache.place_R] = qkv_THE
        grid = grid.view(groups, size, -1, self.size).transpose(1, 2)
        query, key, value = grid.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        end = cache.at + size
        keys[:, :, cache.at : end], values[:, :, cache.at : end] = key, value
        # The heads that share keys are further queries: (G, Hkv, N × Hq / Hkv, E).
        query = query.reshape(groups, self.kv_heads, shared, size, self.size)
        query = query.transpose(2, 3).reshape(groups, self.kv_heads, size * shared, self.size)
        mask, scale = cache.mask[..., :end], self.size**-0.5
        chunk = max(1, _SCORES // (self.heads * size * end))
        mixed = torch.cat(
            [
                F.scaled_dot_product_attention(
                    query[i : i + chunk],
                    keys[i : i + chunk, :, :end],
                    values[i : i + chunk, :, :end],
                    attn_mask=mask if len(mask) == 1 else mask[i : i + chunk],
                    scale=scale,
                )
                for i in range(0, groups, chunk)
            ]
        )
        mixed = mixed.view(groups, self.kv_heads, size, shared, self.size).transpose(1, 2)
        mixed = mixed.reshape(groups * size, self.heads * self.size)
        return mixed if in_order else mixed[cache.place_R]


def _hide(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where something is seen, −∞ elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf"))
