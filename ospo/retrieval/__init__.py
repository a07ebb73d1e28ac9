"""Retrievers by name: ``load_retriever`` makes one, ``build_retriever`` indexes a catalogue
with it.
"""

from ospo.retrieval.base import Retriever, RetrieverError
from ospo.retrieval.build import (
    NAMES,
    build_retriever,
    families,
    load_retriever,
    parts,
    vectors_file,
    write_vectors,
)

__all__ = [
    "NAMES",
    "Retriever",
    "RetrieverError",
    "build_retriever",
    "families",
    "load_retriever",
    "parts",
    "vectors_file",
    "write_vectors",
]
