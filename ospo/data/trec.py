"""TREC collections: documents (JSON lines or tsv), topics (id, tab, text), qrels (qid 0 docid rel).

Splits are drawn by seeded hash, as for ESCI: TREC's files have none.
"""

from pathlib import Path

import polars as pl

from ospo.config.formats import TrecData
from ospo.data.beir import add_query, qrels_frame, queries_frame
from ospo.data.collection import JUDGEMENTS, prepare_collection
from ospo.data.documents import read_catalogue
from ospo.data.json_lines import read_lines, whole_number
from ospo.data.source import Source
from ospo.data.stats import Stats
from ospo.data.writer import Prepared
from ospo.errors import InputError

_FIX_TOPICS = "write id and text per line, a tab between them"
_FIX_QRELS = "write query, 0, document and grade per line, a space between two"
_HEADER = {"qid", "query_id", "query-id", "id", "topic", "_id"}


def prepare_trec(source: Source[TrecData], stats: Stats) -> Prepared:
    """Read the collection and build the prepared tables. Raises InputError."""
    options = source.options
    if not source.raw.is_dir():
        fix = f"set {source.key('raw')} (or --raw) to the folder of its files"
        raise InputError(source.raw, "", "folder not found", fix)
    for option, name in (
        ("documents", options.documents),
        ("topics", options.topics),
        ("qrels", options.qrels),
    ):
        if not (source.raw / name).is_file():
            fix = f"put it there, or set {source.key(option)} to the file's name"
            raise InputError(source.raw / name, "", "file not found", fix)
    catalogue = read_catalogue(source.raw / options.documents, source, stats)
    queries = _read_topics(source.raw / options.topics, stats)
    qrels = source.raw / options.qrels
    judged = _read_qrels(qrels).join(queries, on="query_id", how="left", maintain_order="left")
    return prepare_collection(source, catalogue, judged.select(list(JUDGEMENTS)), qrels, stats)


def _read_topics(file: Path, stats: Stats) -> pl.DataFrame:
    found: dict[str, str] = {}
    for number, text in read_lines(file, _FIX_TOPICS):
        name, tab, query = text.partition("\t")
        if not tab:
            raise InputError(file, f"line {number}", f"has no tab: {text[:60]!r}", _FIX_TOPICS)
        if number == 1 and name.strip().lower() in _HEADER:
            continue
        add_query(file, number, name.strip(), query.replace("\t", " "), found)
    return queries_frame(found, stats)


def _read_qrels(file: Path) -> pl.DataFrame:
    rows = []
    for number, text in read_lines(file, _FIX_QRELS):
        parts = text.split()
        if len(parts) != 4:
            problem = f"has {len(parts)} columns, not 4: {text[:60]!r}"
            raise InputError(file, f"line {number}", problem, _FIX_QRELS)
        rows.append((parts[0], parts[2], whole_number(file, number, "grade", parts[3])))
    return qrels_frame(file, rows)
