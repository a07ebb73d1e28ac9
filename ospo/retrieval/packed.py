"""A BERT encoder run without padding: tokens of many texts lie in one row, attention goes by groups
of equal length.

Search texts are short (5–12 tokens), so padding and per-module overhead cost more than the
arithmetic. The weights are the published ones, read from safetensors; the mathematics is that of
Devlin et al., arXiv 1810.04805, with mean pooling and L2 normalisation (Reimers & Gurevych, arXiv
1908.10084).

A text's vector must not depend on the texts beside it. Layer norm and GELU work token by token and
attention text by text; a matrix product could sum in another order for another number of rows, as
float32 products of fewer than 16 rows do: calls are padded to ``MIN_TOKENS``.
tests/unit/test_retrieval.py checks bit-equality over batch compositions.

On a CPU, chunks of texts run side by side on single-threaded workers. Splitting each small
operation over the cores instead would end each of them at a barrier, and on a busy machine every
barrier waits for the scheduler.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Barrier

import numpy as np
import torch
import torch.nn.functional as F

from ospo.errors import InputError

MIN_TOKENS = 32
# Tokens in one pass: more only spills the activations (1024 × 1536) out of the core's cache.
CPU_CHUNK = 1024
GPU_CHUNK = 16384
MAX_WORKERS = 8


def _single_threaded() -> None:
    """Torch sets a thread's own number of threads at its first use there: cause that, then
    override it.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)


@lru_cache(maxsize=1)
def _workers(count: int) -> ThreadPoolExecutor:
    """``count`` threads whose torch operations are single-threaded; the caller's own setting stays
    as it is.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "encode", initializer=_single_threaded)
    barrier = Barrier(count)
    list(pool.map(lambda _: barrier.wait(), range(count)))  # all of them started
    torch.set_num_threads(threads)  # set_num_threads(1) also set the default of threads yet to come
    return pool


def split_chunks(lengths: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Bounds of runs of neighbouring texts of at most ``limit`` tokens in all (a longer text runs
    alone).
    """
    bounds, start, tokens = [], 0, 0
    for at, length in enumerate(lengths):
        if at > start and tokens + length > limit:
            bounds.append((start, at))
            start, tokens = at, 0
        tokens += length
    return [*bounds, (start, len(lengths))] if len(lengths) else []


