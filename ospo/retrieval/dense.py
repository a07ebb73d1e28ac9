"""Dense retrievers: a text is a vector, an item's score the cosine of the two."""

import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ospo.errors import InputError
from ospo.files import sha256_file, sha256_json
from ospo.paths import INDEX_CACHE
from ospo.retrieval import vectors as stored
from ospo.retrieval.base import RetrieverError, check_rows, one_blas_thread, pool_runs
from ospo.retrieval.index import HnswIndex, flat_search
from ospo.retrieval.linear import on_grid
from ospo.retrieval.vectors import load_vectors, stored_ids, texts_digest

# Vector entries are multiples of 2**-20: products of two are multiples of 2**-40 and their sums
# exact in float64, so that a score does not depend on the order in which a matrix product adds
# (which changes with its shape).
GRID_BITS = 20
Progress = Callable[[int, int], None]  # texts done, texts in all
_MODEL = "check the model's files, or name another one in params.yaml's retrievers"


def _report(progress: Progress, begin: int, total: int, done: int, _: int) -> None:
    progress(begin + done, total)


class EmbeddingRetriever:
    """Base of retrievers by cosine: sub-classes give ``encode`` and ``fingerprint``.

    Vectors of texts are kept in a bounded least-recently-used memo of ``memo_texts``: a text that
    occurs under two requests, or again in a later training step, is encoded once. Stored vectors
    are mapped from their file, which may hold those of pool items only: others are encoded when
    they are needed. ``search`` is exact in catalogues of up to ``flat_up_to`` items, and uses an
    HNSW graph beyond.
    """

    linear = False
    flat_up_to = 500_000

    def __init__(self, name: str, memo_texts: int = 50_000) -> None:
        self.name = name
        self.items = 0
        self.encoded = 0
        self._memo_texts = memo_texts
        self._memo: OrderedDict[str, np.ndarray] = OrderedDict()
        self._vectors_ID = np.zeros((0, 0), dtype=np.float32)
        self._place_I: np.ndarray | None = (
            None  # row of each item in _vectors_ID, -1: not stored; None: the same row
        )
        self._item_texts: Sequence[str] = []
        self._graph: HnswIndex | None = None
        self._graph_file = Path()

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Unit vectors (B, D) of search texts."""
        raise NotImplementedError

    def encode_items(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Unit vectors (B, D) of item texts; as ``encode``, for models that treat both alike."""
        return self.encode(texts, progress)

    def fingerprint(self) -> str:
        """What the vectors depend on besides the texts: weights, precision, pooling."""
        raise NotImplementedError

    def catalogue_fingerprint(self, item_ids: Sequence[str], item_texts: Sequence[str]) -> str:
        """What identifies the vectors of a catalogue."""
        return sha256_json(
            {"encoder": self.fingerprint(), "texts": texts_digest(item_ids, item_texts)}
        )

    def item_vectors(
        self, item_texts: Sequence[str], progress: Progress | None = None
    ) -> np.ndarray:
        """Vectors (I, D) float32 on the 2**-20 grid.

        Encoded ``vectors.CHUNK`` at a time, counted from the first: on processors where a vector
        depends on its batch (bfloat16 with AMX), the same items in the same order still give the
        same bits, in memory as in a file, written in one piece or resumed.
        """
        total, parts = len(item_texts), [np.zeros((0, self._vectors_ID.shape[1]), np.float32)]
        for begin in range(0, total, stored.CHUNK):
            part = item_texts[begin : begin + stored.CHUNK]
            report = None
            if progress is not None:
                report = partial(_report, progress, begin, total)
            parts.append(self._checked(self.encode_items(part, report), len(part)))
        return np.concatenate(parts[1:] or parts)

    def _checked(self, vectors: np.ndarray, count: int) -> np.ndarray:
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or len(vectors) != count:
            raise RetrieverError(
                self.name, f"{count} texts gave vectors of shape {vectors.shape}", _MODEL
            )
        if not (finite_B := np.isfinite(vectors).all(axis=1)).all():
            problem = f"the vector of text {int(finite_B.argmin())} holds NaN or infinity"
            raise RetrieverError(self.name, problem, _MODEL)
        return on_grid(vectors, GRID_BITS).astype(np.float32)

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Encode the catalogue, or map the vectors in ``cache`` where the fingerprint is
        the same.
        """
        self.items, self._item_texts, self._graph, self._place_I = (
            len(item_ids),
            item_texts,
            None,
            None,
        )
        if cache is None or not cache.exists() or not self._map(item_ids, item_texts, cache):
            self._vectors_ID = self.item_vectors(item_texts)
        if self.items > self.flat_up_to:
            mark = self.catalogue_fingerprint(item_ids, item_texts)[:16]
            self._graph_file = (
                INDEX_CACHE / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', self.name)}-{mark}.hnsw"
            )

    def _map(self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path) -> bool:
        """Take the vectors of a file, of all items or of some; False where others were stored, or
        by another model.
        """
        ids = stored_ids(cache)
        texts, place_I = item_texts, None
        if ids != list(item_ids):
            rows = {item_id: row for row, item_id in enumerate(item_ids)}
            if not all(item_id in rows for item_id in ids):
                return False
            texts = [item_texts[rows[item_id]] for item_id in ids]
            place_I = np.full(len(item_ids), -1, dtype=np.int64)
            place_I[[rows[item_id] for item_id in ids]] = np.arange(len(ids))
        vectors = load_vectors(cache, self.catalogue_fingerprint(ids, texts), len(ids))
        if vectors is None:
            return False
        self._vectors_ID, self._place_I = vectors, place_I
        return True

    def _add(self, rows: np.ndarray, progress: Progress | None = None) -> None:
        """Encode the items of ``rows`` (distinct), whose vectors are not stored; ``_place_I`` is
        not None.
        """
        vectors = self.item_vectors([self._item_texts[row] for row in rows], progress)
        assert self._place_I is not None
        self._place_I[rows] = len(self._vectors_ID) + np.arange(len(rows))
        self._vectors_ID = np.concatenate([self._vectors_ID, vectors])

    def _vectors_of(self, rows_P: np.ndarray) -> np.ndarray:
        """Vectors (P, D) of items."""
        if self._place_I is None:
            return self._vectors_ID[rows_P]
        if len(missing := np.unique(rows_P[self._place_I[rows_P] < 0])):
            self._add(missing)
        return self._vectors_ID[self._place_I[rows_P]]

    def catalogue_vectors(self) -> np.ndarray:
        """The indexed items' vectors (I, D) float32; those that are not stored are encoded now,
        with progress.
        """
        if self._place_I is not None:
            from tqdm import tqdm

            missing = np.flatnonzero(self._place_I < 0)
            with tqdm(
                total=len(missing), desc=f"vectors {self.name}", unit="item", file=sys.stderr
            ) as bar:
                self._add(missing, lambda done, _: bar.update(done - bar.n))
            self._vectors_ID, self._place_I = self._vectors_ID[self._place_I], None
        return self._vectors_ID

    def build_graph(self) -> HnswIndex | None:
        """The HNSW graph of a catalogue beyond ``flat_up_to`` items, built once and kept below
        ``.cache/index``.
        """
        if self.items <= self.flat_up_to:
            return None
        vectors_ID = self.catalogue_vectors()
        if self._graph is None and self._graph_file.is_file():
            self._graph = HnswIndex.load(self._graph_file, vectors_ID)
        if self._graph is None:
            from tqdm import tqdm

            with tqdm(
                total=self.items, desc=f"index {self.name}", unit="item", file=sys.stderr
            ) as bar:
                self._graph = HnswIndex(vectors_ID, progress=lambda done: bar.update(done - bar.n))
            self._graph.save(self._graph_file)
        return self._graph

    def forget(self) -> None:
        """Empty the memo of search texts' vectors."""
        self._memo.clear()

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (B, D) float32 of search texts, memoised; blank texts have the zero vector."""
        memo = self._memo
        distinct = dict.fromkeys(texts)
        new = [text for text in distinct if text not in memo]
        encoded = [text for text in new if text.strip()]
        if encoded:
            self.encoded += len(encoded)
            memo.update(
                zip(encoded, self._checked(self.encode(encoded), len(encoded)), strict=True)
            )
        blank = np.zeros(self._vectors_ID.shape[1], dtype=np.float32)
        out = np.stack([memo.get(text, blank) for text in texts]) if len(texts) else blank[None][:0]
        for text in distinct:
            if text in memo:
                memo.move_to_end(text)
        while len(memo) > self._memo_texts:
            memo.popitem(last=False)
        return out

    def score(self, texts: Sequence[str], rows_BP: np.ndarray) -> np.ndarray:
        """Cosines (B, P) float32; see ``Retriever``."""
        rows_BP = check_rows(self.name, texts, rows_BP, self.items)
        vectors_BD = self.vectors(texts).astype(np.float64)
        scores_BP = np.empty(rows_BP.shape, dtype=np.float32)
        with one_blas_thread():
            for start, stop in pool_runs(rows_BP):
                pool_PD = self._vectors_of(np.maximum(rows_BP[start], 0)).astype(np.float64)
                scores_BP[start:stop] = vectors_BD[start:stop] @ pool_PD.T
        scores_BP[rows_BP < 0] = -np.inf
        return scores_BP

    def search(self, texts: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Best rows (B, K) and cosines (B, K) of the whole catalogue; see ``Retriever``.

        Exact, and the cosines those of ``score``. Beyond ``flat_up_to`` items neighbours come from
        an HNSW graph, which misses some (docs/experiments.md has the recall); blank texts, whose
        vector is zero, are ranked by row there too.
        """
        if not self.items:
            raise ValueError(f"retriever {self.name}: search before index")
        texts_BD = self.vectors(texts)
        graph = self.build_graph()
        if graph is None:
            return flat_search(self.catalogue_vectors(), texts_BD, top_k)
        rows_BK, scores_BK = graph.search(texts_BD, top_k)
        short_B = (rows_BK < 0).any(axis=1) | ~texts_BD.any(axis=1)
        if short_B.any():
            rows_BK[short_B], scores_BK[short_B] = flat_search(
                self.catalogue_vectors(), texts_BD[short_B], top_k
            )
        return rows_BK, scores_BK


