"""The last step of preparation, the same for both datasets: splits, ordered tables, files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ospo.config import Config
from ospo.data.hashing import assign_split
from ospo.data.schemas import PREPARED, SPLITS, check_prepared
from ospo.data.stats import Stats
from ospo.files import write_json

_COMPRESSION_LEVEL = 3


@dataclass(frozen=True)
class Prepared:
    """The prepared tables, each sorted by its ids. pools_RP: (R, P) catalogue rows, -1 padding at the end."""

    catalogue: pl.DataFrame
    requests: pl.DataFrame
    qrels: pl.DataFrame
    pools_RP: np.ndarray


def finish(
    catalogue: pl.DataFrame, requests: pl.DataFrame, qrels: pl.DataFrame, pools_RP: np.ndarray, config: Config
) -> Prepared:
    """Turn ``split_key`` (where there is no ``split`` yet) into splits and put columns in the contract's order."""
    if "split" not in requests.columns:
        shares = config.data.split
        split = assign_split(requests["split_key"], shares.validation, shares.test, config.seed)
        requests = requests.with_columns(split)
    return Prepared(
        catalogue=catalogue.select(list(PREPARED["catalogue"])),
        requests=requests.select(list(PREPARED["requests"])),
        qrels=qrels.select(list(PREPARED["qrels"])),
        pools_RP=pools_RP,
    )


def pools_table(prepared: Prepared) -> pl.DataFrame:
    """pools.parquet's table: item ids in place of catalogue rows, padding left out."""
    pools = prepared.pools_RP
    lengths = (pools >= 0).sum(axis=1)
    items = prepared.catalogue["item_id"].gather(pools[pools >= 0])
    row = np.repeat(np.arange(len(pools)), lengths)
    long = pl.DataFrame({"row": row, "item_ids": items})
    lists = long.group_by("row", maintain_order=True).agg("item_ids")
    return pl.DataFrame({"request_id": prepared.requests["request_id"], "item_ids": lists["item_ids"]})


def write_prepared(prepared: Prepared, directory: Path, stats: Stats) -> None:
    """Write the four tables and stats.json into ``directory``, each held to its contract first."""
    tables = {
        "catalogue": prepared.catalogue,
        "requests": prepared.requests,
        "qrels": prepared.qrels,
        "pools": pools_table(prepared),
    }
    for name, table in tables.items():
        file = directory / f"{name}.parquet"
        check_prepared(file, table, name)
        table.write_parquet(file, compression="zstd", compression_level=_COMPRESSION_LEVEL)
    counts = dict(prepared.requests["split"].value_counts().iter_rows())
    stats.kept |= {
        "items": len(prepared.catalogue),
        "requests": len(prepared.requests),
        **{split: counts.get(split, 0) for split in SPLITS},
        "judgements": len(prepared.qrels),
        "relevant": int((prepared.qrels["gain"] > 0).sum()),
        "pool_places": int((prepared.pools_RP >= 0).sum()),
    }
    write_json(directory / "stats.json", stats.as_dict())
