"""How well relevant items can be told from the rest of their candidate pools without the request.

A policy that learned nothing about requests can gain where relevant items look different from the
items they are compared with: where only sold articles have descriptions, say, any sentence in a
description's style gains. A small model (logistic regression) over features of items alone measures
that: the length of the text, which fields are filled, frequent words, and how often an item was
chosen in the training split.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.sparse import csr_array, hstack, vstack
from scipy.stats import rankdata

from ospo.data.item_places import FOLDS, Places

LIMIT = 0.70
"""AUC above which a warning is due."""
LEAST = 20
"""Shoppers (or queries) without which nothing is measured."""
_WORDS = 300
_WORD_TEXT = 1_000
"""Characters of a text that are searched for words."""
_CANDIDATES, _NAMED = 12, 3
_FIELDS = ("title", "brand", "colour", "category", "group", "description")
_POPULARITY = "how often it was chosen in training"


@dataclass(frozen=True)
class Telling:
    """A feature of items, and the AUC of what the model makes of it alone."""

    feature: str
    auc: float


@dataclass(frozen=True)
class ItemSide:
    """auc: mean over requests of the AUC of relevant items against the rest of the pool, out of
    fold; .5 is chance. error: its standard error, groups being independent. requests: how many were
    scored. telling: the three most telling features, the most telling first.
    """

    auc: float
    error: float
    requests: int
    telling: tuple[Telling, ...]

    @property
    def suspicious(self) -> bool:
        """Whether a policy could gain noticeably from the items alone."""
        return self.auc > LIMIT


def item_side(catalogue: pl.DataFrame, places: Places) -> ItemSide | None:
    """The measure above; None where fewer than 20 groups (shoppers, or queries) have a request
    whose pool holds relevant and other items.

    Deterministic. A request is scored by a model that saw no request of its group, and an item's
    popularity counts the choices of other folds' groups alone, in fitting as in scoring. More
    popular can only mean more relevant: in a sparse sample what was chosen for one request is
    hardly ever chosen for another, and that is no property of the item.
    """
    held_RP = places.pools_RP >= 0
    mixed = places.relevant_RP.any(axis=1) & (held_RP & ~places.relevant_RP).any(axis=1)
    _, group_R = np.unique(places.group_R[mixed], return_inverse=True)
    if group_R.max(initial=-1) + 1 < LEAST:
        return None
    held_RP, pools_RP = held_RP[mixed], places.pools_RP[mixed]
    rows, inverse = np.unique(pools_RP[held_RP], return_inverse=True)
    index_RP = np.zeros(pools_RP.shape, dtype=np.int64)
    index_RP[held_RP] = inverse
    pools = _Pools(index_RP, held_RP, places.relevant_RP[mixed], places.fold_R[mixed])
    fixed_IF, names = _features(catalogue[rows.tolist()])
    models = _fit(fixed_IF, places.counts_KI[:, rows], pools)
    auc_R = pools.auc(models.scores(slice(None)))
    return ItemSide(
        float(auc_R.mean()),
        _clustered_error(auc_R, group_R),
        len(auc_R),
        _most_telling(models, names, pools),
    )


@dataclass(frozen=True)
class _Pools:
    """index_RP: (R, P) rows of the features, 0 in padding; held_RP, relevant_RP: (R, P) bool."""

    index_RP: np.ndarray
    held_RP: np.ndarray
    relevant_RP: np.ndarray
    fold_R: np.ndarray

    def auc(self, score_KI: np.ndarray) -> np.ndarray:
        """(R,) AUC of each pool under its own fold's scores."""
        return auc_by_pool(
            score_KI[self.fold_R[:, None], self.index_RP], self.relevant_RP, self.held_RP
        )

    def weights(self, fold: int, items: int) -> tuple[np.ndarray, np.ndarray]:
        """(I,) weights of relevant and of other items in a fold: each side of a pool weighs 1."""
        mine = self.fold_R == fold
        index, sides = self.index_RP[mine], []
        for side in (self.relevant_RP[mine], self.held_RP[mine] & ~self.relevant_RP[mine]):
            weight = side / side.sum(axis=1, keepdims=True)
            sides.append(np.bincount(index[side], weight[side], minlength=items))
        return sides[0], sides[1]


