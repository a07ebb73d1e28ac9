"""From evaluation tables to the figures of a report: means, intervals, tests, robustness,
slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ospo.errors import InputError
from ospo.evaluation.control import SWAPPED
from ospo.evaluation.guard import GUARDED, GUARDED_FILE
from ospo.evaluation.selection import Summary, best_rule, reported_policy
from ospo.evaluation.slices import SLICES, in_order
from ospo.evaluation.statistics import (
    Interval,
    Robustness,
    affordable,
    bootstrap_seed_means,
    difference_test,
    holm,
    percentile_interval,
    robustness,
)
from ospo.evaluation.tables import (
    Measures,
    guarded_policies,
    guarded_share,
    has_control,
    load_values,
    measure_means,
    shoppers,
    slice_rows,
)
from ospo.files import read_json
from ospo.policy.rules import RULES

SLICE_RESAMPLES = 2000  # slices are hints: fewer draws are enough


@dataclass(frozen=True)
class Comparison:
    """Mean difference ``policy - reference`` under one retriever; ``p_holm`` is corrected over the
    whole table.
    """

    policy: str
    reference: str
    retriever: str
    difference: Interval
    p: float
    p_holm: float


@dataclass(frozen=True)
class Slice:
    """One part of the requests: size, mean per policy, and the best policy's gain over the raw
    query.
    """

    slice: str
    value: str
    requests: int
    means: dict[str, float]
    gain: Interval


@dataclass(frozen=True)
class Control:
    """A policy's answers given to other requests of the same category (``ospo.evaluation.control``)
    under one retriever: their mean, their gain over the raw query, and the share of the policy's
    own gain that this is; None where that gain is not clearly above 0.
    """

    policy: str
    retriever: str
    mean: float
    gain: Interval
    share: Interval | None


@dataclass(frozen=True)
class Guarded:
    """A policy under its guard (``ospo.evaluation.guard``) and one retriever: the mean, what the
    guard changes of it, and the share of test requests whose answer it uses.
    """

    policy: str
    retriever: str
    mean: Interval
    change: Interval
    used: float


@dataclass(frozen=True)
class Analysis:
    """Everything a report shows of one dataset. Figures are means over requests (and seeds, where
    several). ``groups``: shoppers, or requests where no shopper has two.
    """

    policies: list[str]
    retrievers: list[str]
    requests: int
    groups: int
    seeds: int
    means: dict[str, dict[str, Interval]]
    seed_means: dict[str, dict[str, list[float]]]
    measures: Measures
    comparisons: list[Comparison]
    robustness: dict[str, list[Robustness]]
    controls: list[Control]
    guards: list[Guarded]
    slices: list[Slice]
    best: str


@dataclass(frozen=True)
class _Sample:
    """nDCG@10 of every seed, policy, retriever (the training one first) and request, and how to
    resample it.
    """

    policies: list[str]
    retrievers: list[str]
    values_SPER: np.ndarray
    groups_R: np.ndarray | None
    slices: pl.DataFrame
    resamples: int
    seed: int

    def place(self, policy: str) -> int:
        return self.policies.index(policy)

    def means(self) -> np.ndarray:
        """(P, E) over seeds and requests."""
        return self.values_SPER.mean(axis=(0, 3))

    def draws(self, values_SPER: np.ndarray) -> np.ndarray:
        """Bootstrap means (B, P, E) of values of these requests: the same draws for every policy
        and retriever, in every call.
        """
        seeds, policies, retrievers, requests = values_SPER.shape
        flat_SRC = values_SPER.reshape(seeds, -1, requests).transpose(0, 2, 1)
        draws_BC = bootstrap_seed_means(flat_SRC, self.resamples, self.seed, self.groups_R)
        return draws_BC.reshape(len(draws_BC), policies, retrievers)


def analyse(
    directories: Sequence[Path],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    reference: str = "raw",
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Analysis:
    """Analyse evaluations of the same policies: one directory (which may hold several seeds), or
    one per seed.

    ``pairs`` are the comparisons tested, by default each policy against the raw query, those
    that are no rules against the best rule, the RL policies against SFT and OSPO against GRPO.

    With several seeds a request's value is its mean
    over seeds, intervals come from drawing seeds and requests, and p is the larger one of the tests
    over requests and over seeds. Raises InputError.
    """
    directories = [Path(directory) for directory in directories]
    sample = _load(directories, reference, resamples, seed)
    draws_BPE, means_PE = sample.draws(sample.values_SPER), sample.means()
    learned = [policy for policy in sample.policies if policy != reference]
    summary, training = read_json(directories[0] / "summary.json"), sample.retrievers[0]
    best = reported_policy(summary, training, learned) if learned else reference
    rule = _strongest(summary, training)
    pairs = list(pairs) if pairs is not None else _default_pairs(sample.policies, reference, rule)
    groups_R, base = sample.groups_R, sample.place(reference)
    seed_means_SPE = sample.values_SPER.mean(axis=3)
    requests = sample.values_SPER.shape[3]
    table = list(enumerate(sample.policies)), list(enumerate(sample.retrievers))
    return Analysis(
        policies=sample.policies,
        retrievers=sample.retrievers,
        requests=requests,
        groups=requests if groups_R is None else len(np.unique(groups_R)),
        seeds=len(sample.values_SPER),
        means=_intervals(sample, draws_BPE),
        seed_means={
            policy: {name: seed_means_SPE[:, p, e].tolist() for e, name in table[1]}
            for p, policy in table[0]
        },
        measures=measure_means(directories),
        comparisons=_comparisons(sample, pairs, draws_BPE),
        robustness={
            policy: robustness(
                means_PE[sample.place(policy)] - means_PE[base],
                draws_BPE[:, sample.place(policy)] - draws_BPE[:, base],
                sample.retrievers,
            )
            for policy in learned
        },
        controls=_controls(directories, sample, draws_BPE, base),
        guards=_guards(directories, sample, draws_BPE),
        slices=_slices(sample, best, reference),
        best=best,
    )


def _intervals(sample: _Sample, draws_BPE: np.ndarray) -> dict[str, dict[str, Interval]]:
    """The mean of every policy under every retriever."""
    means_PE = sample.means()
    return {
        policy: {
            name: percentile_interval(means_PE[p, e], draws_BPE[:, p, e])
            for e, name in enumerate(sample.retrievers)
        }
        for p, policy in enumerate(sample.policies)
    }


def _load(directories: Sequence[Path], reference: str, resamples: int, seed: int) -> _Sample:
    """The evaluations' values as one array. Raises InputError for none, or without
    ``reference``.
    """
    if not directories:
        raise InputError(
            "report", "evaluations", "none named", "name at least one evaluation directory"
        )
    wide, policies, retrievers = load_values(directories)
    if reference not in policies:
        raise InputError(
            directories[0],
            "policy",
            f"{reference!r} was not evaluated",
            f"choose of {', '.join(policies)}",
        )
    training = read_json(directories[0] / "details.json")["training_retriever"]
    retrievers = [training, *(name for name in retrievers if name != training)]
    slices = slice_rows(directories[0], wide)
    return _Sample(
        policies,
        retrievers,
        _values(wide, policies, retrievers),
        shoppers(slices),
        slices,
        affordable(resamples, len(wide)),
        seed,
    )


def _values(wide: pl.DataFrame, policies: list[str], retrievers: list[str]) -> np.ndarray:
    """(S, P, E, R) of a frame of ``load_values``."""
    seeds = 1 + max(int(name.partition("|")[0]) for name in wide.columns if name != "request_id")
    columns = [
        f"{s}|{policy}|{retriever}"
        for s in range(seeds)
        for policy in policies
        for retriever in retrievers
    ]
    return wide.select(columns).to_numpy().T.reshape(seeds, len(policies), len(retrievers), -1)


def _beside(
    directories: Sequence[Path], sample: _Sample, **table: str
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Policies, their values (S, P, E, R) and bootstrap means (B, P, E) in another table of
    ``load_values``, of the same requests as the sample.
    """
    wide, policies, _ = load_values(directories, **table)
    if not wide["request_id"].equals(sample.slices["request_id"]):
        raise InputError(
            directories[0],
            table["decoding"],
            "the values are not of the same requests as the others",
            "run the evaluation again",
        )
    values_SPER = _values(wide, policies, sample.retrievers)
    return policies, values_SPER, sample.draws(values_SPER)


