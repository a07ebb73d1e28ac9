"""Files of requests: every format, equal requests once, killed and resumed, bad input in one line."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ospo.errors import InputError
from ospo.policy.rules import RULES
from ospo.policy.text import REWRITE, SearchText
from ospo.serving import bulk
from ospo.serving.answering import RuleRewriter
from ospo.serving.bulk import Done, Job, rewrite_file
from ospo.serving.bulk_files import Columns, format_of

HISTORY = [{"name": "Lena", "type": "Shirt", "colour": "Red"}]
COLUMNS = ["request", "rewrite", "changed", "seconds"]


class Counting:
    """The rule ``history``, and what it was asked."""

    answer: SearchText = REWRITE
    hits = 0

    def __init__(self) -> None:
        self.rule, self.asked = RuleRewriter(RULES["history"]), []

    def rewrite(self, inputs: Sequence[Any], params: Mapping[str, Any] | None = None) -> list[str]:
        """The rule's texts."""
        self.asked.append(list(inputs))
        return self.rule.rewrite(inputs, params)


def run(source: Path | str, out: Path | str, stdin: str = "", **options: Any) -> tuple[Done, Any]:
    """Rewrite a file; what was done, and standard output."""
    read_as, force = options.pop("read_as", ""), options.pop("force", False)
    policy, answering = options.pop("policy", "p"), options.pop("answering", None) or Counting()
    reads = format_of(str(source), read_as)
    writes = format_of(str(out), options.pop("write_as", "") or (reads if out == "-" else ""))
    job = Job(str(source), str(out), reads, writes, Columns(**options), policy, force)
    stdout = io.StringIO()
    return rewrite_file(job, answering, io.StringIO(stdin), stdout), stdout.getvalue()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_format_in_and_out(tmp_path: Path, kind: str) -> None:
    source, out = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    rows = [("a", "shirt, red", HISTORY), ("b", "", None), ("c", "hat", None)]
    if kind == "csv":
        frame = pl.DataFrame({"name": [r[0] for r in rows], "text": [r[1] for r in rows],
                              "bought": [json.dumps(r[2]) if r[2] else "" for r in rows]})  # fmt: skip
        frame.write_csv(source)
    elif kind == "jsonl":
        source.write_text(
            "\n".join(json.dumps({"name": n, "text": q, "bought": h}) for n, q, h in rows)
        )
    else:
        pl.DataFrame({"name": [r[0] for r in rows], "text": [r[1] for r in rows],
                      "bought": [r[2] for r in rows]}).write_parquet(source)  # fmt: skip
    done, _ = run(source, out, query="text", history="bought", id="name")
    assert (done.rows, done.changed) == (3, 1)
    read = {"csv": pl.read_csv, "jsonl": pl.read_ndjson, "parquet": pl.read_parquet}[kind](out)
    assert read.columns == ["id", *COLUMNS]
    assert read["id"].to_list() == ["a", "b", "c"]
    assert read["rewrite"].fill_null("").to_list() == ["shirt, red lena", "", "hat"]
    assert read["changed"].to_list() == [True, False, False]
    assert not (tmp_path / f"out.{kind}.parts").exists()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_first_hits_come_along(tmp_path: Path, kind: str) -> None:
    source, answering = tmp_path / f"in.{kind}", Counting()
    hits = [["Sun hat", "Cap"], [], None]
    if kind == "csv":
        frame = pl.DataFrame(
            {"query": ["a", "b", "c"], "hits": [json.dumps(h or []) for h in hits]}
        )
        frame.write_csv(source)
    elif kind == "jsonl":
        rows = [{"query": q, "hits": h} for q, h in zip("abc", hits, strict=True)]
        source.write_text("\n".join(map(json.dumps, rows)))
    else:
        pl.DataFrame({"query": ["a", "b", "c"], "hits": hits}).write_parquet(source)
    run(source, tmp_path / "out.csv", answering=answering)
    asked = [row for part in answering.asked for row in part]
    expected = [{"query": "a", "hits": ["Sun hat", "Cap"]}, {"query": "b"}, {"query": "c"}]
    assert sorted(asked, key=lambda row: str(row["query"])) == expected


def test_a_column_that_counts_hits_is_no_list_of_them(tmp_path: Path) -> None:
    source, answering = tmp_path / "in.csv", Counting()
    pl.DataFrame({"query": ["a"], "hits": [712]}).write_csv(source)
    run(source, tmp_path / "out.csv", answering=answering)
    assert answering.asked == [[{"query": "a"}]]


def test_lines_from_standard_input_to_standard_output() -> None:
    done, text = run("-", "-", "red dress\n\n{hat}\n")
    assert text == "red dress\n\n{hat}\n"
    assert done.rows == 3
    _, table = run("-", "-", "red dress\n", write_as="csv")
    assert table.splitlines()[0] == "request,rewrite,changed,seconds"