class _Linear:
    """x @ weightᵀ + bias, then GELU where asked. In bfloat16 on a CPU: oneDNN with weights laid out
    once, fused.

    (F.linear lays them out anew at each call; these are the operations that torch.compile emits for
    the same.)
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, gelu: bool = False) -> None:
        self.weight, self.bias, self.gelu = weight, bias, gelu
        self.packed = None
        if (
            weight.device.type == "cpu"
            and weight.dtype == torch.bfloat16
            and torch.backends.mkldnn.is_available()
        ):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, CPU_CHUNK)

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        if self.packed is None:
            y_TE = F.linear(x_TD, self.weight, self.bias)
            return F.gelu(y_TE) if self.gelu else y_TE
        name, algorithm = ("gelu", "none") if self.gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x_TD, self.packed, self.bias, name, [], algorithm)


class PackedBert:
    """BERT's encoder over packed tokens. ``directory`` holds config.json and model.safetensors."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        from safetensors.torch import load_file

        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        if config["model_type"] != "bert" or config["hidden_act"] != "gelu":
            raise InputError(
                directory / "config.json",
                "model_type",
                "is not BERT with GELU",
                "load it as path:DIR",
            )
        weights = load_file(directory / "model.safetensors", device=str(device))

        def get(name: str) -> torch.Tensor:
            return weights[name].to(dtype)

        def norm(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return get(f"{name}.weight"), get(f"{name}.bias")

        def linear(*names: str, gelu: bool = False) -> _Linear:
            weight = torch.cat([get(f"{name}.weight") for name in names])
            return _Linear(weight, torch.cat([get(f"{name}.bias") for name in names]), gelu)

        self.dtype, self.device = dtype, device
        self.heads, self.epsilon = config["num_attention_heads"], config["layer_norm_eps"]
        self.width, self.positions = config["hidden_size"], config["max_position_embeddings"]
        self.tokens = get("embeddings.word_embeddings.weight")
        self.places = (
            get("embeddings.position_embeddings.weight")
            + get("embeddings.token_type_embeddings.weight")[0]
        )
        self.norm = norm("embeddings.LayerNorm")
        self.layers = []
        for i in range(config["num_hidden_layers"]):
            at = f"encoder.layer.{i}"
            parts = (
                linear(*(f"{at}.attention.self.{part}" for part in ("query", "key", "value"))),
                linear(f"{at}.attention.output.dense"),
                norm(f"{at}.attention.output.LayerNorm"),
                linear(f"{at}.intermediate.dense", gelu=True),
                linear(f"{at}.output.dense"),
                norm(f"{at}.output.LayerNorm"),
            )
            self.layers.append(parts)

    @property
    def operations_per_token(self) -> float:
        """Floating-point operations of the products with weights per token; attention's own are
        left out (2 % of them at 12 tokens).
        """
        parts = (part for layer in self.layers for part in layer)
        return 2.0 * sum(part.weight.numel() for part in parts if isinstance(part, _Linear))

    def _norm(self, x_TD: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.layer_norm(x_TD, (self.width,), *norm, self.epsilon)

    def _attention(self, qkv_TE: torch.Tensor, groups: list[tuple[int, int, int]]) -> torch.Tensor:
        """Attention of each text over itself. ``groups``: (first token, texts, length of each)."""
        out_TD = torch.empty(len(qkv_TE), self.width, dtype=self.dtype, device=self.device)
        size = self.width // self.heads
        for start, count, length in groups:
            part = slice(start, start + count * length)
            heads_3BHLE = (
                qkv_TE[part].view(count, length, 3, self.heads, size).permute(2, 0, 3, 1, 4)
            )
            query, key, value = heads_3BHLE.reshape(3, count * self.heads, length, size)
            # softmax(q kᵀ / √E) v, its steps spelled out: on rows this short the softmax kernel
            # costs more than both products. The division by the sum waits until after the second
            # product.
            weights = torch.bmm(query, key.transpose(1, 2)).mul_(size**-0.5)
            weights.sub_(weights.amax(dim=-1, keepdim=True)).exp_()
            mixed = torch.bmm(weights, value).div_(weights.sum(dim=-1, keepdim=True))
            out_TD[part].view(count, length, self.heads, size).copy_(
                mixed.view(count, self.heads, length, size).transpose(1, 2)
            )
        return out_TD

    def _forward(
        self, ids_T: torch.Tensor, places_T: torch.Tensor, groups: list[tuple[int, int, int]]
    ) -> torch.Tensor:
        x_TD = self._norm(self.tokens[ids_T] + self.places[places_T], self.norm)
        for qkv, out, norm_1, up, down, norm_2 in self.layers:
            x_TD = self._norm(out(self._attention(qkv(x_TD), groups)).add_(x_TD), norm_1)
            x_TD = self._norm(down(up(x_TD)).add_(x_TD), norm_2)
        return x_TD

    def encode(
        self,
        ids_B: Sequence[Sequence[int]],
        progress: Callable[[int], None] | None = None,
        same_passes: bool = False,
    ) -> np.ndarray:
        """Unit vectors (B, D) float32 of token id sequences, each of at least one id; ``progress``
        is called with counts.
        """
        order = sorted(range(len(ids_B)), key=lambda i: len(ids_B[i]))
        lengths = [len(ids_B[i]) for i in order]
        on_cpu = self.device.type == "cpu"
        workers = min(torch.get_num_threads(), MAX_WORKERS) if on_cpu else 1
        limit = CPU_CHUNK if on_cpu else GPU_CHUNK
        if on_cpu and not same_passes:  # small calls: a share for each worker
            limit = max(4 * MIN_TOKENS, min(CPU_CHUNK, -(-sum(lengths) // workers)))
        # Longest texts first: what a worker takes last is then short, and they end together.
        chunks = [order[a:b] for a, b in reversed(split_chunks(lengths, limit))]
        batches = ([ids_B[i] for i in chunk] for chunk in chunks)
        run = _workers(workers).map if workers > 1 and (len(chunks) > 1 or same_passes) else map
        vectors_BD = np.empty((len(ids_B), self.width), dtype=np.float32)
        for chunk, vectors in zip(chunks, run(self._encode_chunk, batches), strict=True):
            vectors_BD[chunk] = vectors
            if progress is not None:
                progress(len(chunk))
        return vectors_BD

    @torch.inference_mode()
    def _encode_chunk(self, ids_B: Sequence[Sequence[int]]) -> np.ndarray:
        """Unit vectors (B, D) of texts sorted by length, in one pass."""
        lengths_B = np.array([len(ids) for ids in ids_B], dtype=np.int64)
        flat_T = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in ids_B])
        places_T = np.arange(len(flat_T)) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
        groups: list[tuple[int, int, int]] = []
        start = 0
        for length in lengths_B.tolist():
            if groups and groups[-1][2] == length:
                first, count, _ = groups[-1]
                groups[-1] = (first, count + 1, length)
            else:
                groups.append((start, 1, length))
            start += length
        real = list(groups)
        if (missing := MIN_TOKENS - len(flat_T)) > 0:
            flat_T, places_T = np.pad(flat_T, (0, missing)), np.pad(places_T, (0, missing))
            groups.append((start, missing, 1))
        ids_T, positions_T = (torch.from_numpy(x).to(self.device) for x in (flat_T, places_T))
        x_TD = self._forward(ids_T, positions_T, groups)
        pooled = [
            x_TD[at : at + n * size].view(n, size, -1).float().mean(dim=1) for at, n, size in real
        ]
        return F.normalize(torch.cat(pooled), dim=1).cpu().numpy()
