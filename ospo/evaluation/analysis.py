"""From evaluation tables to the figures of a report: means, intervals, tests, robustness,
slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ospo.config import ALGORITHMS
from ospo.errors import InputError
from ospo.evaluation.measures import MEASURES
from ospo.evaluation.selection import best_policy, ordered
from ospo.evaluation.slices import SLICES, in_order
from ospo.evaluation.statistics import (
    Interval,
    Robustness,
    affordable,
    bootstrap_seed_means,
    holm,
    percentile_interval,
    randomisation_test,
    robustness,
    seed_test,
)
from ospo.files import read_json

MEASURE = "ndcg@10"


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
class Analysis:
    """Everything a report says about one dataset. Figures are means over requests (and seeds, where
    several).
    """

    policies: list[str]
    retrievers: list[str]
    requests: int
    groups: int
    seeds: int
    means: dict[str, dict[str, Interval]]
    seed_means: dict[str, dict[str, list[float]]]
    measures: dict[str, dict[str, dict[str, dict[str, float]]]]
    comparisons: list[Comparison]
    robustness: dict[str, list[Robustness]]
    slices: list[Slice]
    best: str


def read_table(directory: Path, file: str) -> Path:
    """Path of an evaluation's file; raises InputError where it is missing or no parquet file."""
    path = directory / file
    if not path.is_file():
        raise InputError(path, "", "file not found", "run the evaluation first (ospo evaluate)")
    try:
        pl.scan_parquet(path, glob=False).collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        problem = str(error).splitlines()[0][:120]
        raise InputError(
            path, "", f"is not a readable parquet file ({problem})", "run the evaluation again"
        ) from None
    return path


def load_values(
    directories: Sequence[Path], measure: str = MEASURE
) -> tuple[pl.DataFrame, list[str], list[str]]:
    """Per-request values of greedy answers within pools on the test split.

    Returns a frame sorted by (request_id) with columns request_id and ``s|policy|retriever`` for
    training seed s (0, 1, … in order), the policies and the retrievers. Seeds come from one
    evaluation's ``seed`` column or from several evaluations, one a seed; they are paired on the
    requests that all share. A policy with one seed beside others with several (the raw query)
    stands for itself under each. Raises InputError where no request is left, or a policy, seed or
    retriever is missing from one of them.
    """
    frames: list[pl.DataFrame] = []
    retrievers: list[str] = []
    for number, directory in enumerate(directories):
        file = read_table(directory, "evaluation.parquet")
        table = pl.scan_parquet(file, glob=False)
        if "seed" not in table.collect_schema():  # evaluations made before there were seeds
            table = table.with_columns(seed=pl.lit(0, pl.Int32))
        frame = (
            table.filter(
                (pl.col("split") == "test")
                & (pl.col("scope") == "pool")
                & (pl.col("decoding") == "greedy")
            )
            .select("request_id", "policy", "retriever", "seed", value=measure)
            .collect()
        )
        if frame.is_empty():
            raise InputError(
                file, "split", "holds no test request", "evaluate at least one held-out request"
            )
        found = frame["retriever"].unique(maintain_order=True).to_list()
        retrievers = retrievers or found
        if number and (
            set(found) != set(retrievers) or set(frame["policy"]) != set(frames[0]["policy"])
        ):
            raise InputError(
                file,
                "policy",
                "has other policies or retrievers than the first",
                "evaluate them alike",
            )
        if len(directories) > 1:
            if frame.group_by("policy").agg(pl.col("seed").n_unique())["seed"].max() != 1:
                raise InputError(file, "seed", "holds several seeds itself", "name it alone")
            frame = frame.with_columns(seed=pl.lit(number, pl.Int32))
        frames.append(frame)
    rows = pl.concat(frames)
    policies = ordered(frames[0]["policy"].unique(maintain_order=True).to_list())
    wide = _widened(directories, rows, _seeds(directories[0], rows, policies))
    return wide, policies, retrievers


def _seeds(directory: Path, rows: pl.DataFrame, policies: Sequence[str]) -> dict[str, list[int]]:
    """Policy → its seed for each s; every policy has the same ones or a single one."""
    found = {
        policy: sorted(rows.filter(pl.col("policy") == policy)["seed"].unique())
        for policy in policies
    }
    longest = max(found.values(), key=len)
    for policy, seeds in found.items():
        if len(seeds) > 1 and seeds != longest:
            raise InputError(
                directory / "evaluation.parquet",
                "seed",
                f"policy {policy!r} has seeds {seeds}, another has {longest}",
                "evaluate the same seeds of every policy, or one seed of a policy",
            )
    return {
        policy: seeds if len(seeds) > 1 else seeds * len(longest) for policy, seeds in found.items()
    }


