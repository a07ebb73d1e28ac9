"""What is there to gain by adding names of earlier purchases, and can anything learn which name?

    python -m benchmarks.additions --dataset NAME [--raw DIR] [--set KEY=VALUE]     # minutes

For every request that follows an earlier purchase of the requested type: nDCG@10 within its pool of
the raw query and of each candidate addition (the latest such name, an earlier one, the latest two,
the latest four, the latest with its colour), under the training retriever and the unseen ones. The
oracle takes each request's best candidate. The choosers are regressors that were told every
candidate's gain over the rule ``history`` on all training requests, which no policy that learns
from samples ever is, and choose on requests that they have not seen: what they do not find, a
policy trained on these requests can hardly find. With ``--raw``, the folder of H&M's files, the
choosers also know how many days ago the shopper bought the named article and anything at all, which
prepared histories do not hold, and the gain of the latest name is shown by these days. Differences
are paired by request; intervals draw shoppers.

Validation and test requests are shown apart. The last line of stdout is one JSON object.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import finish, machine, progress, start

CANDIDATES = ("raw", "latest", "second", "third", "two", "four", "colour")
CHUNK = 512
DAYS = (7, 30, 60, 120, 240)
"""Upper ends of the classes of days since the latest name was bought; the last class has none."""


def additions(request: Any) -> dict[str, str]:
    """Candidate → what it adds; those that the request's purchases do not allow are left out."""
    from ospo.policy.prompts import asked_for, clean
    from ospo.policy.text import EXPAND

    names: dict[str, str] = {}
    for purchase in reversed(asked_for(request.query, request.history)):
        if name := EXPAND.added(request.query, clean(purchase.name)):
            names.setdefault(name, clean(purchase.colour))
    listed = list(names)
    found = {"raw": "", "latest": listed[0]}
    found |= dict(zip(("second", "third"), listed[1:3], strict=False))
    if len(listed) > 1:
        found["two"] = ", ".join(listed[:2])
    if len(listed) > 2:
        found["four"] = ", ".join(listed[:4])
    if names[listed[0]]:
        found["colour"] = f"{listed[0]}, {names[listed[0]]}"
    return found


def features(request: Any, candidate: str, seen: Counter[str]) -> list[float]:
    """What a chooser knows of a candidate: the candidate, how many purchases of the type there are,
    how often and how lately its name was bought, by this shopper and by all; never a judgement.
    """
    from ospo.policy.prompts import asked_for, clean

    own = asked_for(request.query, request.history)
    names = [clean(purchase.name) for purchase in reversed(own)]
    distinct = list(dict.fromkeys(names))
    place = {"raw": -1, "second": 1, "third": 2}.get(candidate, 0)
    name = distinct[place] if 0 <= place < len(distinct) else ""
    lately = [i for i, p in enumerate(reversed(request.history)) if p in own]
    colours = [purchase.colour for purchase in own]
    return [
        *(float(candidate == other) for other in CANDIDATES),
        len(own), len(distinct), len(request.history), lately[0], names.count(name),
        len(name.split()), seen[name], seen[distinct[0]], names.count(distinct[0]),
        len(request.query.split()), colours.count(colours[-1]) / len(colours),
    ]  # fmt: skip


def purchase_days(raw: Path) -> dict[tuple[str, str], int]:
    """(customer, article) → the day of the first purchase, from H&M's files."""
    from ospo.data.hm_files import read_articles, read_customers, read_purchases
    from ospo.data.schemas import HM_ARTICLES, HM_CUSTOMERS, HM_TRANSACTIONS
    from ospo.data.stats import Stats

    stats = Stats()
    articles = read_articles(raw / HM_ARTICLES, stats)
    customers = read_customers(raw / HM_CUSTOMERS, stats)
    bought = read_purchases(raw / HM_TRANSACTIONS, articles, customers, stats)
    who, what = customers[bought.customer].to_list(), articles["article_id"][bought.item].to_list()
    return dict(zip(zip(who, what, strict=True), bought.day.tolist(), strict=True))


