"""Reading an evaluation's files: per-request values of greedy answers, and the means of all
measures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ospo.errors import InputError
from ospo.evaluation.control import SWAPPED
from ospo.evaluation.guard import GUARDED_FILE
from ospo.evaluation.measures import MEASURES
from ospo.evaluation.selection import ordered

MEASURE = "ndcg@10"
_HELD_OUT = (pl.col("split") == "test") & (pl.col("scope") == "pool")
# What makes the tables: greedy answers to test requests, ranked within the request's pool.
TABLE = _HELD_OUT & (pl.col("decoding") == "greedy")


@dataclass(frozen=True)
class Measures:
    """Means of all ``MEASURES`` over test requests and seeds.

    ``means``: (scope, policy, retriever) → (len(MEASURES),) float64. Scope ``pool`` and
    ``catalogue`` hold greedy answers, ``sampled`` sampled ones, ``swapped`` those of the control,
    ranked within pools.
    """

    means: Mapping[tuple[str, str, str], np.ndarray]

    def value(self, scope: str, policy: str, retriever: str, measure: str) -> float:
        """One mean. Raises KeyError where it was not evaluated."""
        return float(self.means[scope, policy, retriever][MEASURES.index(measure)])

    def policies(self, scope: str) -> list[str]:
        """The policies that a scope holds, in the tables' order; none where it was not
        evaluated.
        """
        return ordered({policy: None for here, policy, _ in self.means if here == scope})


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


def has_control(directory: Path) -> bool:
    """Whether an evaluation holds swapped answers: not before there was a control, or where rules
    alone were evaluated.
    """
    table = pl.scan_parquet(read_table(directory, "evaluation.parquet"), glob=False)
    return bool(table.select((pl.col("decoding") == SWAPPED).any()).collect().item())


def guarded_policies(directory: Path) -> list[str]:
    """The policies of an evaluation that have a guard; none in those made before there were any."""
    if not (directory / GUARDED_FILE).is_file():
        return []
    table = pl.read_parquet(read_table(directory, GUARDED_FILE), columns=["policy"], glob=False)
    return ordered(table["policy"].unique(maintain_order=True).to_list())


def guarded_share(directories: Sequence[Path], policy: str) -> float:
    """Share of test requests (over seeds) whose answer the policy's guard uses."""
    tables = [pl.read_parquet(read_table(d, GUARDED_FILE), glob=False) for d in directories]
    return float(pl.concat(tables).filter(policy=policy)["used"].cast(pl.Float64).to_numpy().mean())


def load_values(
    directories: Sequence[Path],
    measure: str = MEASURE,
    decoding: str = "greedy",
    table_file: str = "evaluation.parquet",
) -> tuple[pl.DataFrame, list[str], list[str]]:
    """Per-request values of greedy answers within pools on the test split. ``decoding``: another
    one than greedy, ``swapped`` for the control, ``guarded`` in the table of guards.

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
        file = read_table(directory, table_file)
        table = pl.scan_parquet(file, glob=False)
        if "seed" not in table.collect_schema():  # evaluations made before there were seeds
            table = table.with_columns(seed=pl.lit(0, pl.Int32))
        frame = (
            table.filter(_HELD_OUT & (pl.col("decoding") == decoding))
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
    """One row per request, one column per (seed, policy, retriever)."""
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


def measure_means(directories: Sequence[Path]) -> Measures:
    """Means of every measure over the evaluations in ``directories``. Raises InputError where one
    was written before there was such a measure.
    """
    frames = []
    for directory in directories:
        file = read_table(directory, "evaluation.parquet")
        table = pl.scan_parquet(file, glob=False)
        if missing := [name for name in MEASURES if name not in table.collect_schema()]:
            raise InputError(
                file, missing[0], "column is missing", "run the evaluation again (ospo evaluate)"
            )
        decoding = pl.col("decoding")
        scope = pl.when(decoding == "greedy").then(pl.col("scope")).otherwise(decoding)
        frames.append(
            table.filter(pl.col("split") == "test")
            .group_by(scope.alias("scope"), "policy", "retriever")
            .agg(pl.col(MEASURES).mean())
            .collect(engine="streaming")
        )
    keys = ["scope", "policy", "retriever"]
    means = pl.concat(frames).group_by(keys).agg(pl.col(MEASURES).mean()).sort(keys)
    # Streamed sums are added in any order: without their last digits a page is always the same.
    values = means.select(MEASURES).to_numpy().round(12)
    return Measures(dict(zip(means.select(keys).rows(), values, strict=True)))


def slice_rows(directory: Path, wide: pl.DataFrame) -> pl.DataFrame:
    """The slices of the requests in ``wide``, in its order (``slices.parquet``). Raises InputError
    where a request is missing there.
    """
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


def shoppers(slices: pl.DataFrame) -> np.ndarray | None:
    """Whose each request is (R,), the unit of resampling; None where no shopper has two of them."""
    groups = slices["group"]
    return groups.to_numpy() if groups.n_unique() < len(groups) else None