def test_equal_requests_are_answered_once_across_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PART", 10)
    (tmp_path / "in.txt").write_text("\n".join(["red dress", "hat", "red dress"] * 20))
    counting = Counting()
    done, _ = run(tmp_path / "in.txt", tmp_path / "out.csv", answering=counting)
    assert (done.rows, done.answered) == (60, 2)
    assert sum(map(len, counting.asked)) == 2
    table = pl.read_csv(tmp_path / "out.csv")
    assert table["request"].to_list() == ["red dress", "hat", "red dress"] * 20
    assert (table["seconds"] > 0).sum() == 2
    monkeypatch.setattr(bulk, "REMEMBERED", 1)
    again = Counting()
    run(tmp_path / "in.txt", tmp_path / "again.csv", answering=again)
    assert sum(map(len, again.asked)) > 2, "memory is bounded"


def test_short_and_long_requests_are_kept_apart_and_calls_within_the_limit(tmp_path: Path) -> None:
    queries = [f"dress {n} {'a b c d e f g'[: 2 * (n % 7)]}".strip() for n in range(2500)]
    (tmp_path / "in.txt").write_text("\n".join(queries))
    counting = Counting()
    run(tmp_path / "in.txt", tmp_path / "out.txt", answering=counting)
    assert max(map(len, counting.asked)) == 1024
    longest = [max(len(one["query"]) for one in call) for call in counting.asked]
    assert longest == sorted(longest)
    assert (tmp_path / "out.txt").read_text().splitlines() == queries


KILLED = """
import sys, time
from ospo.serving import bulk
sys.path.insert(0, {tests!r})
from test_bulk import Counting, run
class Slow(Counting):
    def rewrite(self, inputs, params=None):
        time.sleep(0.15)
        return super().rewrite(inputs, params)
bulk.PART = 10
run({source!r}, {out!r}, answering=Slow())
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.csv"
    source.write_text("\n".join(f"dress {n}" for n in range(200)))
    code = KILLED.format(source=str(source), out=str(out), tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
    parts = tmp_path / "out.csv.parts"
    deadline = time.monotonic() + 60
    named = "[0-9]*.parquet"  # not the temporary file of the part being written
    while len(list(parts.glob(named)) if parts.is_dir() else []) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists(), "whole or not at all"
    finished = len(list(parts.glob(named)))
    monkeypatch.setattr(bulk, "PART", 10)
    with pytest.raises(InputError, match=r"out\.csv\.parts.*another policy"):
        run(source, out, policy="other")
    (parts / "000001.parquet").write_bytes(b"half a par")  # damaged: made again
    counting = Counting()
    done, _ = run(source, out, answering=counting)
    assert done.resumed == finished - 1
    assert sum(map(len, counting.asked)) == 200 - 10 * (finished - 1)
    assert pl.read_csv(out)["request"].to_list() == [f"dress {n}" for n in range(200)]
    assert not parts.exists()


def test_parts_of_other_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PART", 2)
    source, out = tmp_path / "in.txt", tmp_path / "out.csv"
    source.write_text("a\nb\nc\nd\n")

    class Failing(Counting):
        def rewrite(
            self, inputs: Sequence[Any], params: Mapping[str, Any] | None = None
        ) -> list[str]:
            if self.asked:
                raise OSError(28, "No space left on device")
            return super().rewrite(inputs, params)

    with pytest.raises(OSError, match="No space"):
        run(source, out, answering=Failing())
    source.write_text("x\nb\nc\nd\n")
    with pytest.raises(InputError, match="other rows"):
        run(source, out)
    done, _ = run(source, out, force=True)
    assert done.rows == 4
    assert not (tmp_path / "out.csv.parts").exists()


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    def refused(text: bytes, name: str, match: str, **options: Any) -> None:
        source, out = tmp_path / name, tmp_path / "out.csv"
        source.write_bytes(text)
        with pytest.raises(InputError, match=match) as error:
            run(source, out, **options)
        assert "\n" not in str(error.value)
        assert not out.exists()
        assert not (tmp_path / "out.csv.parts").exists(), "checked before the work"

    refused(b"red dress\n" + b"x" * 10_000, "long.txt", r"long\.txt: request 2.*10000 characters")
    refused("M\u00e4ntel".encode("latin-1"), "latin.txt", "is not UTF-8.*save it as UTF-8")
    refused(b"text\nred dress\n", "in.csv", r"in\.csv: query: no such column.*there are: text")
    refused(b'{"query": "a"}\n[1]\n', "in.jsonl", r"line 2: is no JSON object")
    refused(b'query,history\na,"[{"\n', "hist.csv", r"line 2: history: is no JSON")
    refused(b"query\na\n", "id.csv", r"shop: no such column", id="shop")
    refused(b"PAR1", "in.parquet", "no readable parquet")
    refused(b"a\n", "in.docx", "name one of txt, csv, jsonl, parquet")
    with pytest.raises(InputError, match="file not found"):
        run(tmp_path / "none.txt", tmp_path / "out.csv")
    (tmp_path / "out.csv").write_text("precious")
    (tmp_path / "in.txt").write_text("a\n")
    with pytest.raises(InputError, match="--force"):
        run(tmp_path / "in.txt", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "precious"
    run(tmp_path / "in.txt", tmp_path / "out.csv", force=True)
    assert pl.read_csv(tmp_path / "out.csv")["request"].to_list() == ["a"]


def test_an_empty_file_gives_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("")
    done, _ = run(tmp_path / "in.txt", tmp_path / "out.parquet")
    assert done.rows == 0
    assert pl.read_parquet(tmp_path / "out.parquet").columns == COLUMNS
