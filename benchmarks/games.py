"""Games with known values: search texts of real phrases, scored by MiniLM nDCG@10 over a pool of
100, all coalitions.

A text mixes phrases of one product's title and description with phrases of others, as a policy's
guesses do; the product, and in half of the games a few of its neighbours, is what the pool's nDCG
looks for.
"""

import html
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from ospo.config import load_config
from ospo.credit import Segmentation, coalition_text, segment_many
from ospo.credit.estimators import all_masks
from ospo.data.catalogue import generate_sample
from ospo.policy.text import search_text
from ospo.retrieval import load_retriever
from ospo.retrieval.dense import EmbeddingRetriever
from ospo.reward.ndcg import ndcg

POOL, K = 100, 10


@dataclass(frozen=True)
class Game:
    """All 2**n coalitions of a text: rewards (2**n,), pool scores (2**n, P) and the pool's gains
    (P,).
    """

    text: str
    n: int
    unions: tuple[tuple[int, ...], ...]
    values: np.ndarray
    scores: np.ndarray
    gains: np.ndarray

    def measure(self, scores: np.ndarray) -> np.ndarray:
        """nDCG@10 (M,) of pool scores (M, P)."""
        return ndcg(scores.astype(np.float32), np.broadcast_to(self.gains, scores.shape), K)


def _clean(text: str | None) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.unescape(text or ""))).strip()


def _products(dataset: str, folder: Path, items: int) -> tuple[list[str], list[str]]:
    """Titles and descriptions of the first ``items`` products of raw files in the official
    format.
    """
    if dataset == "esci":
        table = pl.read_parquet(folder / "shopping_queries_dataset_products.parquet", glob=False)
        table = table.filter(pl.col("product_locale") == "us").sort("product_id").head(items)
        titles, more = table["product_title"], table["product_bullet_point"]
    else:
        table = (
            pl.read_csv(folder / "articles.csv", infer_schema=False, glob=False)
            .sort("article_id")
            .head(items)
        )
        columns = (
            "colour_group_name",
            "prod_name",
            "product_type_name",
            "graphical_appearance_name",
        )
        titles = table.select(
            pl.concat_str([pl.col(c).fill_null("") for c in columns], separator=" ")
        )[columns[0]]
        more = table["detail_desc"]
    return [_clean(t) for t in titles], [_clean(t)[:300] for t in more]


def raw_folders() -> tuple[dict[str, Path], str, tempfile.TemporaryDirectory | None]:
    """The real samples where they are at hand (OSPO_SHARED, ../shared), else the built-in shops.

    Returns the folders, what they are, and a temporary folder to keep alive.
    """
    root = Path(__file__).resolve().parent.parent
    shared = Path(os.environ.get("OSPO_SHARED", root.parent / "shared")) / "data"
    if shared.is_dir():
        return {name: shared / name for name in ("esci", "hm")}, "real samples", None
    keep = tempfile.TemporaryDirectory()
    config = load_config(root / "params.yaml")
    folders = {name: Path(keep.name) / name for name in ("esci", "hm")}
    for name, folder in folders.items():
        generate_sample(name, folder, config.sample, config.seed)
    return folders, "built-in sample shops", keep


def make_games(counts: dict[int, int], seed: int, items: int = 800) -> tuple[list[Game], str]:
    """``counts[n]`` games of n segments for each dataset, and where their texts come from. Progress
    on stderr.
    """
    folders, source, keep = raw_folders()
    config = load_config(Path(__file__).resolve().parent.parent / "params.yaml")
    games = []
    for number, (dataset, folder) in enumerate(sorted(folders.items())):
        retriever = load_retriever("minilm", config)
        assert isinstance(retriever, EmbeddingRetriever)
        titles, more = _products(dataset, folder, items)
        texts = [f"{title}, {rest}"[:200] for title, rest in zip(titles, more, strict=True)]
        retriever.index([str(i) for i in range(len(texts))], texts)
        vectors = retriever.vectors(texts)
        rng = np.random.default_rng([seed, number])
        draw = partial(_draw, rng, titles, more, vectors)
        for n, count in counts.items():
            made = 0
            while made < count:
                game = _play(rng, retriever, *draw(n))
                # Texts that find nothing, whatever the coalition, teach nothing about estimators.
                if game is not None and np.ptp(game.values) > 0:
                    games.append(game)
                    made += 1
            print(f"games: {dataset}, {count} of {n} segments", file=sys.stderr, flush=True)
    if keep is not None:
        keep.cleanup()
    return games, source


def _phrases(titles: list[str], more: list[str], first: int, second: int) -> list[str]:
    found = [
        u.strip(" ,;.") for seg in segment_many([titles[first], more[second]]) for u in seg.units
    ]
    return [phrase for phrase in dict.fromkeys(found) if len(phrase) > 2]


def _draw(rng, titles, more, vectors, n):
    """Pool rows (100,), gains (100,), and the phrases of a text, None where the products have too
    few.
    """
    target = int(rng.integers(len(titles)))
    near = np.argsort(-(vectors @ vectors[target]), kind="stable")
    near = near[near != target]
    pool = np.concatenate([[target], near[:50], rng.choice(near[50:], POOL - 51, replace=False)])
    gains = np.zeros(POOL, dtype=np.float32)
    gains[0] = 1
    if rng.random() < 0.5:
        others = rng.choice(np.arange(1, 16), int(rng.integers(2, 6)), replace=False)
        gains[others] = rng.choice([1, 1, 0.1], len(others))
    order = rng.permutation(POOL)
    own = _phrases(titles, more, target, target)
    foreign = _phrases(titles, more, int(rng.choice(near[:200])), int(rng.choice(near)))
    foreign = [phrase for phrase in foreign if phrase not in own]
    count = round(n * rng.uniform(0.3, 0.9))
    if len(own) < count or len(foreign) < n - count:
        return pool[order], gains[order], None
    chosen = [
        *rng.choice(own, count, replace=False),
        *rng.choice(foreign, n - count, replace=False),
    ]
    return pool[order], gains[order], [str(chosen[i]) for i in rng.permutation(n)]


def _play(rng, retriever, pool, gains, phrases) -> Game | None:
    if phrases is None:
        return None
    n = len(phrases)
    separator = ", " if rng.random() < 0.5 else " "
    text = separator.join(phrases)
    ends = np.cumsum([len(p) + len(separator) for p in phrases])
    ends[-1] = len(text)
    seg = Segmentation(text, tuple(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)))
    cuts = [
        0,
        *sorted(
            rng.choice(
                np.arange(1, n), int(rng.integers(1, max(2, n // 2))), replace=False
            ).tolist()
        ),
        n,
    ]
    unions = tuple(tuple(range(a, b)) for a, b in pairwise(cuts))
    texts = [search_text(coalition_text(seg, mask)) for mask in all_masks(n)]
    scores = retriever.score(texts, np.tile(pool, (len(texts), 1)))
    values = ndcg(scores, np.tile(gains, (len(texts), 1)), K)
    values[0] = 0.0  # ∅
    return Game(text, n, unions, values, scores, gains)
