"""The figures of ``benchmarks.learning``: means, paired differences with their tests, and the
curves.

    python -m benchmarks.learning_figures docs/experiments/learning-*.json

prints, for results that were kept without their requests, what can be tested over seeds alone.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import start
from benchmarks.learning_arm import UNSEEN
from ospo.evaluation.statistics import (
    bootstrap_seed_means,
    difference_test,
    holm,
    percentile_interval,
    robustness,
    seed_interval,
    seed_test,
)
from ospo.files import atomic_file, read_json
from ospo.reports.charts import Line, line_chart, standalone
from ospo.reports.wording import interval_text, p_text, signed

RESAMPLES = 10_000
NAMES = ["minilm", *UNSEEN]
Results = Mapping[tuple[int, str], Any]


def best_on_validation(found: Results, seeds: Sequence[int], names: Sequence[str]) -> str:
    """The name with the highest mean validation score under the training retriever at the end."""
    return max(
        names,
        key=lambda name: np.mean([found[seed, name]["validation"][-1, 0].mean() for seed in seeds]),
    )


def compared(
    differences_SRC: np.ndarray, groups_R: np.ndarray, seed: int = 0
) -> list[dict[str, float]]:
    """One object per comparison of (seeds, requests, comparisons) differences: mean, 95 % interval
    over seeds and shoppers (``low``, ``high``), ``p_seeds`` (t-test over seeds alone), ``p`` (the
    larger one of the tests over shoppers and seeds) and ``p_holm``, corrected over all of them.
    """
    draws_BC = bootstrap_seed_means(differences_SRC, RESAMPLES, seed, groups_R)
    p_C = difference_test(differences_SRC, RESAMPLES, seed, groups_R)
    by_seed_C = seed_test(differences_SRC.mean(axis=1))
    out = []
    for c, corrected in enumerate(holm(p_C)):
        interval = percentile_interval(float(differences_SRC[..., c].mean()), draws_BC[:, c])
        figures = {"mean": interval.value, "low": interval.low, "high": interval.high}
        figures |= {"p": float(p_C[c]), "p_holm": float(corrected)}
        if len(differences_SRC) > 1:
            figures["p_seeds"] = float(by_seed_C[c])
        out.append(figures)
    return out


def within_seconds(result: Any, start: Any, seconds: float) -> np.ndarray:
    """(retrievers, requests) test scores of the policy that is best on validation requests among
    the looks of the first ``seconds`` of training; ``start``: the SFT policy's result, whose last
    look is the first of these. A run that took no longer has its own result among them.
    """
    spent = np.concatenate([[0.0], np.cumsum(result["seconds"])])
    times = spent[np.minimum(result["steps"], len(spent) - 1)]
    seen = [(start["validation"][-1, 0].mean(), start["values"][-1])] + [
        (result["validation"][look, 0].mean(), result["values"][look])
        for look in np.flatnonzero(times <= seconds + 1e-9).tolist()
    ]
    return max(seen, key=lambda one: one[0])[1]


def summary(
    results: Results,
    seeds: Sequence[int],
    arms: Sequence[str],
    ours: str,
    rule_ER: np.ndarray | None = None,
    names: Sequence[str] = NAMES,
) -> dict[str, Any]:
    """Figures of the finished seeds: means by policy and retriever, and ours against GRPO, SFT, the
    raw query and, where its scores ``rule_ER`` (retrievers, requests) are given, a rule. ``names``:
    of the retrievers, the training one first.
    """
    final = {  # (seeds, retrievers, requests)
        "raw": np.stack([results[s, "sft"]["values"][0] for s in seeds]),
        "sft": np.stack([results[s, "sft"]["values"][1] for s in seeds]),
        **{arm: np.stack([results[s, arm]["values"][-1] for s in seeds]) for arm in arms},
    }
    if rule_ER is not None:
        final["rule"] = np.stack([rule_ER] * len(seeds))
    out: dict[str, Any] = {
        "ndcg": {
            p: dict(zip(names, t.mean(axis=(0, 2)).tolist(), strict=True)) for p, t in final.items()
        },
        "ndcg_by_seed": {
            p: dict(zip(names, t.mean(axis=2).T.tolist(), strict=True)) for p, t in final.items()
        },
        "curves": {arm: _curve([results[s, arm] for s in seeds]) for arm in arms},
    }
    if ours in arms and "grpo" in arms:
        out |= {"ours": ours} | _ours(results, seeds, final, ours, names)
    return out


def _curve(runs: Sequence[Any]) -> dict[str, Any]:
    """Mean test score by step; None where a run stopped early."""
    alike = len({len(run["values"]) for run in runs}) == 1
    tests = [[values[0].mean() for values in run["values"]] for run in runs]
    seconds = np.concatenate([run["seconds"] for run in runs])
    return {
        "steps": runs[0]["steps"].tolist(),
        "test": np.mean(tests, axis=0).tolist() if alike else None,
        "seconds_a_step": float(np.median(seconds)),
    }


def _ours(
    results: Results,
    seeds: Sequence[int],
    final: Mapping[str, np.ndarray],
    ours: str,
    names: Sequence[str],
) -> dict[str, Any]:
    """Ours against GRPO, SFT, the raw query and the rule under every retriever, and against GRPO
    after equal seconds; p-values corrected over all of these.
    """
    groups_R = results[seeds[0], "sft"]["groups"]
    others = ["grpo", "raw", "sft", *(["rule"] if "rule" in final else [])]
    apart = [final[ours] - final[other] for other in others]
    columns = [one[:, e] for one in apart for e in range(len(names))]
    differences_SRC = np.stack([*columns, _equal_seconds(results, seeds, ours)], axis=2)
    *each, equal = compared(differences_SRC, groups_R)
    rows = [each[i : i + len(names)] for i in range(0, len(each), len(names))]
    out: dict[str, Any] = {
        f"ours_minus_{other}": dict(zip(names, row, strict=True))
        for other, row in zip(others, rows, strict=True)
    }
    gain_SRE = apart[others.index("raw")].transpose(0, 2, 1)
    draws_BE = bootstrap_seed_means(gain_SRE, RESAMPLES, 0, groups_R)
    shares = robustness(gain_SRE.mean(axis=(0, 1)), draws_BE, list(names))[1:]
    kept = {
        share.retriever: share.kept
        and {"value": share.kept.value, "low": share.kept.low, "high": share.kept.high}
        for share in shares
    }
    return out | {"kept": kept, "ours_minus_grpo_equal_seconds": equal}


def _equal_seconds(results: Results, seeds: Sequence[int], ours: str) -> np.ndarray:
    """(seeds, requests) ours − GRPO under the training retriever: the policy of each that is best
    on validation requests within as many seconds of training as the faster of the two took for all
    its steps.
    """
    apart = []
    for s in seeds:
        start = results[s, "sft"]
        mine, grpo = results[s, ours], results[s, "grpo"]
        seconds = min(float(mine["seconds"].sum()), float(grpo["seconds"].sum()))
        ours_ER, grpo_ER = (within_seconds(run, start, seconds) for run in (mine, grpo))
        apart.append((ours_ER - grpo_ER)[0])
    return np.stack(apart)


def plot(figures: Mapping[str, Any], dataset: str, file: Path) -> None:
    """Test nDCG by step, one line per arm, the highest at the end first, as an SVG for
    documents.
    """
    curves = {a: c for a, c in figures["curves"].items() if c["test"] is not None}
    training = next(iter(figures["ndcg"]["raw"]))
    start, raw = figures["ndcg"]["sft"][training], figures["ndcg"]["raw"][training]
    ends = sorted(curves, key=lambda arm: -curves[arm]["test"][-1])
    lines = [
        Line(
            f"{arm} {curves[arm]['test'][-1]:.3f}",
            [0, *curves[arm]["steps"]],
            [start, *curves[arm]["test"]],
            series=list(curves).index(arm),
        )
        for arm in ends
    ]
    last = max(c["steps"][-1] for c in curves.values())
    lines.append(Line(f"raw query {raw:.3f}", [0, last], [raw, raw], series=len(curves)))
    seeds = len(figures["seeds"])
    chart = line_chart(
        f"{dataset}: held-out nDCG@10 by training step",
        f"Last values: {', '.join(line.name for line in lines)}; all begin at {start:.3f}, the SFT "
        "policy",
        lines,
        "training step",
        f"{dataset}: held-out nDCG@10 ({training}), mean of {seeds} seeds",
    )
    with atomic_file(file) as temporary:
        temporary.write_text(standalone(chart), encoding="utf-8")


def over_seeds(kept: Mapping[str, Any], ours: str = "ospo") -> list[str]:
    """Rows of a markdown table from a kept JSON's means by seed under the training retriever: ours
    minus each other policy, its 95 % t interval over seeds, p, and p after Holm's correction over
    the table.
    """
    by_seed = kept["ndcg_by_seed"]
    others = [name for name in by_seed if name != ours]
    apart_SC = np.stack([np.subtract(by_seed[ours], by_seed[name]) for name in others], axis=1)
    p_C = seed_test(apart_SC)
    rows = []
    for c, (name, corrected) in enumerate(zip(others, holm(p_C), strict=True)):
        interval = seed_interval(apart_SC[:, c])
        rows.append(
            f"| {ours} − {name} | {signed(interval.value)} | {interval_text(interval)} | "
            f"{p_text(float(p_C[c]))} | {p_text(float(corrected))} |"
        )
    return rows


def main() -> None:
    """Print a table per file."""
    head = "| difference | mean | 95 % interval | p | p, Holm |\n|---|---|---|---|---|"
    for file in sys.argv[1:]:
        print(f"\n{file}\n\n{head}", *over_seeds(read_json(file)), sep="\n")


if __name__ == "__main__":
    start(main)
