"""Prepared data of one dataset in memory, row-indexed: what training and evaluation read."""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import polars as pl

from ospo.config.languages import LANGUAGES, OF_LOCALE
from ospo.data.request import Purchase, Request
from ospo.data.schemas import PREPARED, SPLITS, check_prepared
from ospo.errors import InputError
from ospo.files import read_json

_AGAIN = "prepare the dataset again (ospo prepare)"
_CHUNK = 1 << 16
_READ_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


class Requests(Sequence[Request]):
    """Requests over a table, made when they are asked for: millions of objects would not fit in
    memory.
    """

    def __init__(
        self, frame: pl.DataFrame, hits: Mapping[int, tuple[str, ...]] | None = None
    ) -> None:
        """``hits``: request row → ``Request.hits``, none for rows that it lacks."""
        self.frame, self.hits = frame, hits or {}
        self._made: dict[int, Request] = {}

    @classmethod
    def of(cls, requests: Iterable[Request]) -> "Requests":
        """A table of the given requests."""
        made = [asdict(request) for request in requests]
        columns = PREPARED["requests"]
        return cls(pl.DataFrame([{c: row[c] for c in columns} for row in made], schema=columns))

    def __len__(self) -> int:
        return len(self.frame)

    @overload
    def __getitem__(self, row: int) -> Request: ...
    @overload
    def __getitem__(self, row: slice) -> list[Request]: ...
    def __getitem__(self, row: int | slice) -> Request | list[Request]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        row = operator.index(row)
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"request row {row} of {len(self)}")
        if row not in self._made:
            if len(self._made) >= _CHUNK:
                self._made.clear()
            self._made[row] = _request(self.frame.row(row, named=True), self.hits.get(row, ()))
        return self._made[row]

    def __iter__(self) -> Iterator[Request]:
        rows = enumerate(self.frame.iter_rows(named=True, buffer_size=4096))
        return (_request(row, self.hits.get(number, ())) for number, row in rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Requests) and self.frame.equals(other.frame)

    __hash__ = None  # type: ignore[assignment]


def prepared_language(directory: Path, unknown: str = "en") -> str:
    """Code of the language of a prepared data set's texts, as stats.json records it; ``unknown``
    where it does not. Raises InputError where stats.json is damaged or names no such language.
    """
    file = directory / "stats.json"
    if not file.is_file():
        return unknown
    try:
        used = read_json(file).get("used", {})
        language = used.get("language") or OF_LOCALE.get(used.get("locale", ""), unknown)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(file, "used", f"is not readable ({error})", _AGAIN) from None
    if language not in LANGUAGES:
        raise InputError(file, "used.language", f"unknown language {language!r:.40}", _AGAIN)
    return str(language)


def _request(row: dict, hits: tuple[str, ...]) -> Request:
    history = tuple(Purchase(**purchase) for purchase in row["history"])
    return Request(**{**row, "history": history}, hits=hits)


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
    requests: Requests
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
    def language(self) -> str:
        """Language of the texts; see ``prepared_language``."""
        return prepared_language(self.directory)

    @cached_property
    def _rows_by_split(self) -> dict[str, np.ndarray]:
        splits = self.requests.frame["split"].to_numpy()
        return {split: np.flatnonzero(splits == split) for split in SPLITS}

    @cached_property
    def _row_by_id(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.requests.frame["request_id"])}

    def rows(self, split: str) -> np.ndarray:
        """Request rows of a split (train, validation or test), ascending. Raises KeyError for
        another name.
        """
        return self._rows_by_split[split]

    def row_of(self, request_id: str) -> int:
        """Row of a request. Raises KeyError where there is none."""
        return self._row_by_id[request_id]


def read_prepared_table(directory: Path, table: str) -> pl.DataFrame:
    """One prepared table, held to its contract. Raises InputError."""
    file = _existing(directory, table)
    try:
        frame = pl.read_parquet(file, glob=False)
    except _READ_ERRORS as error:
        raise _unreadable(file, error) from None
    check_prepared(file, frame, table)
    return frame.select(list(PREPARED[table]))


def _existing(directory: Path, table: str) -> Path:
    file = directory / f"{table}.parquet"
    if not file.is_file():
        raise InputError(file, "", "file not found", _AGAIN)
    return file


def _unreadable(file: Path, error: BaseException) -> InputError:
    problem = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return InputError(file, "", f"is not a readable parquet file ({problem})", _AGAIN)


def pool_items(directory: Path) -> pl.Series:
    """Ids of the items that stand in a pool, sorted; pools.parquet is streamed. Raises
    InputError.
    """
    file = _existing(directory, "pools")
    try:
        frame = pl.scan_parquet(file, glob=False).select(
            item_id=pl.col("item_ids").explode().unique()
        )
        return frame.collect(engine="streaming")["item_id"].sort()
    except _READ_ERRORS as error:
        raise _unreadable(file, error) from None


def _pool_tables(directory: Path) -> Iterator[pl.DataFrame]:
    """pools.parquet in chunks, each held to the contract."""
    file = _existing(directory, "pools")
    begin = 0
    while True:
        try:
            frame = pl.scan_parquet(file, glob=False).slice(begin, _CHUNK).collect()
        except _READ_ERRORS as error:
            raise _unreadable(file, error) from None
        check_prepared(file, frame, "pools")
        if frame.is_empty():
            return
        yield frame
        begin += _CHUNK


