"""The formats of raw files: how each is read, which files it needs, and how a folder shows it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ospo.config import (
    BeirData,
    ClicksData,
    DataSet,
    EsciData,
    HmData,
    TrecData,
    UbiData,
)
from ospo.data.beir import CORPUS, QRELS, QUERIES, prepare_beir
from ospo.data.click_log import prepare_clicks
from ospo.data.esci import prepare_esci
from ospo.data.hm import prepare_hm
from ospo.data.raw_files import raw_folder
from ospo.data.schemas import (
    ESCI_EXAMPLES,
    ESCI_PRODUCTS,
    HM_ARTICLES,
    HM_CUSTOMERS,
    HM_TRANSACTIONS,
)
from ospo.data.source import Source
from ospo.data.stats import Stats
from ospo.data.trec import prepare_trec
from ospo.data.ubi import prepare_ubi
from ospo.data.writer import Prepared


@dataclass(frozen=True)
class Format:
    """read: the reader of its raw files. code: the modules of this package, up to three, that read
    this format and not every one. needs: names of the files that a data set's section asks
    for. marks: patterns of file names, of which one found in a folder shows the format.
    """

    read: Callable[[Source[Any], Stats], Prepared]
    code: tuple[str, ...]
    needs: Callable[[Any], tuple[str, ...]]
    marks: tuple[str, ...]


# In the order in which a folder is looked at: a log's folder holds a corpus too.
_FORMATS: dict[type[DataSet], Format] = {
    EsciData: Format(
        prepare_esci,
        ("esci.py", "raw_parquet.py"),
        lambda options: (ESCI_EXAMPLES, ESCI_PRODUCTS),
        (ESCI_EXAMPLES, ESCI_PRODUCTS),
    ),
    HmData: Format(
        prepare_hm,
        ("hm.py", "hm_files.py"),
        lambda options: (HM_ARTICLES, HM_TRANSACTIONS, HM_CUSTOMERS),
        (HM_ARTICLES, HM_TRANSACTIONS, HM_CUSTOMERS),
    ),
    UbiData: Format(
        prepare_ubi, ("ubi.py", "clicks.py"), lambda options: (options.documents,), ("*.ndjson",)
    ),
    ClicksData: Format(
        prepare_clicks,
        ("click_log.py", "ubi.py", "clicks.py"),
        lambda options: (options.documents, options.log),
        ("clicks.csv", "clicks.parquet"),
    ),
    TrecData: Format(
        prepare_trec,
        ("trec.py", "beir.py"),
        lambda options: (options.documents, options.topics, options.qrels),
        ("topics.tsv", "qrels.txt", "documents.jsonl", "documents.tsv"),
    ),
    BeirData: Format(
        prepare_beir,
        ("beir.py",),
        lambda options: (CORPUS, QUERIES),
        (CORPUS, QUERIES, f"{QRELS}/*.tsv"),
    ),
}


def format_of(options: DataSet) -> Format:
    """The format of a data set's section."""
    return _FORMATS[type(options)]


def format_of_folder(folder: Path) -> type[DataSet] | None:
    """The section of the format that a folder's files show; None where they show none."""
    for section, known in _FORMATS.items():
        if any(any(folder.glob(mark)) for mark in known.marks):
            return section
    return None


def require_files(name: str, options: DataSet) -> None:
    """Raise InputError where the folder of a data set, or a file that its format needs, is
    missing.
    """
    raw_folder(options.raw, f"data.{name}.raw", format_of(options).needs(options))
