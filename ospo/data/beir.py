"""BEIR collections (Thakur et al., arXiv 2104.08663): corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.

corpus.jsonl: ``_id``, ``title``, ``text`` and any other field; queries.jsonl: ``_id``, ``text``;
qrels/train.tsv, dev.tsv, test.tsv: query, document and grade, a tab between two.
"""

from pathlib import Path

import polars as pl

from ospo.config.formats import BeirData
from ospo.data.collection import JUDGEMENTS, prepare_collection
from ospo.data.documents import read_catalogue
from ospo.data.json_lines import identifier, read_lines, read_objects, whole_number
from ospo.data.query_key import query_keys
from ospo.data.source import Source
from ospo.data.split import assign_split
from ospo.data.stats import Stats
from ospo.data.writer import Prepared
from ospo.errors import InputError

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
_SIDES = {"train": "train", "dev": "validation", "test": "test"}
_FIX_QUERIES = 'write one JSON object per line: {"_id": "...", "text": "..."}'
_FIX_QRELS = "write query, document and grade per line, a tab between two"
_HEADER = {"score", "grade", "label", "rel", "relevance"}


def prepare_beir(source: Source[BeirData], stats: Stats) -> Prepared:
    """Read the collection and build the prepared tables. Raises InputError."""
    if not source.raw.is_dir():
        fix = f"set {source.key('raw')} (or --raw) to the folder that holds {CORPUS}"
        raise InputError(source.raw, "", "folder not found", fix)
    files = _qrels_files(source)
    catalogue = read_catalogue(source.raw / CORPUS, source, stats)
    queries = read_queries(source.raw / QUERIES, stats)
    parts = [read_qrels(file).with_columns(split=pl.lit(side)) for file, side in files.items()]
    judged = pl.concat(parts).join(queries, on="query_id", how="left", maintain_order="left")
    if source.options.splits == "drawn":
        judged = judged.drop("split")
    elif "validation" not in files.values():
        judged = _with_validation(judged, source, stats)
    where = source.raw / QRELS if len(files) > 1 else next(iter(files))
    columns = [*JUDGEMENTS, *(["split"] if "split" in judged.columns else [])]
    return prepare_collection(source, catalogue, judged.select(columns), where, stats)


def _qrels_files(source: Source[BeirData]) -> dict[Path, str]:
    """File of judgements → the split it makes up. Raises InputError where one is missing."""
    folder, drawn = source.raw / QRELS, source.options.splits == "drawn"
    found = {folder / f"{name}.tsv": side for name, side in _SIDES.items()}
    present = {file: side for file, side in found.items() if file.is_file()}
    needed = [] if drawn else ["test"] if source.evaluation_only else ["train", "test"]
    for side in needed:
        if side not in present.values():
            fix = f"put it there, or set {source.key('splits')}=drawn to draw splits from the rest"
            raise InputError(folder / f"{side}.tsv", "", "file not found", fix)
    if not present:
        raise InputError(folder, "", "holds no train.tsv, dev.tsv or test.tsv", _FIX_QRELS)
    return present


def _with_validation(judged: pl.DataFrame, source: Source[BeirData], stats: Stats) -> pl.DataFrame:
    """Without dev.tsv, validation queries are drawn from the training ones by seeded hash (from the
    test ones where there are no others).
    """
    shares, side = source.config.data.split, "train" if "train" in judged["split"] else "test"
    keys = query_keys(judged["query"].fill_null(""), source.options.spoken)
    drawn = assign_split(keys, shares.validation, 0.0, source.config.seed) == "validation"
    stats.used["validation"] = f"drawn from {side}"
    return judged.with_columns(
        split=pl.when(drawn & (pl.col("split") == side))
        .then(pl.lit("validation"))
        .otherwise("split")
    )


def read_queries(file: Path, stats: Stats) -> pl.DataFrame:
    """query_id and query of every query of a file of JSON lines. Raises InputError."""
    found: dict[str, str] = {}
    for number, value in read_objects(file, _FIX_QUERIES):
        name = identifier(value.get("_id"))
        if name is None:
            raise InputError(file, f"line {number}, _id", "is no id", _FIX_QUERIES)
        if not isinstance(value.get("text"), str):
            raise InputError(file, f"line {number}, text", "is no text", _FIX_QUERIES)
        add_query(file, number, name, value["text"], found)
    return queries_frame(found, stats)


def add_query(file: Path, number: int, name: str, text: str, found: dict[str, str]) -> None:
    """Put a query to the others. Raises InputError where its id is among them."""
    if name in found:
        problem = f"query {name[:60]!r} appears twice"
        raise InputError(file, f"line {number}", problem, "keep one line per query")
    found[name] = text


def queries_frame(found: dict[str, str], stats: Stats) -> pl.DataFrame:
    """Queries as a table, counted."""
    stats.read["queries"] = len(found)
    schema = {"query_id": pl.String, "query": pl.String}
    return pl.DataFrame({"query_id": list(found), "query": list(found.values())}, schema=schema)


def read_qrels(file: Path) -> pl.DataFrame:
    """query_id, item_id and grade of every judgement of a BEIR file. Raises InputError."""
    rows = []
    for number, text in read_lines(file, _FIX_QRELS):
        parts = text.split("\t")
        if len(parts) != 3:
            problem = f"has {len(parts)} columns, not 3: {text[:60]!r}"
            raise InputError(file, f"line {number}", problem, _FIX_QRELS)
        if number == 1 and parts[2].strip().lower() in _HEADER:
            continue
        rows.append((parts[0], parts[1], whole_number(file, number, "score", parts[2])))
    return qrels_frame(file, rows)


def qrels_frame(file: Path, rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    """Judgements as a table. Raises InputError where there is none."""
    if not rows:
        raise InputError(file, "", "holds no judgement", _FIX_QRELS)
    schema = {name: JUDGEMENTS[name] for name in ("query_id", "item_id", "grade")}
    return pl.DataFrame(rows, schema=schema, orient="row")