def _controls(
    directories: Sequence[Path], sample: _Sample, draws_BPE: np.ndarray, base: int
) -> list[Control]:
    """Every policy's control under every retriever; none where an evaluation has none. ``base``:
    the raw query's place.
    """
    if not all(map(has_control, directories)):
        return []
    policies, values_SPER, swapped_BPE = _beside(directories, sample, decoding=SWAPPED)
    before_E, before_BE = sample.means()[base], draws_BPE[:, base]
    means_PE = values_SPER.mean(axis=(0, 3))
    controls = []
    for c, policy in enumerate(policies):
        p = sample.place(policy)
        for e, retriever in enumerate(sample.retrievers):
            pair = np.stack([sample.means()[p, e], means_PE[c, e]]) - before_E[e]
            draws_B2 = np.stack([draws_BPE[:, p, e], swapped_BPE[:, c, e]], axis=1)
            _, found = robustness(pair, draws_B2 - before_BE[:, e, None], [retriever, SWAPPED])
            mean = float(means_PE[c, e])
            controls.append(Control(policy, retriever, mean, found.gain, found.kept))
    return controls


def _guards(directories: Sequence[Path], sample: _Sample, draws_BPE: np.ndarray) -> list[Guarded]:
    """Every policy that has a guard, under every retriever; none where the evaluations differ in
    who has one.
    """
    named = [guarded_policies(directory) for directory in directories]
    if not named[0] or any(other != named[0] for other in named):
        return []
    table = {"decoding": GUARDED, "table_file": GUARDED_FILE}
    policies, values_SPER, guarded_BPE = _beside(directories, sample, **table)
    means_PE = values_SPER.mean(axis=(0, 3))
    guards = []
    for g, policy in enumerate(policies):
        p, used = sample.place(policy), guarded_share(directories, policy)
        for e, retriever in enumerate(sample.retrievers):
            mean_B, mean = guarded_BPE[:, g, e], means_PE[g, e]
            change_B, change = mean_B - draws_BPE[:, p, e], mean - sample.means()[p, e]
            intervals = percentile_interval(mean, mean_B), percentile_interval(change, change_B)
            guards.append(Guarded(policy, retriever, *intervals, used))
    return guards


