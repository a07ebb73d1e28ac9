"""Where should a policy's answer be used? A guard chosen on validation requests, and what it is
worth on test requests.

Candidates are few, so that little is gained by luck: no threshold or one of nine deciles of the
validation answers' mean log-probability, asking for nothing, for earlier purchases, or for one of
the requested type. The one with the highest mean is taken, and only if the gain over using every
answer is clearly above 0 on these very requests; otherwise there is no guard.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ospo.data.dataset import PreparedData
from ospo.evaluation.statistics import affordable, bootstrap_means, percentile_interval
from ospo.files import atomic_file, read_json, write_json
from ospo.policy.guard import GROUNDS, Guard, grounds
from ospo.policy.rules import RAW

FILE = "guard.json"  # of an evaluation: what was chosen for each policy and seed
GUARDED_FILE, GUARDED = "guarded.parquet", "guarded"  # its values under the guards; their decoding
_DECILES = np.arange(1, 10) / 10


@dataclass(frozen=True)
class Choice:
    """A guard, its gain over using every answer on the validation requests, with the interval's
    lower end, and the share of these requests whose answer it uses.
    """

    guard: Guard
    gain: float
    low: float
    used: float


def choose_guard(
    logprob_R: np.ndarray,
    grounds_R: np.ndarray,
    policy_R: np.ndarray,
    raw_R: np.ndarray,
    groups_R: np.ndarray,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Choice | None:
    """The guard for a policy by its validation requests; None where none is clearly worth it.

    logprob_R: of the answers (NaN: not asked for, the raw query stays); grounds_R: text, what each
    request comes with (``ospo.policy.guard``); policy_R, raw_R: nDCG@10 of the answer and of the
    raw query; groups_R: the shopper, who is resampled.
    """
    written_R = np.isfinite(logprob_R)
    if not written_R.any():  # no model wrote these answers
        return None
    # Four digits: no answer lies on a threshold, where rounding in another batch would move it.
    deciles = np.floor(np.quantile(logprob_R[written_R], _DECILES) * 1e4) / 1e4
    thresholds = [None, *np.unique(deciles).tolist()]
    level_R = np.array([GROUNDS.index(given) for given in grounds_R.tolist()])
    asked = [GROUNDS[0]]
    for level, need in enumerate(GROUNDS[1:], 1):
        if 0 < np.count_nonzero(level_R >= level) < len(level_R):  # else it asks for nothing more
            asked.append(need)
    best: tuple[float, Guard, np.ndarray] | None = None
    for least, needs in product(thresholds, asked):
        guard = Guard(least, needs)
        used_R = uses(guard, logprob_R, grounds_R)
        gain = float(np.where(used_R, 0.0, raw_R - policy_R).mean())
        if gain > 0 and (best is None or gain > best[0]):
            best = gain, guard, used_R
    if best is None:
        return None
    gain, guard, used_R = best
    gain_R1 = np.where(used_R, 0.0, raw_R - policy_R)[:, None]
    draws = bootstrap_means(gain_R1, affordable(resamples, len(gain_R1)), seed, groups_R)
    low = percentile_interval(gain, draws[:, 0]).low
    return Choice(guard, gain, low, float(used_R.mean())) if low > 0 else None


def uses(guard: Guard, logprob_R: np.ndarray, grounds_R: np.ndarray) -> np.ndarray:
    """(R,) bool: the requests whose answer a guard uses."""
    pairs = zip(grounds_R.tolist(), logprob_R.tolist(), strict=True)
    return np.array([guard.uses(given, logprob) for given, logprob in pairs], dtype=bool)


def greedy_values(out: Path, data: PreparedData, split: str) -> pl.DataFrame:
    """One row per policy, seed, retriever and request of a split: greedy answers within pools, with
    value (nDCG@10), raw (the raw query's), logprob, grounds (what the request comes with) and group
    (the shopper).
    """
    here = (pl.col("split") == split) & (pl.col("decoding") == "greedy")
    table = (
        pl.scan_parquet(out / "evaluation.parquet", glob=False)
        .filter(here & (pl.col("scope") == "pool"))
        .select("policy", "seed", "retriever", "request_id", value="ndcg@10")
        .collect()
    )
    raw = table.filter(policy=RAW).select("retriever", "request_id", raw="value")
    answers = (
        pl.scan_parquet(out / "answers.parquet", glob=False)
        .filter(here)
        .select("policy", "seed", "request_id", "logprob")
        .collect()
    )
    rows = data.rows(split)
    asked = data.requests.frame[rows].select(
        "request_id",
        grounds=pl.Series([grounds(data.requests[row]) for row in rows.tolist()], dtype=pl.String),
        group=pl.when(pl.col("customer_id") == "").then("request_id").otherwise("customer_id"),
    )
    return (
        table.join(raw, on=["retriever", "request_id"])
        .join(answers, on=["policy", "seed", "request_id"])
        .join(asked, on="request_id")
        .sort("policy", "seed", "retriever", "request_id")
    )


def write_guards(out: Path, data: PreparedData, training: str, seed: int) -> dict[str, Any]:
    """Choose a guard for every policy and seed of an evaluation, by its validation requests under
    the training retriever, and write ``guard.json``: policy → seed → choice. Policies for which
    none is clearly worth it are left out. Returns what was written.
    """
    chosen: dict[str, Any] = {}
    frame = greedy_values(out, data, "validation").filter(retriever=training)
    for (policy, number), part in frame.group_by("policy", "seed", maintain_order=True):
        columns = [
            part[name].to_numpy() for name in ("logprob", "grounds", "value", "raw", "group")
        ]
        if choice := choose_guard(*columns, seed=seed):
            chosen.setdefault(str(policy), {})[str(number)] = asdict(choice)
    write_json(out / FILE, chosen)
    return chosen


def write_guarded(
    out: Path, data: PreparedData, chosen: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Write what the guards make of test requests, for policies that have one for some seed (a seed
    without one uses every answer), into ``guarded.parquet``, with columns as in
    ``evaluation.parquet`` and ``used``; returns {policy: {retriever: mean nDCG@10}}.
    """
    frame = greedy_values(out, data, "test").filter(pl.col("policy").is_in(list(chosen)))
    parts = [
        _with_guard(part, chosen[str(policy)].get(str(number)))
        for (policy, number), part in frame.group_by("policy", "seed", maintain_order=True)
    ]
    table = pl.concat(parts) if parts else _with_guard(frame, None)
    with atomic_file(out / GUARDED_FILE) as temporary:
        table.write_parquet(temporary)
    means: dict[str, dict[str, float]] = {}
    keys = ["policy", "retriever"]
    grouped = table.group_by(keys, maintain_order=True).agg(pl.col("ndcg@10").mean())
    for policy, retriever, value in grouped.iter_rows():
        means.setdefault(policy, {})[retriever] = value
    return means


def _with_guard(part: pl.DataFrame, found: Mapping[str, Any] | None) -> pl.DataFrame:
    """Rows of one policy and seed under its guard."""
    guard = Guard(**found["guard"]) if found else Guard()
    used = pl.Series("used", uses(guard, part["logprob"].to_numpy(), part["grounds"].to_numpy()))
    columns = {"split": "test", "scope": "pool", "decoding": GUARDED}
    return part.with_columns(used).select(
        "policy",
        "seed",
        "retriever",
        "request_id",
        pl.when("used").then("value").otherwise("raw").alias("ndcg@10"),
        "used",
        *(pl.lit(value).alias(name) for name, value in columns.items()),
    )


def read_guards(out: Path) -> dict[str, Any]:
    """What :func:`write_guards` wrote; {} for evaluations made before there were guards."""
    file = out / FILE
    found: dict[str, Any] = read_json(file) if file.is_file() else {}
    return found


def chosen_guard(out: Path, policy: str, seed: int) -> Guard | None:
    """The guard that an evaluation chose for a policy trained under ``seed``, None for none."""
    found = read_guards(out).get(policy, {}).get(str(seed))
    return Guard(**found["guard"]) if found else None
