"""``ospo data check``: what a folder holds, what preparation would do with it, and what is
wrong.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from ospo.config import FORMATS, Config, DataSet, EsciData, HmData
from ospo.data.dataset import load_prepared
from ospo.data.formats import format_of, format_of_folder
from ospo.data.item_places import Places, prepared_places, unwritten_places
from ospo.data.item_side import LEAST, LIMIT, item_side
from ospo.data.raw_csv import csv_columns, read_csv
from ospo.data.raw_files import collect
from ospo.data.raw_parquet import parquet_columns, scan_parquet
from ospo.data.schemas import (
    ESCI_EXAMPLES,
    ESCI_EXAMPLES_NEEDED,
    ESCI_EXAMPLES_SCHEMA,
    ESCI_PRODUCTS,
    ESCI_PRODUCTS_NEEDED,
    ESCI_PRODUCTS_SCHEMA,
    HM_ARTICLES,
    HM_ARTICLES_COLUMNS,
    HM_ARTICLES_NEEDED,
    HM_CUSTOMERS,
    HM_CUSTOMERS_COLUMNS,
    HM_CUSTOMERS_NEEDED,
    HM_TRANSACTIONS,
    HM_TRANSACTIONS_COLUMNS,
    HM_TRANSACTIONS_NEEDED,
    PREPARED,
    SPLITS,
)
from ospo.data.source import Source
from ospo.data.stats import FORMS, REASONS, Stats
from ospo.data.text import text_codes
from ospo.errors import InputError
from ospo.reports.categories import PassingPools, bare_pools, categories_of
from ospo.reports.wording import shown

# File → official columns, columns that are needed.
_RAW = {
    EsciData.tag(): {
        ESCI_EXAMPLES: (list(ESCI_EXAMPLES_SCHEMA), ESCI_EXAMPLES_NEEDED),
        ESCI_PRODUCTS: (list(ESCI_PRODUCTS_SCHEMA), ESCI_PRODUCTS_NEEDED),
    },
    HmData.tag(): {
        HM_ARTICLES: (HM_ARTICLES_COLUMNS, HM_ARTICLES_NEEDED),
        HM_TRANSACTIONS: (HM_TRANSACTIONS_COLUMNS, HM_TRANSACTIONS_NEEDED),
        HM_CUSTOMERS: (HM_CUSTOMERS_COLUMNS, HM_CUSTOMERS_NEEDED),
    },
}


@dataclass
class Check:
    """What a folder holds. kind: "raw" and a format, "prepared", "vectors" or "unknown"; warnings,
    problems: one line each. With a problem the folder cannot be used; a warning is about what
    figures on it would mean.
    """

    kind: str
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_folder(folder: str | Path, config: Config) -> Check:
    """Look at a folder of raw or prepared files, without writing anything.

    Raw files are prepared in memory with ``config``; what that would read, keep and drop stands in
    ``lines``. Raises InputError where ``folder`` is no folder.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(
            folder, "", "is a file", f"name the folder that it lies in: {folder.parent}"
        )
    if not folder.is_dir():
        raise InputError(folder, "", "folder not found", "name a folder of raw or prepared files")
    if section := format_of_folder(folder):
        return _check_raw(_source(folder, section, config))
    if any((folder / f"{name}.parquet").exists() for name in PREPARED):
        return _check_prepared(folder)
    if stored := sorted(folder.glob("*.safetensors")):
        return _check_vectors(stored)
    check = Check("unknown")
    expected = [", ".join(files) for files in _RAW.values()]
    tables = ", ".join(f"{name}.parquet" for name in PREPARED)
    check.problems.append(
        f"{folder}: holds neither ESCI ({expected[0]}) nor H&M ({expected[1]}) nor another format "
        f"({', '.join(list(FORMATS)[2:])}) nor prepared data ({tables})"
    )
    return check


def _source(folder: Path, section: type[DataSet], config: Config) -> Source[Any]:
    """The data set of params.yaml that lies in ``folder``; else the first of the same format, else
    the format's defaults.
    """
    sets = [(name, options) for name, options in config.data.sets.items()]
    own = [pair for pair in sets if Path(pair[1].raw).resolve() == folder.resolve()]
    alike = [pair for pair in sets if type(pair[1]) is section]
    default = ("NAME", section.model_validate({"format": section.tag(), "raw": str(folder)}))
    name, options = [*own, *alike, default][0]
    return Source(name, folder, options, config)