def _comparisons(
    sample: _Sample, pairs: Sequence[tuple[str, str]], draws_BPE: np.ndarray
) -> list[Comparison]:
    """Every pair under every retriever, p-values corrected over all of them."""
    if not pairs:
        return []
    places = [(sample.place(a), sample.place(b)) for a, b in pairs]
    apart_SPER = np.stack(
        [sample.values_SPER[:, a] - sample.values_SPER[:, b] for a, b in places], axis=1
    )
    seeds, _, retrievers, requests = apart_SPER.shape
    apart_SRC = apart_SPER.reshape(seeds, -1, requests).transpose(0, 2, 1)
    p_C = difference_test(apart_SRC, sample.resamples, sample.seed, sample.groups_R)
    corrected_C = holm(p_C)
    comparisons = []
    for c, ((a, b), e) in enumerate((pair, e) for pair in places for e in range(retrievers)):
        draws_B = draws_BPE[:, a, e] - draws_BPE[:, b, e]
        difference = percentile_interval(float(apart_SRC[:, :, c].mean()), draws_B)
        names = (sample.policies[a], sample.policies[b], sample.retrievers[e])
        comparisons.append(Comparison(*names, difference, float(p_C[c]), float(corrected_C[c])))
    return comparisons


def _strongest(summary: Summary, training: str) -> str:
    """The best rule by validation requests; the raw query for evaluations without rules."""
    return best_rule(summary, training) if RULES.keys() & summary["validation"].keys() else "raw"


def _default_pairs(policies: Sequence[str], reference: str, rule: str) -> list[tuple[str, str]]:
    pairs = [(policy, reference) for policy in policies if policy != reference]
    learned = [policy for policy in policies if policy not in {reference, *RULES}]
    if rule != reference:
        pairs += [(policy, rule) for policy in learned]
    if "sft" in learned:
        pairs += [(policy, "sft") for policy in learned if policy != "sft"]
    if {"ospo", "grpo"} <= set(learned):
        pairs.append(("ospo", "grpo"))
    return pairs


def _slices(sample: _Sample, best: str, reference: str) -> list[Slice]:
    """Training-retriever means by slice. A property that is the same for all requests shows nothing
    and is left out.
    """
    values_SPR = sample.values_SPER[:, :, 0]
    gains_SR = values_SPR[:, sample.place(best)] - values_SPR[:, sample.place(reference)]
    resamples = min(sample.resamples, SLICE_RESAMPLES)
    out = []
    for name in SLICES:
        column = sample.slices[name].to_numpy()
        present = in_order(set(column))
        if len(present) < 2:
            continue
        for value in present:
            here = column == value
            gains_SR1 = gains_SR[:, here, None]
            groups = None if sample.groups_R is None else sample.groups_R[here]
            draws = bootstrap_seed_means(gains_SR1, resamples, sample.seed, groups)
            means = {
                policy: float(values_SPR[:, p, here].mean())
                for p, policy in enumerate(sample.policies)
            }
            gain = percentile_interval(float(gains_SR1.mean()), draws[:, 0])
            out.append(Slice(name, value, int(here.sum()), means, gain))
    return out
