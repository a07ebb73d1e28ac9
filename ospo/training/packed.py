"""The forward pass of an adapter's update on a CPU: no padding, a prompt once per group, attention
in its two parts.

Of a row that holds a prompt and its completions one after another, a mask hides most of what
attention computes: every completion from every other. Here a completion's scores over its prompt
and over itself are two products, under one softmax, in float32. The adapter's thin products are
computed in the dtype of the network's weights, those of layers that read the same input together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ospo.policy.decoder import plain_blocks
from ospo.policy.products import Adapted


@dataclass(frozen=True)
class Layout:
    """T tokens: those of G prompts but their last, then those of B completions, n per prompt, each
    after a copy of its prompt's last token.

    prompt_T, completion_T: where each of the tokens stands in the grids (G × P) and (B × L).
    seen_GP: which slots of a prompt hold a token. before_M: the token in T that predicts each of
    the M completion tokens; target_M: that token; completions_M, places_M: whose it is in the
    batch, and its place there.
    """

    ids_T: Tensor
    position_T: Tensor
    prompt_T: Tensor
    completion_T: Tensor
    seen_GP: Tensor
    completions: int
    longest: int
    before_M: Tensor
    target_M: Tensor
    completions_M: Tensor
    places_M: Tensor

    def place(self, values_M: Tensor, completions: int, keep: int) -> Tensor:
        """(completions, keep) values of the completions' tokens, 0 on padding."""
        result = values_M.new_zeros(completions, keep)
        return result.index_put((self.completions_M, self.places_M), values_M)


def lay_out(ids_BS: Tensor, mask_BS: Tensor, keep: int) -> Layout | None:
    """The layout of prompts (padded on the left) with their completions, the last ``keep`` tokens
    of each row (padded on the right); None where prompts have not the same number of completions,
    or none more than one token.
    """
    mask = mask_BS.bool()
    prompts = ids_BS[:, :-keep].masked_fill(~mask[:, :-keep], -1)
    distinct, group_B, counts = torch.unique(
        prompts, dim=0, return_inverse=True, return_counts=True
    )
    starts = [[token for token in prompt if token >= 0] for prompt in distinct.tolist()]
    width = max(len(start) for start in starts) - 1
    if len(set(counts.tolist())) > 1 or width < 1:
        return None
    order = torch.argsort(group_B, stable=True).tolist()
    lengths = mask[:, -keep:].sum(1).tolist()
    tails = ids_BS[:, -keep:].tolist()
    longest = max(lengths) + 1
    ids: list[int] = []
    positions: list[int] = []
    prompt_T: list[int] = []
    completion_T: list[int] = []
    for number, start in enumerate(starts):
        ids += start[:-1]
        positions += range(len(start) - 1)
        prompt_T += range(number * width, number * width + len(start) - 1)
    cells = []
    for number, row in enumerate(order):
        start = starts[int(group_B[row])]
        length, first = lengths[row], len(start) - 1
        cells += [(len(ids) + t, tails[row][t], row, t) for t in range(length)]
        ids += [start[-1], *tails[row][:length]]
        positions += range(first, first + length + 1)
        completion_T += range(number * longest, number * longest + length + 1)
    sizes = torch.tensor([len(start) - 1 for start in starts])
    where = torch.tensor(cells, dtype=torch.long).view(-1, 4).unbind(1)
    return Layout(
        torch.tensor(ids),
        torch.tensor(positions),
        torch.tensor(prompt_T, dtype=torch.long),
        torch.tensor(completion_T),
        torch.arange(width) < sizes[:, None],
        len(order),
        longest,
        *where,
    )


