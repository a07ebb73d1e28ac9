"""Static word embeddings: a text is the sum of its words' vectors, no context, no order.

The vectors are wordllama's (MIT; 256 dimensions taken from a language model's input embeddings), read straight from
its package: its own loader asks the network for files that the package already holds.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ospo.errors import InputError
from ospo.retrieval.linear import LinearRetriever, on_grid

WORD = re.compile(r"[^\W_]+")
# Words on a 2**-12 grid and items on a 2**-20 grid: products are multiples of 2**-32, and their sums exact in float64.
WORD_BITS, ITEM_BITS = 12, 20
MEMO_WORDS = 50_000
CHUNK = 4096


class StaticRetriever(LinearRetriever):
    """Sum of a text's distinct word vectors · unit item vector: ranks as their cosine does.

    Texts are lower-cased; a word is a run of letters and digits. Scores are not divided by the text's length, which
    is the same for all items, so that they stay sums over words.
    """

    def __init__(self, name: str = "static", directory: Path | None = None) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self.name = name
        if directory is None:
            spec = find_spec("wordllama")
            if spec is None or not spec.submodule_search_locations:
                raise InputError("wordllama", "", "package not found", "pip install wordllama==0.4.0.post1")
            directory = Path(spec.submodule_search_locations[0])
        weights = directory / "weights" / "l2_supercat_256.safetensors"
        tokenizer = directory / "tokenizers" / "l2_supercat_tokenizer_config.json"
        for file in (weights, tokenizer):
            if not file.is_file():
                raise InputError(file, "", "file not found", "pip install wordllama==0.4.0.post1")
        self._embedding = on_grid(load_file(weights)["embedding.weight"].astype(np.float32), WORD_BITS)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._forget()

    def _forget(self) -> None:
        self._words: dict[str, int] = {}
        self._vectors = np.zeros((1024, self._embedding.shape[1]))

    def terms(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text's words in a vocabulary that grows; see ``LinearRetriever``."""
        if len(self._words) > MEMO_WORDS:
            self._forget()
        words_B = [WORD.findall(text.lower()) for text in texts]
        new = list(dict.fromkeys(word for words in words_B for word in words if word not in self._words))
        if new:
            first = len(self._words)
            needed = first + len(new)
            if needed > len(self._vectors):
                self._vectors = np.concatenate([self._vectors, np.zeros((needed, self._vectors.shape[1]))])
            encoded = self._tokenizer.encode_batch(new, add_special_tokens=False)
            lengths = [len(e.ids) for e in encoded]
            tokens = self._embedding[np.concatenate([np.asarray(e.ids, dtype=np.int64) for e in encoded])]
            starts = np.cumsum([0, *lengths[:-1]])
            self._vectors[first:needed] = np.add.reduceat(tokens, starts, axis=0)
            self._words.update(zip(new, range(first, needed), strict=True))
        return [np.array([self._words[word] for word in words], dtype=np.int64) for words in words_B]

    def index(self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None) -> None:
        """Take in the catalogue; see ``Retriever``."""
        vectors = np.zeros((len(item_texts), self._embedding.shape[1]), dtype=np.float32)
        for start in range(0, len(item_texts), CHUNK):
            for row, terms in enumerate(self.terms(item_texts[start : start + CHUNK]), start):
                total = self._vectors[terms].sum(axis=0)
                norm = np.sqrt(total @ total)
                vectors[row] = on_grid(total / norm, ITEM_BITS) if norm else 0.0
        self._item_vectors = vectors
        self.items = len(item_ids)

    def term_scores(self, terms_V: np.ndarray, rows_P: np.ndarray | None) -> np.ndarray:
        """Scores (V, P) float64; see ``LinearRetriever``."""
        items = self._item_vectors if rows_P is None else self._item_vectors[np.maximum(rows_P, 0)]
        return self._vectors[terms_V] @ items.T.astype(np.float64)
