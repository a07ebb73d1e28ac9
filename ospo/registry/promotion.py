"""May a challenger become the champion? Decided on the same held-out requests for both, by a rule
fixed beforehand.

1. On the training retriever the challenger must be better: paired randomisation test over requests
   (over shoppers where they are known), two-sided p < ``max_p``, and a positive mean difference of
   nDCG@10.
2. Under the unseen retriever where it does worst it may lose at most ``tolerance`` of nDCG@10 on
   average: a gain that only the training retriever sees is a gain at its expense.

Both hold against the best rule (``ospo.policy.rules``, the raw query among them; the best by
validation requests) and against the champion, where there is one: a policy that three lines of
code replace is not used. Where neither the challenger nor the champion passes against the best
rule, the best rule that can answer by itself becomes the champion.

Both must be passed, so no correction for many; the second is a limit on the damage, not a
test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl

from ospo import registry
from ospo.config import Config
from ospo.errors import InputError
from ospo.evaluation.analysis import Comparison
from ospo.evaluation.selection import best_rule, label
from ospo.evaluation.statistics import (
    bootstrap_means,
    holm,
    percentile_interval,
    randomisation_test,
)
from ospo.evaluation.tables import load_values, read_table
from ospo.files import read_json
from ospo.policy.rules import RULES
from ospo.registry.store import RULE_TAG, Version, connect, find_version

MAX_P, TOLERANCE = 0.05, 0.01
RESAMPLES = 10_000


@dataclass(frozen=True)
class Decision:
    """For or against a promotion, in a sentence, with the figures it rests on."""

    promoted: bool
    reason: str
    figures: dict[str, Any]


def decide(
    comparisons: Sequence[Comparison],
    training: str,
    *,
    max_p: float = MAX_P,
    tolerance: float = TOLERANCE,
) -> Decision:
    """Apply the rule to challenger - champion under each retriever. ``training``: the training
    retriever's name.

    Raises ValueError where the training retriever was not compared.
    """
    by_name = {item.retriever: item for item in comparisons}
    if training not in by_name:
        raise ValueError(f"the training retriever {training!r} was not compared")
    figures: dict[str, Any] = {
        name: {
            "difference": round(item.difference.value, 6),
            "low": round(item.difference.low, 6),
            "high": round(item.difference.high, 6),
            "p": round(item.p, 6),
        }
        for name, item in by_name.items()
    }
    first = by_name[training]
    gain = first.difference.value
    gained = f"{gain:+.4f} nDCG@10 on {training} (p = {first.p:.4f})"
    if gain <= 0:
        return Decision(False, f"not better: {gained}", figures)
    if not first.p < max_p:
        return Decision(False, f"not clearly better: {gained}, p < {max_p:g} is needed", figures)
    unseen = [item for name, item in by_name.items() if name != training]
    if not unseen:
        return Decision(True, f"better: {gained}; no unseen retriever was compared", figures)
    worst = min(unseen, key=lambda item: item.difference.value)
    lost = f"worst unseen retriever {worst.retriever} {worst.difference.value:+.4f}"
    if worst.difference.value < -tolerance:
        return Decision(
            False,
            f"better on {training} only: {gained}, but {lost} (limit {-tolerance:+g})",
            figures,
        )
    return Decision(True, f"better: {gained}; {lost}", figures)


def compare(
    evaluation: Path, challenger: str, champion: str, seed: int
) -> tuple[list[Comparison], int]:
    """challenger - champion under each retriever of an evaluation, paired by request, and the
    number of requests.

    Requests of one shopper are resampled together. Raises InputError for missing or unreadable
    files.
    """
    wide, _, retrievers = load_values([evaluation])
    slices = pl.read_parquet(read_table(evaluation, "slices.parquet"), glob=False)
    groups = wide.select("request_id").join(
        slices, on="request_id", how="left", maintain_order="left"
    )["group"]
    groups_R = groups.to_numpy() if groups.n_unique() < len(groups) else None
    differences_RC = np.stack(
        [
            (wide[f"0|{challenger}|{name}"] - wide[f"0|{champion}|{name}"]).to_numpy()
            for name in retrievers
        ],
        axis=1,
    )
    draws_BC = bootstrap_means(differences_RC, RESAMPLES, seed, groups_R)
    p_C = randomisation_test(differences_RC, RESAMPLES, seed, groups_R)
    means_C = differences_RC.mean(axis=0)
    adjusted_C = holm(p_C)
    return [
        Comparison(
            challenger, champion, name, percentile_interval(means_C[c], draws_BC[:, c]),
            float(p_C[c]), float(adjusted_C[c]),
        )
        for c, name in enumerate(retrievers)
    ], len(wide)  # fmt: skip


def consider(
    config: Config,
    dataset: str,
    evaluation: str | Path,
    *,
    challenger: str,
    champion: str | None = "champion",
    in_use: Version | None = None,
    version: int | None = None,
    report: Path | None = None,
    noted: Mapping[str, str] = MappingProxyType({}),
    root: str | Path = ".",
) -> Decision:
    """Decide on the challenger (or ``version``) from an evaluation of both, note it there, and
    promote if allowed.

    ``evaluation``: the directory that ``ospo.evaluation.evaluate`` wrote with both policies, under
    the names ``challenger`` and ``champion``, beside the rules; ``champion`` is None where there is
    none yet; ``in_use``: the version that was evaluated as it, by default the registered champion.
    ``report``: the page that a rule's version carries, where one is registered; ``noted``: what
    else is written into the decision. Raises InputError where the evaluation misses one of them,
    RegistryError where nothing is registered.
    """
    evaluation = Path(evaluation)
    details = read_json(evaluation / "details.json")
    training = details["training_retriever"]
    for name in (challenger, champion):
        if name is not None and name not in details["policies"]:
            raise InputError(
                evaluation / "details.json",
                "policies",
                f"{name} was not evaluated",
                "evaluate both",
            )
    summary = read_json(evaluation / "summary.json")
    rule = best_rule(summary, training)
    against: int | str = rule
    if champion is not None and in_use is None:
        in_use = registry.champion(config, dataset, root)
    comparisons, requests = compare(evaluation, challenger, rule, config.seed)
    decision = decide(comparisons, training)
    found = decision.figures
    if not decision.promoted:
        used = _fall_back(config, dataset, evaluation, champion, in_use, version, report, root)
        reason = f"against the best rule ({label(rule)}) {decision.reason}{used}"
        decision = Decision(False, reason, found)
    elif champion is not None and in_use is not None:
        against = in_use.version
        comparisons, requests = compare(evaluation, challenger, champion, config.seed)
        decision = decide(comparisons, training)
    record = {"promoted": decision.promoted, "reason": decision.reason, "figures": decision.figures,
              "requests": requests, "against": against,
              "rule": {"name": rule, "figures": found}, **noted}  # fmt: skip
    if decision.promoted:
        registry.promote(config, dataset, version, decision=record, root=root)
    else:
        registry.note(config, dataset, version, decision=record, root=root)
    return decision


def _fall_back(
    config: Config,
    dataset: str,
    evaluation: Path,
    champion: str | None,
    in_use: Version | None,
    version: int | None,
    report: Path | None,
    root: str | Path,
) -> str:
    """Make a rule the champion where the champion is not better than the best rule, or there is
    none; what is to be said of it. A champion that a person chose stays.
    """
    if in_use is not None and "by" in in_use.decision:
        return ""
    training = read_json(evaluation / "details.json")["training_retriever"]
    summary = read_json(evaluation / "summary.json")
    best = best_rule(summary, training)
    name = best_rule(summary, training, standalone=True)
    reason = f"no trained policy is better than the best rule ({label(best)})"
    if champion is not None and in_use is not None and RULE_TAG not in in_use.tags:
        comparisons, _ = compare(evaluation, champion, best, config.seed)
        found = decide(comparisons, training)
        if found.promoted:
            return ""
        reason = f"{reason}: version {in_use.version} is {found.reason}"
    with connect(config, root) as client:
        candidate = find_version(client, dataset, version)
    used = registry.answer_by_rule(
        config,
        dataset,
        RULES[name],
        candidate,
        best=best,
        figures=summary.get("test", {}).get(name, {}),
        decision={"promoted": True, "reason": reason},
        report=report,
        root=root,
    )
    return f"; answering by the rule '{name}' (version {used.version})"