def days_since(request: Any, candidate: str, days: dict[tuple[str, str], int]) -> list[float]:
    """Days from the purchase that a candidate names (its first name; the latest of the type where
    it names none) and from the shopper's latest purchase to the request.
    """
    from ospo.policy.prompts import asked_for, clean

    now = days[request.customer_id, request.target_id]
    own: dict[str, str] = {}
    for purchase in reversed(asked_for(request.query, request.history)):
        own.setdefault(clean(purchase.name), purchase.item_id)
    place = {"second": 1, "third": 2}.get(candidate, 0)
    named = days[request.customer_id, list(own.values())[place]]
    latest = max(days[request.customer_id, purchase.item_id] for purchase in request.history)
    return [float(now - named), float(now - latest)]


def choosers(seed: int) -> dict[str, Any]:
    """Name → regressor of a candidate's gain over the rule."""
    from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor

    return {
        "forest": RandomForestRegressor(300, min_samples_leaf=30, random_state=seed),
        "boosting": HistGradientBoostingRegressor(
            max_iter=60, learning_rate=0.05, min_samples_leaf=60, random_state=seed
        ),
    }


def figure(difference_R: np.ndarray, groups_R: np.ndarray, seed: int) -> dict[str, float]:
    """A mean difference over requests with its 95 % interval over shoppers."""
    from ospo.evaluation.statistics import bootstrap_means, percentile_interval

    mean = float(difference_R.mean())
    draws = bootstrap_means(difference_R[:, None], 4000, seed, groups_R)
    interval = percentile_interval(mean, draws[:, 0])
    return {"mean": mean, "low": interval.low, "high": interval.high}


class Table:
    """Every candidate of every request with grounds: who asked, what it adds, what it knows."""

    def __init__(self, data: Any, days: dict[tuple[str, str], int] | None = None) -> None:
        from ospo.policy.guard import grounds
        from ospo.policy.prompts import clean
        from ospo.policy.text import EXPAND

        seen: Counter[str] = Counter()
        for row in data.rows("train").tolist():
            seen.update(clean(purchase.name) for purchase in data.requests[row].history)
        self.rows: list[int] = []
        self.splits: list[str] = []
        self.candidates: list[str] = []
        self.texts: list[str] = []
        known, since = [], []
        for split in ("train", "validation", "test"):
            for row in data.rows(split).tolist():
                request = data.requests[row]
                if grounds(request) != "own":
                    continue
                for candidate, added in additions(request).items():
                    self.rows.append(row)
                    self.splits.append(split)
                    self.candidates.append(candidate)
                    self.texts.append(EXPAND.text(request.query, added))
                    known.append(features(request, candidate, seen))
                    since.append(days_since(request, candidate, days) if days else [])
        self.features = np.array(known, dtype=np.float64)
        self.since = np.array(since, dtype=np.float64)
        shoppers = [data.requests[row].customer_id or str(row) for row in self.rows]
        self.groups = np.unique(shoppers, return_inverse=True)[1]
        self.first = {row: i for i, row in reversed(list(enumerate(self.rows)))}

    def known(self) -> dict[str, np.ndarray]:
        """What choosers are told of each text, by the end of their name."""
        if not self.since.size:
            return {"": self.features}
        dated = np.column_stack([self.features, np.log1p(self.since)])
        return {"": self.features, " with days": dated}

    def values(self, reward: Any) -> np.ndarray:
        """nDCG@10 of every text."""
        parts = [
            np.asarray(reward(self.texts[i : i + CHUNK], self.rows[i : i + CHUNK]))
            for i in range(0, len(self.texts), CHUNK)
        ]
        return np.concatenate(parts)

    def per_request(self, split: str, values: np.ndarray) -> list[dict[str, float]]:
        """For each request of a split: candidate → value."""
        found: dict[int, dict[str, float]] = {}
        for row, of, candidate, value in zip(
            self.rows, self.splits, self.candidates, values.tolist(), strict=True
        ):
            if of == split:
                found.setdefault(row, {})[candidate] = value
        return list(found.values())

    def groups_of(self, split: str) -> np.ndarray:
        """The shopper of each request of a split, in the order of :meth:`per_request`."""
        rows = dict.fromkeys(r for r, s in zip(self.rows, self.splits, strict=True) if s == split)
        return np.array([self.groups[self.first[row]] for row in rows])


