"""The last step of preparation, the same for every data set: tables held to their contracts,
written in row groups.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ospo.data.schemas import PREPARED, SPLITS, check_prepared
from ospo.data.stats import Stats
from ospo.files import write_json

WRITE_ERRORS = (OSError, pl.exceptions.ComputeError, pa.ArrowException)
"""What a full disk or a forbidden folder raises, depending on the library that was writing."""
_LEVEL = 1  # level 3 takes twice the time for a fifth less size
_POOL_CHUNKS = 16


@dataclass(frozen=True)
class Prepared:
    """The prepared tables, each sorted by its ids; requests and pools come in chunks, in the order
    of request_ids.

    pool_chunks: (C, P) int32 catalogue rows, -1 padding at the end.
    """

    catalogue: pl.DataFrame
    request_ids: pl.Series
    request_chunks: Iterable[pl.DataFrame]
    qrels: pl.DataFrame
    pool_chunks: Iterator[np.ndarray]


def write_prepared(prepared: Prepared, directory: Path, stats: Stats) -> None:
    """Write the four tables and stats.json into ``directory``; requests and pools never stand in
    memory as a whole.
    """
    # Compressing the catalogue keeps one core busy and drawing pools (NumPy) the other.
    with ThreadPoolExecutor(1) as beside:
        catalogue = beside.submit(_write_table, directory, "catalogue", prepared.catalogue)
        _write_table(directory, "qrels", prepared.qrels)
        splits = _write_requests(prepared.request_chunks, directory / "requests.parquet")
        places = _write_pools(prepared, directory / "pools.parquet")
        catalogue.result()
    stats.kept |= {
        "items": len(prepared.catalogue),
        "requests": len(prepared.request_ids),
        **{split: splits.get(split, 0) for split in SPLITS},
        "judgements": len(prepared.qrels),
        "relevant": int((prepared.qrels["gain"] > 0).sum()),
        "pool_places": places,
    }
    write_json(directory / "stats.json", stats.as_dict())


def _write_table(directory: Path, name: str, table: pl.DataFrame) -> None:
    file = directory / f"{name}.parquet"
    further = [column for column in table.columns if column not in PREPARED[name]]
    # Attributes of one's own stand in the catalogue, behind the contract's columns.
    table = table.select([*PREPARED[name], *(sorted(further) if name == "catalogue" else [])])
    check_prepared(file, table, name)
    table.write_parquet(file, compression="zstd", compression_level=_LEVEL, row_group_size=1 << 16)


def _write_requests(chunks: Iterable[pl.DataFrame], file: Path) -> dict[str, int]:
    """Write requests.parquet, one row group per chunk; the number of requests of each split."""
    splits: dict[str, int] = {}
    writer: pq.ParquetWriter | None = None
    try:
        for chunk in chunks:
            chunk = chunk.select(list(PREPARED["requests"]))
            check_prepared(file, chunk, "requests")
            table = chunk.to_arrow()
            writer = writer or pq.ParquetWriter(
                file, table.schema, compression="zstd", compression_level=_LEVEL
            )
            writer.write_table(table)
            for split, count in chunk["split"].value_counts().iter_rows():
                splits[split] = splits.get(split, 0) + count
    finally:
        if writer:
            writer.close()
    return splits


def _write_pools(prepared: Prepared, file: Path) -> int:
    """Write pools.parquet: item ids in place of catalogue rows, padding left out. The number of
    places filled.
    """
    ids = prepared.catalogue["item_id"].to_arrow().cast(pa.string())
    requests = prepared.request_ids.to_arrow()
    strings = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([("request_id", requests.type), ("item_ids", pa.list_(strings))])
    begin = places = 0
    # The schema of Arrow is left out of the file: it would make readers see categories instead of
    # strings.
    with pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        compression_level=_LEVEL,
        store_schema=False,
        dictionary_pagesize_limit=1 << 25,
    ) as writer:
        while chunks := list(islice(prepared.pool_chunks, _POOL_CHUNKS)):
            pools = np.concatenate(chunks)
            filled = pools >= 0
            offsets = np.concatenate(([0], np.cumsum(filled.sum(axis=1)))).astype(np.int32)
            items = pools[filled]
            dictionary = ids
            if len(ids) > len(items):  # a large catalogue: only the items of this row group
                wanted = np.zeros(len(ids), dtype=bool)
                wanted[items] = True
                dictionary = ids.take(pa.array(np.flatnonzero(wanted)))
                items = (np.cumsum(wanted, dtype=np.int32) - 1)[items]
            values = pa.DictionaryArray.from_arrays(pa.array(items.astype(np.int32)), dictionary)
            lists = pa.ListArray.from_arrays(pa.array(offsets), values)
            writer.write_table(
                pa.table(
                    {"request_id": requests.slice(begin, len(pools)), "item_ids": lists},
                    schema=schema,
                )
            )
            begin += len(pools)
            places += len(items)
    return places
