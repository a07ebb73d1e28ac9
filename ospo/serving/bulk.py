"""Rewriting of files: any number of requests with bounded memory, going on where it was stopped.

Requests are taken in parts of ``PART`` rows. In a part equal requests are rewritten once, shorter
and longer ones apart; answers to the latest ``REMEMBERED`` requests are kept for later parts. Each
finished part is a file in ``OUT.parts``; the output is put together from them at the end, and the
folder removed. A part names the rows that it was made from and what answered, by a hash: a run that
was killed takes up what fits, and refuses parts of another input or policy.
"""

import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import polars as pl
from tqdm import tqdm

from ospo.errors import InputError
from ospo.files import atomic_file, read_json, sha256_json, write_json
from ospo.policy.prompts import clean
from ospo.serving.answering import Answering
from ospo.serving.bulk_files import STANDARD, Columns, Format, read_rows, writing
from ospo.serving.requests import MAX_INPUTS, RequestError, parse_request

PART = 4096  # rows in memory at once, and what an interrupted run can lose
REMEMBERED = 100_000  # distinct requests whose answers are kept
FACTS = "parts.json"


@dataclass(frozen=True)
class Done:
    """What a bulk run did: rows in all, those that the text changed, distinct requests that were
    answered in this run, parts taken over from an earlier one, and seconds.
    """

    rows: int
    changed: int
    answered: int
    resumed: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """Where requests come from and go to. ``source`` and ``out`` are paths, or ``-`` for standard
    input and output; ``policy`` identifies what answers.
    """

    source: str
    out: str
    read_as: Format
    write_as: Format
    columns: Columns
    policy: str
    force: bool = False


def rewrite_file(job: Job, answering: Answering, stdin: TextIO, stdout: TextIO) -> Done:
    """Rewrite all requests of ``job.source`` into ``job.out``.

    A file's rows are all checked before the first is rewritten. To standard output rows go as they
    are done, and nothing is resumed. ``seconds`` of a row is its share of the call that answered
    its request; 0 where that was answered before.

    Raises InputError for input that is not accepted, for an output that exists (without
    ``force``), and for parts of another input or policy.
    """
    started = time.perf_counter()
    rewriter = _Remembering(answering)
    if job.out == STANDARD:
        with writing(stdout, job.write_as) as write:
            rows = changed = 0
            for part in _parts(job, stdin):
                frame = _answered(part, rewriter, job)
                write(frame)
                rows, changed = rows + len(frame), changed + int(frame["changed"].sum())
        return Done(rows, changed, rewriter.answered, 0, time.perf_counter() - started)
    out = Path(job.out)
    if out.exists() and not job.force:
        raise InputError(out, "", "exists", "name another file, or add --force")
    total = None if job.source == STANDARD else _check(job, stdin)
    folder = _folder(job, out)
    resumed = 0
    with tqdm(total=total, desc="rewrite", unit="request") as bar:
        files = []
        for number, part in enumerate(_parts(job, stdin)):
            file, digest = folder / f"{number:06d}.parquet", sha256_json(part)
            known = _finished(file)
            if known is None:
                frame = _answered(part, rewriter, job)
                with atomic_file(file) as temporary:
                    frame.write_parquet(temporary, metadata={"rows": digest})
            elif known != digest:
                raise InputError(file, "", "was made from other rows than the input's",
                                 f"remove {folder}, or add --force")  # fmt: skip
            else:
                resumed += 1
            files.append(file)
            bar.update(len(part))
    rows, changed = _join(files, out, job.write_as)
    shutil.rmtree(folder)
    return Done(rows, changed, rewriter.answered, resumed, time.perf_counter() - started)


def _parts(job: Job, stdin: TextIO) -> Iterator[list[tuple[str, Any]]]:
    rows = read_rows(job.source, job.read_as, job.columns, stdin)
    while part := list(islice(rows, PART)):
        yield part


def _check(job: Job, stdin: TextIO) -> int:
    """Hold every row to what a rewriter accepts; returns how many there are."""
    count = 0
    for count, (_, given) in enumerate(read_rows(job.source, job.read_as, job.columns, stdin), 1):
        _accepted(job, count, given)
    return count