def auc_by_pool(score_RP: np.ndarray, relevant_RP: np.ndarray, held_RP: np.ndarray) -> np.ndarray:
    """(R,) probability that a relevant item of a pool scores above another one of it, ties
    counting half: the Mann-Whitney statistic over its two sample sizes.

    held_RP: (R, P) false in padding. NaN where a pool has no relevant item or no other.
    """
    rank_RP = rankdata(np.where(held_RP, score_RP, np.inf), axis=1)
    relevant_RP = relevant_RP & held_RP
    ones, others = relevant_RP.sum(axis=1), (held_RP & ~relevant_RP).sum(axis=1)
    above = np.where(relevant_RP, rank_RP, 0.0).sum(axis=1) - ones * (ones + 1) / 2
    pairs = (ones * others).astype(np.float64)
    return np.divide(above, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _features(items: pl.DataFrame) -> tuple[csr_array, list[str]]:
    """(I, F) features of items that depend on the item alone, and their names; a name may stand
    for several columns.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    length = np.log1p(items["text"].str.len_chars().to_numpy().astype(np.float64))
    length = (length - length.mean()) / max(length.std(), 1e-9)
    dense = [length, length**2 - 1, *((items[field] != "").to_numpy() for field in _FIELDS)]
    names = ["length of text"] * 2 + [f"{field} filled in" for field in _FIELDS]
    counter = CountVectorizer(binary=True, max_features=_WORDS, token_pattern=r"(?u)\b\w\w+\b")
    try:
        words_IW = counter.fit_transform(items["text"].str.slice(0, _WORD_TEXT).to_list())
    except ValueError:  # no text holds a word
        return csr_array(np.stack(dense, axis=1).astype(np.float64)), names
    found = [f"the word '{word[:30]}'" for word in counter.get_feature_names_out()]
    return hstack([csr_array(np.stack(dense, axis=1)), words_IW], "csr", np.float64), names + found


@dataclass(frozen=True)
class _Models:
    """One model per fold, fitted without it. features_KIF: K sparse (I, F + 1) matrices, popularity
    last; weight_KF: (K, F + 1).
    """

    features_KIF: list[csr_array]
    weight_KF: np.ndarray

    def scores(self, columns: slice | np.ndarray) -> np.ndarray:
        """(K, I) what each fold's model makes of these columns alone, for every item."""
        return np.stack(
            [
                features[:, columns] @ weights[columns]
                for features, weights in zip(self.features_KIF, self.weight_KF, strict=True)
            ]
        )


def _popularity(chosen_I: np.ndarray, folds: int) -> csr_array:
    """(I, 1) log of the times that an item was chosen, counts of ``folds`` folds brought to 5."""
    return csr_array(np.log1p(chosen_I * FOLDS / folds)[:, None])


def _fit(fixed_IF: csr_array, counts_KI: np.ndarray, pools: _Pools) -> _Models:
    items, total_I = fixed_IF.shape[0], counts_KI.sum(axis=0)
    weights = [pools.weights(fold, items) for fold in range(FOLDS)]
    features, learned = [], []
    for fold in range(FOLDS):
        rows, labels, importance = [], [], []
        for other in set(range(FOLDS)) - {fold}:
            chosen_I = total_I - counts_KI[fold] - counts_KI[other]
            seen = hstack([fixed_IF, _popularity(chosen_I, FOLDS - 2)], "csr")
            for label, weight_I in zip((1, 0), weights[other], strict=True):
                used = np.flatnonzero(weight_I)
                rows.append(seen[used])
                labels.append(np.full(len(used), label))
                importance.append(weight_I[used])
        learned.append(_weights(vstack(rows, "csr"), *map(np.concatenate, (labels, importance))))
        unseen = _popularity(total_I - counts_KI[fold], FOLDS - 1)
        features.append(hstack([fixed_IF, unseen], "csr"))
    return _Models(features, np.stack(learned))


def _weights(features_NF: csr_array, label_N: np.ndarray, importance_N: np.ndarray) -> np.ndarray:
    """(F,) weights of a logistic regression; that of the last column, popularity, is never
    negative.
    """
    from sklearn.linear_model import LogisticRegression

    def fitted(part: csr_array) -> np.ndarray:
        model = LogisticRegression(C=1.0, max_iter=300, tol=1e-3)
        return model.fit(part, label_N, sample_weight=importance_N).coef_[0]

    weights = fitted(features_NF)
    return weights if weights[-1] >= 0 else np.append(fitted(features_NF[:, :-1]), 0.0)


def _most_telling(models: _Models, names: list[str], pools: _Pools) -> tuple[Telling, ...]:
    """The features whose part of the score, on its own, ranks relevant items best, out of fold."""
    names = [*names, _POPULARITY]
    spread_F = np.abs(models.weight_KF).mean(axis=0) * _deviation(models.features_KIF[0])
    first: dict[str, None] = {}
    for column in np.argsort(-spread_F, kind="stable"):
        if spread_F[column] > 0 and len(first) < _CANDIDATES:
            first[names[column]] = None
    found = []
    for name in first:
        columns = np.flatnonzero([other == name for other in names])
        found.append(Telling(name, float(pools.auc(models.scores(columns)).mean())))
    return tuple(sorted(found, key=lambda telling: -telling.auc)[:_NAMED])


def _deviation(features_IF: csr_array) -> np.ndarray:
    """(F,) standard deviation of each column over items."""
    mean = np.asarray(features_IF.mean(axis=0)).ravel()
    square = np.asarray(features_IF.multiply(features_IF).mean(axis=0)).ravel()
    return np.sqrt(np.maximum(square - mean**2, 0))


def _clustered_error(values_R: np.ndarray, group_R: np.ndarray) -> float:
    """Standard error of the mean of (R,) values, groups being independent of each other."""
    sums = np.bincount(group_R, values_R - values_R.mean())
    groups = len(sums)
    return float(np.sqrt((sums**2).sum() * groups / (groups - 1)) / len(values_R))