class _Place(torch.autograd.Function):
    """Rows x_T put into the places of a grid of N rows, 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, place_T: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(place_T)
        return x_TD.new_zeros(rows, *x_TD.shape[1:]).index_copy_(0, place_T, x_TD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        [place_T] = ctx.saved_tensors
        return grads[0].index_select(0, place_T), None, None


class _Take(torch.autograd.Function):
    """Rows of x_N in places that are all different."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, place_T: Tensor) -> Tensor:
        ctx.save_for_backward(place_T)
        ctx.rows = len(x_ND)
        return x_ND.index_select(0, place_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        [place_T] = ctx.saved_tensors
        full = grads[0].new_zeros(ctx.rows, *grads[0].shape[1:])
        return full.index_copy_(0, place_T, grads[0].contiguous()), None


def hidden_before_completions(model: Any, layout: Layout) -> Tensor | None:
    """Last hidden states (M, D) of the tokens that predict the completions'; None where the network
    is not one that this is tested for, or more than an adapter of it is trained.
    """
    blocks = plain_blocks(model)
    if blocks is None:
        return None
    network = model.get_base_model()
    config, inner = network.config, network.model
    if config.attention_dropout or inner.gradient_checkpointing:
        return None
    if any(weight.requires_grad for weight in network.lm_head.parameters()):
        return None
    x_TD = inner.embed_tokens(layout.ids_T)
    cos, sin = (
        p[0][:, None] for p in inner.rotary_emb(x_TD[None].float(), layout.position_T[None])
    )
    attention = _Attention(layout, config, inner.layers[0].self_attn.head_dim, cos, sin)
    for layer, (qkv, out, gate_up, down) in zip(inner.layers, blocks, strict=True):
        normed = _norm(x_TD, layer.input_layernorm.weight, config)
        [mixed] = _products(attention(*_products(normed, qkv)), out)
        x_TD = x_TD + mixed
        gate, up = _products(_norm(x_TD, layer.post_attention_layernorm.weight, config), gate_up)
        [rest] = _products(F.silu(gate) * up, down)
        x_TD = x_TD + rest
    return _norm(_Take.apply(x_TD, layout.before_M), inner.norm.weight, config)


def _norm(x_TD: Tensor, weight_D: Tensor, config: Any) -> Tensor:
    return F.rms_norm(x_TD, (config.hidden_size,), weight_D, config.rms_norm_eps)


def _products(x_TD: Tensor, layers: Sequence[Adapted]) -> list[Tensor]:
    """What layers that read the same input give (T, E), their adapters' first products as one."""
    plain = [F.linear(x_TD, layer.weight, layer.bias) for layer in layers]
    adapters = [(layer.down, layer.up) for layer in layers]
    downs = [down.to(x_TD.dtype) for down, _ in adapters if down is not None]
    if not downs:
        return plain
    thin = iter(F.linear(x_TD, torch.cat(downs)).split([len(down) for down in downs], dim=1))
    return [
        y_TE if up is None else torch.addmm(y_TE, next(thin), up.to(x_TD.dtype).T)
        for y_TE, (_, up) in zip(plain, adapters, strict=True)
    ]


class _Attention:
    """Attention of a layout's tokens: (T, Hq × E), (T, Hkv × E) twice → (T, Hq × E)."""

    def __init__(self, layout: Layout, config: Any, size: int, cos_TE: Tensor, sin_TE: Tensor):
        self.layout, self.size = layout, size
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        half = size // 2
        self.cos = cos_TE.float()
        self.sin = torch.cat([-sin_TE[..., :half], sin_TE[..., half:]], dim=-1).float()
        groups, width = layout.seen_GP.shape
        shared, longest = self.heads // self.kv_heads, layout.longest
        self.groups, self.width, self.shared = groups, width, shared
        # Queries of a key's heads stand one after another: (Hq / Hkv × tokens, slots).
        self.prompt_mask = _causal(width).repeat(shared, 1)
        self.own_mask = _causal(longest).repeat(shared, 1)
        self.seen_mask = torch.zeros(groups, 1, 1, width).masked_fill(
            ~layout.seen_GP[:, None, None], float("-inf")
        )

    def __call__(self, query_TE: Tensor, key_TE: Tensor, value_TE: Tensor) -> Tensor:
        dtype = query_TE.dtype
        query = self._turn(query_TE, self.heads).mul(self.size**-0.5)
        both = torch.cat([query, self._turn(key_TE, self.kv_heads)], dim=1)
        value = value_TE.view(len(value_TE), -1, self.size).float()
        whole = torch.cat([both, value], dim=1)  # (T, Hq + 2 Hkv, E)
        count = len(self.layout.prompt_T)
        prompt = self._grid(whole[:count], self.layout.prompt_T, self.groups, self.width)
        rows, longest = self.layout.completions, self.layout.longest
        own = self._grid(whole[count:], self.layout.completion_T, rows, longest)
        mixed = torch.cat(
            [
                _Take.apply(self._of_prompts(*prompt), self.layout.prompt_T),
                _Take.apply(self._of_completions(own, prompt), self.layout.completion_T),
            ]
        )
        return mixed.to(dtype)

    def _turn(self, x_TE: Tensor, heads: int) -> Tensor:
        x = x_TE.view(len(x_TE), heads, self.size).float()
        return x * self.cos + x.roll(self.size // 2, -1) * self.sin

    def _grid(
        self, whole: Tensor, place_T: Tensor, rows: int, length: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, Hkv, Hq / Hkv × length, E), (rows, Hkv, length, E) twice."""
        grid = _Place.apply(whole, place_T, rows * length).view(rows, length, -1, self.size)
        query, key, value = grid.transpose(1, 2).split(
            [self.heads, self.kv_heads, self.kv_heads], dim=1
        )
        return query.reshape(rows, self.kv_heads, -1, self.size), key, value

    def _rows(self, mixed: Tensor, rows: int, length: int) -> Tensor:
        """(rows, Hkv, Hq / Hkv × length, E) → (rows × length, Hq × E)."""
        heads = mixed.reshape(rows, self.heads, length, self.size).transpose(1, 2)
        return heads.reshape(rows * length, self.heads * self.size)

    def _of_prompts(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(2, 3) + self.prompt_mask
        return self._rows(scores.softmax(dim=-1) @ value, self.groups, self.width)

    def _of_completions(
        self, own: tuple[Tensor, Tensor, Tensor], prompt: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        query, key, value = own
        _, prompt_key, prompt_value = prompt
        rows, longest = self.layout.completions, self.layout.longest
        each = rows // self.groups
        by_group = query.view(self.groups, each, self.kv_heads, -1, self.size).transpose(1, 2)
        by_group = by_group.reshape(self.groups, self.kv_heads, -1, self.size)
        over_prompt = by_group @ prompt_key.transpose(2, 3) + self.seen_mask
        shape = self.groups, self.kv_heads, each, self.shared * longest, self.width
        over_prompt = (
            over_prompt.view(shape).transpose(1, 2).reshape(rows, *shape[1:2], -1, shape[4])
        )
        over_own = query @ key.transpose(2, 3) + self.own_mask
        weights = torch.cat([over_prompt, over_own], dim=-1).softmax(dim=-1)
        of_prompt, of_own = weights.split([self.width, longest], dim=-1)
        of_prompt = of_prompt.reshape(self.groups, each, self.kv_heads, -1, self.width)
        of_prompt = of_prompt.transpose(1, 2).reshape(self.groups, self.kv_heads, -1, self.width)
        mixed = (of_prompt @ prompt_value).view(
            self.groups, self.kv_heads, each, self.shared * longest, self.size
        )
        mixed = mixed.transpose(1, 2).reshape(rows, self.kv_heads, -1, self.size)
        return self._rows(mixed + of_own @ value, rows, longest)


def _causal(length: int) -> Tensor:
    """(length, length): −∞ above the diagonal."""
    return torch.full((length, length), float("-inf")).triu(1)