def _check_raw(source: Source[Any]) -> Check:
    kind, folder = source.options.format, source.raw
    check = Check(f"raw {kind}")
    for name, (official, needed) in _RAW.get(kind, {}).items():
        _check_file(folder / name, official, needed, check)
    if check.problems:
        return check
    stats = Stats(used={"language": source.options.spoken})
    try:
        prepared = format_of(source.options).read(source, stats)
    except InputError as error:
        check.problems.append(str(error))
    else:
        check.lines.append(
            f"would give {len(prepared.request_ids):,} requests over {len(prepared.catalogue):,} "
            "items"
        )
        passing = PassingPools(prepared)
        places = unwritten_places(replace(prepared, pool_chunks=passing), source.options.spoken)
        categories = passing.categories()
        check.lines += categories.lines
        check.warnings += categories.warnings
        _check_item_side(prepared.catalogue, places, check)
    check.lines += [f"read {count:,} {name}" for name, count in stats.read.items()]
    check.lines += [f"read {count:,} {FORMS[form]}" for form, count in stats.read_as.items()]
    check.lines += [
        f"left out {count:,}: {REASONS[reason]}" for reason, count in stats.dropped.items() if count
    ]
    days, asked = (stats.used.get(name, 0) for name in ("holdout_days", "holdout_days_asked"))
    if days != asked:
        check.lines.append(
            f"the last {days} days are held out: {asked} leave too few validation or test requests"
        )
    return check


def _check_file(file: Path, official: list[str], needed: list[str], check: Check) -> None:
    if not file.is_file():
        check.problems.append(str(InputError(file, "", "file not found", f"put {file.name} there")))
        return
    try:
        if file.suffix == ".parquet":
            schema = ESCI_EXAMPLES_SCHEMA if file.name == ESCI_EXAMPLES else ESCI_PRODUCTS_SCHEMA
            frame = scan_parquet(file, needed, schema, Stats())
            columns = parquet_columns(file)
            rows = int(collect(file, "parquet", frame.select(pl.len())).item())
        else:
            columns = csv_columns(file)
            rows = len(read_csv(file, needed, Stats()))
    except InputError as error:
        check.problems.append(str(error))
        return
    check.lines.append(
        f"{file.name}: {file.stat().st_size:,} bytes, {rows:,} rows, {len(columns)} columns"
    )
    if missing := [name for name in official if name not in columns]:
        check.lines.append(
            f"{file.name}: official columns that are missing but not needed: {', '.join(missing)}"
        )
    if extra := [name for name in columns if name not in official]:
        check.lines.append(
            f"{file.name}: columns that are not official and not read: {', '.join(extra)[:300]}"
        )


def _check_vectors(files: list[Path]) -> Check:
    from ospo.retrieval.vectors import load_vectors, stored_fingerprint, stored_ids

    check = Check("vectors")
    for file in files:
        try:
            vectors = load_vectors(file, stored_fingerprint(file), len(stored_ids(file)))
        except InputError as error:
            check.problems.append(str(error))
        else:
            assert vectors is not None
            check.lines.append(
                f"{file.name}: {len(vectors):,} items' vectors of {vectors.shape[1]} dimensions"
            )
    return check


def _check_prepared(folder: Path) -> Check:
    check = Check("prepared")
    try:
        data = load_prepared(folder)
    except InputError as error:
        check.problems.append(str(error))
        return check
    places = (data.pools_RP >= 0).sum(axis=1)
    check.lines += [
        f"{len(data.item_ids):,} items",
        f"{len(data.requests):,} requests: "
        + ", ".join(f"{len(data.rows(split)):,} {split}" for split in SPLITS),
        f"pools of {places.min()} to {places.max()} items, "
        f"{(data.gains_RP > 0).sum(axis=1).mean():.1f} relevant",
    ]
    codes = text_codes(data.catalogue["category"])[0]
    bare = bare_pools(codes, data.pools_RP, data.gains_RP > 0)
    categories = categories_of(data.catalogue, bare, len(data.requests))
    check.lines += categories.lines
    check.warnings += categories.warnings
    check.problems += [
        f"{folder}: no {split} request" for split in SPLITS if not len(data.rows(split))
    ]
    _check_item_side(data.catalogue, prepared_places(data), check)
    return check


def _check_item_side(catalogue: pl.DataFrame, places: Places, check: Check) -> None:
    """How well relevant items can be told from their pools by what they are, without a request."""
    found = item_side(catalogue, places)
    if found is None:
        check.lines.append(
            f"fewer than {LEAST} shoppers or queries: too few to say how well relevant items can "
            "be told without the request"
        )
        return
    telling = ", ".join(f"{shown(t.feature, 60)} {t.auc:.2f}" for t in found.telling)
    check.lines.append(
        f"without the request, relevant items are told from the rest of their pools with AUC "
        f"{found.auc:.2f} ± {found.error:.2f} (0.50: not at all; {found.requests:,} requests)"
        + (f"; most telling: {telling}" if telling else "")
    )
    if found.suspicious:
        check.warnings.append(
            f"relevant items look different from the items beside them (AUC {found.auc:.2f}, above "
            f"{LIMIT:.2f}): a policy may gain by writing what they look like, whatever the request "
            "is; read the evaluation's control, and see docs/data.md (The item side)"
        )
