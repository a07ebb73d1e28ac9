"""Prepared data of one dataset in memory, row-indexed: what training and evaluation read."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from ospo.data.schemas import PREPARED, SPLITS, check_prepared
from ospo.errors import InputError

_AGAIN = "prepare the dataset again (ospo prepare)"


@dataclass(frozen=True)
class Purchase:
    """An earlier purchase, as the policy sees it."""

    item_id: str
    name: str
    type: str
    colour: str


@dataclass(frozen=True)
class Request:
    """A shopper's request. ``history`` is oldest first, empty for ESCI; ``customer_id`` is "" for ESCI."""

    request_id: str
    split: str
    query: str
    customer_id: str
    history: tuple[Purchase, ...]
    target_id: str


@dataclass(frozen=True, eq=False)
class PreparedData:
    """Everything of one dataset.

    catalogue: row order is the item row index. requests: row order is the request row index.
    pools_RP: (R, P) int32 catalogue rows; shorter pools are padded at the end with -1.
    gains_RP: (R, P) float32 aligned with pools_RP; 0 where not relevant and in padding.
    """

    name: str
    directory: Path
    catalogue: pl.DataFrame
    requests: list[Request]
    pools_RP: np.ndarray
    gains_RP: np.ndarray

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids in catalogue row order."""
        return self.catalogue["item_id"].to_list()

    @cached_property
    def item_texts(self) -> list[str]:
        """The text that retrievers index, in catalogue row order."""
        return self.catalogue["text"].to_list()

    @cached_property
    def _rows_by_split(self) -> dict[str, np.ndarray]:
        splits = np.array([request.split for request in self.requests])
        return {split: np.flatnonzero(splits == split) for split in SPLITS}

    @cached_property
    def _row_by_id(self) -> dict[str, int]:
        return {request.request_id: row for row, request in enumerate(self.requests)}

    def rows(self, split: str) -> np.ndarray:
        """Request rows of a split (train, validation or test), ascending. Raises KeyError for another name."""
        return self._rows_by_split[split]

    def row_of(self, request_id: str) -> int:
        """Row of a request. Raises KeyError where there is none."""
        return self._row_by_id[request_id]


def read_prepared_table(directory: Path, table: str) -> pl.DataFrame:
    """One prepared table, held to its contract. Raises InputError."""
    file = directory / f"{table}.parquet"
    if not file.is_file():
        raise InputError(file, "", "file not found", _AGAIN)
    try:
        frame = pl.read_parquet(file)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        problem = str(error).splitlines()[0][:200]
        raise InputError(file, "", f"is not a readable parquet file ({problem})", _AGAIN) from None
    check_prepared(file, frame, table)
    return frame.select(list(PREPARED[table]))


def load_prepared(directory: str | Path) -> PreparedData:
    """Load a prepared dataset and check it.

    Raises InputError for a missing or corrupt table, an empty catalogue, a duplicate item or request, an unknown
    split, a pool or judgement naming an unknown item, a request without relevant items, and a relevant item
    that is missing from its pool.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(directory, "", "folder not found", "prepare the dataset first (ospo prepare)")
    catalogue, requests, qrels, pools = (read_prepared_table(directory, name) for name in PREPARED)
    _check_ids(directory, catalogue, requests)
    pools_RP, gains_RP = _pool_matrices(directory, catalogue, requests, qrels, pools)
    return PreparedData(
        name=directory.name,
        directory=directory,
        catalogue=catalogue,
        requests=_request_objects(requests),
        pools_RP=pools_RP,
        gains_RP=gains_RP,
    )


def _check_ids(directory: Path, catalogue: pl.DataFrame, requests: pl.DataFrame) -> None:
    for table, frame, column in (("catalogue", catalogue, "item_id"), ("requests", requests, "request_id")):
        file = directory / f"{table}.parquet"
        if frame.is_empty():
            raise InputError(file, "", "is empty", _AGAIN)
        if frame[column].n_unique() < len(frame):
            twice = frame.filter(pl.col(column).is_duplicated())[column][0]
            raise InputError(file, column, f"{twice!r} appears twice", _AGAIN)
    unknown = requests.filter(~pl.col("split").is_in(SPLITS))
    if len(unknown):
        problem = f"unknown split {unknown['split'][0]!r}"
        raise InputError(directory / "requests.parquet", "split", problem, _AGAIN)


def _pool_matrices(
    directory: Path, catalogue: pl.DataFrame, requests: pl.DataFrame, qrels: pl.DataFrame, pools: pl.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    pools_file, qrels_file = directory / "pools.parquet", directory / "qrels.parquet"
    items = catalogue.select("item_id", item=pl.int_range(pl.len(), dtype=pl.Int32))
    rows = requests.select("request_id", row=pl.int_range(pl.len(), dtype=pl.Int32))
    if pools["request_id"].to_list() != requests["request_id"].to_list():
        raise InputError(pools_file, "request_id", "does not match requests.parquet row by row", _AGAIN)
    if len(empty := pools.filter(pl.col("item_ids").list.len() == 0)):
        raise InputError(pools_file, "item_ids", f"the pool of request {empty['request_id'][0]!r} is empty", _AGAIN)
    long = (
        pools.select(row=pl.int_range(pl.len(), dtype=pl.Int32), item_id="item_ids")
        .explode("item_id")
        .with_columns(position=pl.int_range(pl.len(), dtype=pl.Int32).over("row"))
        .join(items, on="item_id", how="left", maintain_order="left")
    )
    if long["item"].null_count():
        unknown = long.filter(pl.col("item").is_null())["item_id"][0]
        raise InputError(pools_file, "item_ids", f"item {unknown!r} is not in catalogue.parquet", _AGAIN)
    pools_RP = np.full((len(requests), int(long["position"].max()) + 1), -1, dtype=np.int32)  # type: ignore[arg-type]
    gains_RP = np.zeros(pools_RP.shape, dtype=np.float32)
    pools_RP[long["row"], long["position"]] = long["item"]

    relevant = qrels.filter(pl.col("gain") > 0).join(rows, on="request_id", how="left", maintain_order="left")
    if relevant["row"].null_count():
        unknown = relevant.filter(pl.col("row").is_null())["request_id"][0]
        raise InputError(qrels_file, "request_id", f"{unknown!r} is not in requests.parquet", _AGAIN)
    placed = relevant.join(long.select("row", "item_id", "position"), on=["row", "item_id"], how="left")
    if placed["position"].null_count():
        lost = placed.filter(pl.col("position").is_null()).sort("request_id", "item_id").row(0, named=True)
        problem = f"relevant item {lost['item_id']!r} of request {lost['request_id']!r} is not in its pool"
        raise InputError(pools_file, "item_ids", problem, _AGAIN)
    gains_RP[placed["row"], placed["position"]] = placed["gain"]
    without = np.flatnonzero(gains_RP.max(axis=1) <= 0)
    if len(without):
        name = requests["request_id"][int(without[0])]
        raise InputError(qrels_file, "gain", f"request {name!r} has no relevant item", _AGAIN)
    return pools_RP, gains_RP


def _request_objects(requests: pl.DataFrame) -> list[Request]:
    return [
        Request(**{**row, "history": tuple(Purchase(**purchase) for purchase in row["history"])})
        for row in requests.iter_rows(named=True)
    ]