def _accepted(job: Job, number: int, given: Any) -> None:
    try:
        parse_request(_as_input(given), number)
    except RequestError as error:
        fix = "shorten or repair that row, or leave it out"
        raise InputError(job.source, f"request {number}", str(error), fix) from None


def _folder(job: Job, out: Path) -> Path:
    """The folder of parts, made or taken over."""
    folder = out.with_name(f"{out.name}.parts")
    facts = {"policy": job.policy, "columns": vars(job.columns), "part": PART}
    if folder.exists():
        if job.force:
            shutil.rmtree(folder)
        else:
            found = read_json(folder / FACTS) if (folder / FACTS).is_file() else None
            if found != facts:
                raise InputError(folder, "", "holds parts of another policy or other options",
                                 "remove it, or add --force")  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FACTS, facts)
    return folder


def _finished(file: Path) -> str | None:
    """The hash of the rows that a finished part was made from, None where it has to be made."""
    if not file.is_file():
        return None
    try:
        return pl.read_parquet_metadata(file).get("rows", "")
    except pl.exceptions.PolarsError:
        return None  # damaged: made again


def _answered(part: list[tuple[str, Any]], rewriter: "_Remembering", job: Job) -> pl.DataFrame:
    for number, (_, given) in enumerate(part, 1):
        if job.source == STANDARD:  # files were checked before
            _accepted(job, number, given)
    texts = rewriter([given for _, given in part])
    queries = [given if isinstance(given, str) else str(given["query"]) for _, given in part]
    frame = pl.DataFrame(
        {
            "request": queries,
            "rewrite": [text for text, _ in texts],
            "changed": [
                clean(text) != clean(query) for (text, _), query in zip(texts, queries, strict=True)
            ],
            "seconds": [seconds for _, seconds in texts],
        },
        schema={"request": pl.String, "rewrite": pl.String, "changed": pl.Boolean,
                "seconds": pl.Float64},
    )  # fmt: skip
    if job.columns.id:
        ids = pl.Series("id", [name for name, _ in part], dtype=pl.String)
        frame = frame.select(ids, pl.all())
    return frame


def _join(files: list[Path], out: Path, kind: Format) -> tuple[int, int]:
    rows = changed = 0
    with atomic_file(out) as temporary, writing(temporary, kind) as write:
        for file in files:
            frame = pl.read_parquet(file, glob=False)
            write(frame)
            rows, changed = rows + len(frame), changed + int(frame["changed"].sum())
    return rows, changed


class _Remembering:
    """Answers requests, equal ones once, and remembers the latest ones' answers."""

    def __init__(self, answering: Answering):
        self.answering = answering
        self.answered = 0  # distinct requests that were not remembered
        self._known: OrderedDict[str, str] = OrderedDict()

    def __call__(self, inputs: list[Any]) -> list[tuple[str, float]]:
        """The search text of each input, and the seconds it took: 0 where it was known."""
        keys = [given if isinstance(given, str) else sha256_json(given) for given in inputs]
        found: dict[str, tuple[str, float]] = {}
        new: dict[str, Any] = {}
        for key, given in zip(keys, inputs, strict=True):
            if key in self._known:
                self._known.move_to_end(key)
                found[key] = self._known[key], 0.0
            else:
                new.setdefault(key, given)
        ordered = sorted(new, key=lambda key: len(str(new[key])))
        for start in range(0, len(ordered), MAX_INPUTS):
            some = ordered[start : start + MAX_INPUTS]
            begun = time.perf_counter()
            texts = self.answering.rewrite([_as_input(new[key]) for key in some])
            share = (time.perf_counter() - begun) / len(some)
            for key, text in zip(some, texts, strict=True):
                found[key] = text, share
                self._known[key] = text
        self.answered += len(ordered)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        seen: set[str] = set()
        out = []
        for key in keys:
            text, seconds = found[key]
            out.append((text, 0.0 if key in seen else seconds))
            seen.add(key)
        return out


def _as_input(given: Any) -> Any:
    # A query that looks like JSON is a query all the same.
    return {"query": given} if isinstance(given, str) else given