def measure(table: Table, values: np.ndarray, seed: int) -> dict[str, Any]:
    """The figures of one retriever, by split."""
    rule = {
        r: v for r, c, v in zip(table.rows, table.candidates, values, strict=True) if c == "latest"
    }
    gain = values - np.array([rule[row] for row in table.rows])
    train = np.array([split == "train" for split in table.splits])
    predicted = {}
    for told, features_T in table.known().items():
        for name, model in choosers(seed).items():
            model.fit(features_T[train], gain[train])
            predicted[name + told] = model.predict(features_T)
    found: dict[str, Any] = {}
    for split in ("validation", "test"):
        groups_R = table.groups_of(split)
        requests = table.per_request(split, values)
        raw_R = np.array([one["raw"] for one in requests])
        latest_R = np.array([one["latest"] for one in requests])
        part: dict[str, Any] = {"requests": len(requests), "raw": float(raw_R.mean())}
        part["over_raw"] = {
            name: figure(
                np.array([one.get(name, one["latest"]) for one in requests]) - raw_R, groups_R, seed
            )
            for name in CANDIDATES[1:]
        }
        best_R = np.array([max(one.values()) for one in requests])
        part["oracle_over_rule"] = float((best_R - latest_R).mean())
        part["over_rule"] = {}
        for name, scores in predicted.items():
            scored = table.per_request(split, scores)
            chosen_R = np.array(
                [one[max(s, key=s.__getitem__)] for one, s in zip(requests, scored, strict=True)]
            )
            part["over_rule"][name] = figure(chosen_R - latest_R, groups_R, seed)
        found[split] = part
    if table.since.size:
        for split in ("train", "validation", "test"):
            found.setdefault(split, {})["over_raw_by_days"] = by_days(table, values, split, seed)
    return found


def by_days(table: Table, values: np.ndarray, split: str, seed: int) -> dict[str, Any]:
    """Gain of the latest name over the raw query by the days since it was bought."""
    latest = [
        i
        for i, (candidate, of) in enumerate(zip(table.candidates, table.splits, strict=True))
        if candidate == "latest" and of == split
    ]
    raw = {r: v for r, c, v in zip(table.rows, table.candidates, values, strict=True) if c == "raw"}
    gain_R = values[latest] - np.array([raw[table.rows[i]] for i in latest])
    groups_R, class_R = table.groups[latest], np.searchsorted(DAYS, table.since[latest, 0])
    found = {}
    for number, name in enumerate([*(f"up to {end}" for end in DAYS), f"over {DAYS[-1]}"]):
        of_class = class_R == number
        if of_class.any():
            mean = figure(gain_R[of_class], groups_R[of_class], seed)
            found[name] = {"requests": int(of_class.sum()), **mean}
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--raw", type=Path, metavar="DIR", help="H&M's files, for days since")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    from ospo.config import load_config
    from ospo.data.dataset import load_prepared
    from ospo.paths import PREPARED
    from ospo.retrieval import build_retriever
    from ospo.reward.search import SearchReward

    config = load_config(overrides=given.set)
    data = load_prepared(PREPARED / given.dataset)
    table = Table(data, purchase_days(given.raw) if given.raw else None)
    progress(f"{len(table.texts):,} texts of {len(table.first):,} requests")
    result: dict[str, Any] = {"dataset": given.dataset, "machine": machine()}
    shared: dict[str, Any] = {}
    for name in (config.retrievers.training, *config.retrievers.unseen):
        retriever = build_retriever(name, config, data, shared)
        reward = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
        result[name] = measure(table, table.values(reward), config.seed)
        test = result[name]["test"]
        over = {k: f"{v['mean']:+.4f}" for k, v in (test["over_raw"] | test["over_rule"]).items()}
        progress(f"{name}: raw {test['raw']:.4f} {over}")
    finish(result)


if __name__ == "__main__":
    start(main)