def choose_dtype(setting: str) -> tuple[Any, Any]:
    """``retrievers.dtype`` as (torch dtype, device): auto takes bfloat16 where the hardware
    multiplies in it.

    That is on a GPU, and on processors with AVX512-BF16, AMX or ARM's BF16 (three to four times
    float32's speed there); elsewhere bfloat16 is emulated and slower than float32.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if setting != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting], device
    able = torch.cpu.get_capabilities()
    fast = device.type == "cuda" or any(
        able.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16")
    )
    return (torch.bfloat16 if fast else torch.float32), device


class MiniLMRetriever(EmbeddingRetriever):
    """all-MiniLM-L6-v2 (or another BERT with mean pooling in ``directory``), run packed.

    Texts are cut at 256 tokens, as the model's own configuration says.
    """

    max_tokens = 256

    def __init__(
        self, name: str, directory: Path, dtype: str = "auto", memo_texts: int = 50_000
    ) -> None:
        super().__init__(name, memo_texts)
        from tokenizers import Tokenizer

        from ospo.retrieval.packed import PackedBert

        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            if not (directory / file).is_file():
                raise InputError(
                    directory / file,
                    "",
                    f"retriever {name}: file not found",
                    "name a model's folder",
                )
        self._directory = directory
        self._dtype, self._device = choose_dtype(dtype)
        self._model = PackedBert(directory, self._dtype, self._device)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)

    @property
    def operations_per_token(self) -> float:
        """Floating-point operations of the encoder's products with weights per token."""
        return self._model.operations_per_token

    @property
    def dtype(self) -> str:
        """The precision in use: ``float32`` or ``bfloat16``."""
        return str(self._dtype).removeprefix("torch.")

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the two special ones included."""
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def fingerprint(self) -> str:
        """Weights, tokenizer, precision and length limit."""
        files = [
            sha256_file(self._directory / file) for file in ("model.safetensors", "tokenizer.json")
        ]
        return sha256_json(
            {"files": files, "dtype": str(self._dtype), "tokens": self.max_tokens, "code": 1}
        )

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Unit vectors (B, D) float32."""
        return self._encode(texts, progress)

    def encode_items(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Unit vectors (B, D) float32, in passes that do not depend on the number of threads."""
        return self._encode(texts, progress, same_passes=True)

    def _encode(
        self, texts: Sequence[str], progress: Progress | None, same_passes: bool = False
    ) -> np.ndarray:
        ids_B = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, len(ids_B))

        return self._model.encode(ids_B, tell, same_passes)
