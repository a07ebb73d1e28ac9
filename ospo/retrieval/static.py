"""Static word embeddings of wordllama (MIT): 256 dimensions taken from a language model's input
embeddings.

Weights and tokenizer are read straight from the package: its own loader asks the network for files
that the package holds.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ospo.errors import InputError
from ospo.retrieval.linear import on_grid
from ospo.retrieval.words import WORD_BITS, WordVectorRetriever

_FIX = "pip install wordllama==0.4.0.post1"


class StaticRetriever(WordVectorRetriever):
    """A word's vector is the sum of its tokens' vectors; nothing is learnt from the catalogue."""

    dimensions = 256

    def __init__(self, name: str = "static", language: str = "en") -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        super().__init__(name, language)
        spec = find_spec("wordllama")
        if spec is None or not spec.submodule_search_locations:
            raise InputError("wordllama", "", f"retriever {name}: package not found", _FIX)
        directory = Path(spec.submodule_search_locations[0])
        weights = directory / "weights" / "l2_supercat_256.safetensors"
        tokenizer = directory / "tokenizers" / "l2_supercat_tokenizer_config.json"
        for file in (weights, tokenizer):
            if not file.is_file():
                raise InputError(file, "", f"retriever {name}: file not found", _FIX)
        self._embedding = on_grid(load_file(weights)["embedding.weight"], WORD_BITS)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def word_vectors(self, words: Sequence[str]) -> np.ndarray:
        """See ``WordVectorRetriever``. Each word is read alone: no token of this tokenizer crosses
        white space.
        """
        ids = [
            encoding.ids
            for encoding in self._tokenizer.encode_batch(list(words), add_special_tokens=False)
        ]
        starts = np.cumsum([0, *(len(word) for word in ids[:-1])])
        return np.add.reduceat(self._embedding[np.concatenate(ids)], starts, axis=0)