def _widened(
    directories: Sequence[Path], rows: pl.DataFrame, seeds: dict[str, list[int]]
) -> pl.DataFrame:
    """One row a request, one column a (seed, policy, retriever)."""
    key = pl.concat_str("seed", "policy", "retriever", separator="|")
    wide = rows.with_columns(column=key).pivot(
        "column", index="request_id", values="value", aggregate_function="first"
    )
    counts = wide.select(pl.all_horizontal(pl.all().is_not_null()).sum()).item()
    if not counts:
        raise InputError(
            directories[0],
            "request_id",
            "the evaluations share no request",
            "evaluate the same data",
        )
    if counts < len(wide) and len(directories) == 1:
        raise InputError(
            directories[0],
            MEASURE,
            "some requests miss a policy or a retriever",
            "run the evaluation again",
        )
    columns = [
        pl.col(f"{seed}|{policy}|{retriever}").alias(f"{s}|{policy}|{retriever}")
        for policy, listed in seeds.items()
        for s, seed in enumerate(listed)
        for retriever in rows["retriever"].unique(maintain_order=True)
    ]
    return wide.drop_nulls().select("request_id", *columns).sort("request_id")


def analyse(
    directories: Sequence[Path],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    reference: str = "raw",
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Analysis:
    """Analyse evaluations of the same policies: one directory (which may hold several seeds), or
    one a seed.

    ``pairs`` are the comparisons tested, by default each policy against the raw query, the RL
    policies against SFT and OSPO against GRPO. With several seeds a request's value is its mean
    over seeds, intervals come from drawing seeds and requests, and p is the larger one of the tests
    over requests and over seeds. Raises InputError.
    """
    if not directories:
        raise InputError(
            "report", "evaluations", "none named", "name at least one evaluation directory"
        )
    directories = [Path(directory) for directory in directories]
    wide, policies, retrievers = load_values(directories)
    if reference not in policies:
        raise InputError(
            directories[0],
            "policy",
            f"{reference!r} was not evaluated",
            f"choose of {', '.join(policies)}",
        )
    details = read_json(directories[0] / "details.json")
    training = details["training_retriever"]
    retrievers = [training, *(name for name in retrievers if name != training)]
    slices = _slice_rows(directories[0], wide)
    groups_R = slices["group"].to_numpy() if slices["group"].n_unique() < len(slices) else None
    seeds = 1 + max(int(name.partition("|")[0]) for name in wide.columns if name != "request_id")

    values_SPER = np.stack(
        [
            [
                [wide[f"{s}|{policy}|{retriever}"].to_numpy() for retriever in retrievers]
                for policy in policies
            ]
            for s in range(seeds)
        ]
    )
    values_PER = values_SPER.mean(axis=0)
    P, E, R = values_PER.shape
    resamples = affordable(resamples, R)
    flat_SRC = values_SPER.reshape(seeds, P * E, R).transpose(0, 2, 1)
    draws_BC = bootstrap_seed_means(flat_SRC, resamples, seed, groups_R)
    draws_BPE = draws_BC.reshape(len(draws_BC), P, E)
    means_SPE = values_SPER.mean(axis=3)
    means_PE = values_PER.mean(axis=2)

    pairs = list(pairs) if pairs is not None else _default_pairs(policies, reference)
    index = {policy: p for p, policy in enumerate(policies)}
    differences_RC = (
        np.stack([(values_PER[index[a]] - values_PER[index[b]]) for a, b in pairs]).reshape(-1, R).T
    )
    p_values = randomisation_test(differences_RC, resamples, seed, groups_R)
    if (
        seeds > 1
    ):  # clear over requests and over training runs: an intersection-union test (Berger 1982)
        apart_SC = np.stack(
            [means_SPE[:, index[a]] - means_SPE[:, index[b]] for a, b in pairs], 1
        ).reshape(seeds, -1)
        p_values = np.maximum(p_values, seed_test(apart_SC))
    corrected = holm(p_values)
    comparisons = []
    for c, ((a, b), e) in enumerate((pair, e) for pair in pairs for e in range(E)):
        draws = draws_BPE[:, index[a], e] - draws_BPE[:, index[b], e]
        difference = percentile_interval(means_PE[index[a], e] - means_PE[index[b], e], draws)
        comparisons.append(
            Comparison(a, b, retrievers[e], difference, float(p_values[c]), float(corrected[c]))
        )

    learned = [policy for policy in policies if policy != reference]
    best = _best(directories[0], learned, training) if learned else reference
    return Analysis(
        policies=policies,
        retrievers=retrievers,
        requests=R,
        groups=R if groups_R is None else len(np.unique(groups_R)),
        seeds=seeds,
        means={
            policy: {
                retriever: percentile_interval(means_PE[p, e], draws_BPE[:, p, e])
                for e, retriever in enumerate(retrievers)
            }
            for p, policy in enumerate(policies)
        },
        seed_means={
            policy: {
                retriever: [float(value) for value in means_SPE[:, p, e]]
                for e, retriever in enumerate(retrievers)
            }
            for p, policy in enumerate(policies)
        },
        measures=_measure_means(directories),
        comparisons=comparisons,
        robustness={
            policy: robustness(
                means_PE[index[policy]] - means_PE[index[reference]],
                draws_BPE[:, index[policy]] - draws_BPE[:, index[reference]],
                retrievers,
            )
            for policy in learned
        },
        slices=_slices(
            slices,
            values_SPER[:, :, 0],
            policies,
            index[best],
            index[reference],
            groups_R,
            resamples,
            seed,
        ),
        best=best,
    )


def _default_pairs(policies: Sequence[str], reference: str) -> list[tuple[str, str]]:
    learned = [policy for policy in policies if policy != reference]
    pairs = [(policy, reference) for policy in learned]
    if "sft" in learned:
        pairs += [(policy, "sft") for policy in learned if policy != "sft"]
    if {"ospo", "grpo"} <= set(learned):
        pairs.append(("ospo", "grpo"))
    return pairs


def _best(directory: Path, learned: Sequence[str], training: str) -> str:
    """The policy that registration would take, by validation requests; without any of an algorithm,
    the best.
    """
    summary = read_json(directory / "summary.json")
    trained = [policy for policy in learned if policy in ALGORITHMS]
    return best_policy(summary, training, trained or learned)


def _measure_means(
    directories: Sequence[Path],
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """scope → policy → retriever → measure → mean, of greedy answers (scope ``sampled``: of sampled
    ones, in pools).
    """
    frames = []
    for directory in directories:
        scope = (
            pl.when(pl.col("decoding") == "sampled")
            .then(pl.lit("sampled"))
            .otherwise(pl.col("scope"))
        )
        frames.append(
            pl.scan_parquet(directory / "evaluation.parquet", glob=False)
            .filter(pl.col("split") == "test")
            .group_by(scope.alias("scope"), "policy", "retriever")
            .agg(pl.col(MEASURES).mean())
            .collect(engine="streaming")
        )
    table = pl.concat(frames).group_by("scope", "policy", "retriever").agg(pl.col(MEASURES).mean())
    out: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for row in table.sort("scope", "policy", "retriever").iter_rows(named=True):
        place = out.setdefault(row["scope"], {}).setdefault(row["policy"], {})
        place[row["retriever"]] = {name: row[name] for name in MEASURES}
    return out


def _slice_rows(directory: Path, wide: pl.DataFrame) -> pl.DataFrame:
    frame = pl.read_parquet(read_table(directory, "slices.parquet"), glob=False)
    joined = wide.select("request_id").join(
        frame, on="request_id", how="left", maintain_order="left"
    )
    if joined["group"].null_count():
        raise InputError(
            directory / "slices.parquet",
            "request_id",
            "misses evaluated requests",
            "evaluate again",
        )
    return joined


def _slices(
    rows: pl.DataFrame,
    values_SPR: np.ndarray,
    policies: Sequence[str],
    best: int,
    reference: int,
    groups_R: np.ndarray | None,
    resamples: int,
    seed: int,
) -> list[Slice]:
    """Training-retriever means by slice. A property that is the same for all requests says nothing
    and is left out.
    """
    out = []
    for name in SLICES:
        column = rows[name].to_numpy()
        found = in_order(set(column))
        if len(found) < 2:
            continue
        for value in found:
            here = column == value
            gains_SR1 = (values_SPR[:, best] - values_SPR[:, reference])[:, here, None]
            groups = None if groups_R is None else groups_R[here]
            draws = bootstrap_seed_means(gains_SR1, min(resamples, 2000), seed, groups)
            means = {
                policy: float(values_SPR[:, p, here].mean()) for p, policy in enumerate(policies)
            }
            gain = percentile_interval(float(gains_SR1.mean()), draws[:, 0])
            out.append(Slice(name, value, int(here.sum()), means, gain))
    return out