def load_prepared(directory: str | Path) -> PreparedData:
    """Load a prepared dataset and check it.

    Raises InputError for a missing or corrupt table, an empty catalogue, a duplicate item or
    request, an unknown split, a pool or judgement naming an unknown item, a gain that is NaN or
    infinite, a request without relevant items, and a relevant item that is missing from its pool.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(
            directory, "", "folder not found", f"run `dvc repro vectors@{directory.name}`"
        )
    catalogue, requests, qrels = (
        read_prepared_table(directory, name) for name in ("catalogue", "requests", "qrels")
    )
    _check_ids(directory, catalogue, requests)
    pools_RP = _pools(directory, catalogue, requests)
    gains_RP = _gains(directory, catalogue, requests, qrels, pools_RP)
    return PreparedData(
        name=directory.name,
        directory=directory,
        catalogue=catalogue,
        requests=Requests(requests),
        pools_RP=pools_RP,
        gains_RP=gains_RP,
    )


def _check_ids(directory: Path, catalogue: pl.DataFrame, requests: pl.DataFrame) -> None:
    for table, frame, column in (
        ("catalogue", catalogue, "item_id"),
        ("requests", requests, "request_id"),
    ):
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


def _pools(directory: Path, catalogue: pl.DataFrame, requests: pl.DataFrame) -> np.ndarray:
    """(R, P) catalogue rows of the pools."""
    file = directory / "pools.parquet"
    items = catalogue.select("item_id", item=pl.int_range(pl.len(), dtype=pl.Int32))
    pools_RP = np.full((len(requests), 1), -1, dtype=np.int32)
    begin = 0
    for table in _pool_tables(directory):
        if (
            table["request_id"].to_list()
            != requests["request_id"][begin : begin + len(table)].to_list()
        ):
            raise InputError(
                file, "request_id", "does not match requests.parquet row by row", _AGAIN
            )
        lengths = table["item_ids"].list.len().to_numpy().astype(np.int64)
        if not lengths.all():
            name = table["request_id"][int(np.argmin(lengths))]
            raise InputError(file, "item_ids", f"the pool of request {name!r} is empty", _AGAIN)
        long = table.select(pl.col("item_ids").explode().alias("item_id"))
        long = long.join(items, on="item_id", how="left", maintain_order="left")
        if long["item"].null_count():
            unknown = long.filter(pl.col("item").is_null())["item_id"][0]
            raise InputError(
                file, "item_ids", f"item {unknown!r} is not in catalogue.parquet", _AGAIN
            )
        if (wider := int(lengths.max()) - pools_RP.shape[1]) > 0:
            pools_RP = np.pad(pools_RP, ((0, 0), (0, wider)), constant_values=-1)
        row = np.repeat(np.arange(len(table)), lengths)
        place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        pools_RP[begin + row, place] = long["item"].to_numpy()
        begin += len(table)
    if begin != len(requests):
        raise InputError(file, "request_id", "does not match requests.parquet row by row", _AGAIN)
    return pools_RP


def _gains(
    directory: Path,
    catalogue: pl.DataFrame,
    requests: pl.DataFrame,
    qrels: pl.DataFrame,
    pools_RP: np.ndarray,
) -> np.ndarray:
    """(R, P) gains of the items in the pools."""
    file = directory / "qrels.parquet"
    if not qrels["gain"].is_finite().all():
        odd = qrels.filter(~pl.col("gain").is_finite()).row(0, named=True)
        problem = f"is {odd['gain']} for item {odd['item_id']!r} of request {odd['request_id']!r}"
        raise InputError(file, "gain", problem, _AGAIN)
    items = catalogue.select("item_id", item=pl.int_range(pl.len(), dtype=pl.Int32))
    rows = requests.select("request_id", row=pl.int_range(pl.len(), dtype=pl.Int32))
    relevant = (
        qrels.filter(pl.col("gain") > 0)
        .join(rows, on="request_id", how="left", maintain_order="left")
        .join(items, on="item_id", how="left", maintain_order="left")
    )
    if relevant["row"].null_count():
        unknown = relevant.filter(pl.col("row").is_null())["request_id"][0]
        raise InputError(file, "request_id", f"{unknown!r} is not in requests.parquet", _AGAIN)
    gains_RP = np.zeros(pools_RP.shape, dtype=np.float32)
    item = relevant["item"].fill_null(-2).to_numpy()
    row, gain = relevant["row"].to_numpy(), relevant["gain"].to_numpy()
    for begin in range(0, len(row), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        found = pools_RP[row[part]] == item[part, None]
        place = found.argmax(axis=1)
        lost = np.flatnonzero(~found[np.arange(len(place)), place])
        if len(lost):
            first = relevant.row(begin + int(lost[0]), named=True)
            item, request = first["item_id"], first["request_id"]
            problem = f"relevant item {item!r} of request {request!r} is not in its pool"
            raise InputError(directory / "pools.parquet", "item_ids", problem, _AGAIN)
        gains_RP[row[part], place] = gain[part]
    without = np.flatnonzero(gains_RP.max(axis=1) <= 0)
    if len(without):
        name = requests["request_id"][int(without[0])]
        raise InputError(file, "gain", f"request {name!r} has no relevant item", _AGAIN)
    return gains_RP
