"""Damaged files, odd files, a full disk and Ctrl-C: a clear error or counted drops, and never half
an output.
"""

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import ROOT

from ospo.config import load_config
from ospo.data.dataset import load_prepared
from ospo.data.hm import article_id
from ospo.data.prepare import prepare
from ospo.data.queries import read_queries
from ospo.errors import InputError
from ospo.reports.data_check import check_folder
from ospo.retrieval.vectors import load_vectors, save_vectors, stored_ids

ARTICLES, TRANSACTIONS = "articles.csv", "transactions_train.csv"


def _line(number: int, change):
    def mutate(data: bytes) -> bytes:
        lines = data.split(b"\n")
        lines[number] = change(lines[number])
        return b"\n".join(lines)

    return mutate


def _row(article: bytes, description: bytes) -> bytes:
    return article + b",x" * 23 + b',"' + description + b'"\n'


# Case: file, mutation, then either parts of the error's line, or the drop that is counted (None:
# none more than usual).
ODD = {
    "byte order mark": (ARTICLES, lambda b: b"\xef\xbb\xbf" + b, None),
    "CRLF": (TRANSACTIONS, lambda b: b.replace(b"\n", b"\r\n"), None),
    "blank lines": (TRANSACTIONS, lambda b: b.replace(b"\n", b"\n\n"), "transaction_bad_date"),
    "quoted title": (ARTICLES, lambda b: b + _row(b"0999999999", b'The ""best"", ever\nnew'), None),
    "100 MB in one line": (ARTICLES, lambda b: b + _row(b"0999999999", b"x y " * 25_000_000), None),
    "100 MB id": (
        TRANSACTIONS,
        lambda b: b + b"2020-01-01," + b"x" * 100_000_000 + b",1,1,1\n",
        "unknown_article",
    ),
    "short row": (
        TRANSACTIONS,
        _line(5, lambda r: r.rsplit(b",", 3)[0]),
        "transaction_malformed_article_id",
    ),
    "long row": (
        TRANSACTIONS,
        _line(5, lambda r: r + b",1"),
        ["line 6: has 6 fields, where the header has 5"],
    ),
    "overflowing id": (
        TRANSACTIONS,
        _line(5, lambda r: r.replace(b",0", b",98765432109876543210")),
        "transaction_malformed_article_id",
    ),
    "negative price": (
        TRANSACTIONS,
        _line(5, lambda r: r.replace(b",0.", b",-0.")),
        "transaction_negative_price",
    ),
    "future date": (TRANSACTIONS, _line(5, lambda r: b"2999" + r[4:]), "transaction_future_date"),
    "no such date": (
        TRANSACTIONS,
        _line(5, lambda r: b"2020-02-30" + r[10:]),
        "transaction_bad_date",
    ),
    "no time after a date": (
        TRANSACTIONS,
        _line(5, lambda r: r[:10] + b" morning" + r[10:]),
        "transaction_bad_date",
    ),
    "Windows-1252": (
        ARTICLES,
        _line(5, lambda r: r.replace(b"a", b"\xe9", 1)),
        ["not UTF-8", "iconv"],
    ),
    "UTF-16": (ARTICLES, lambda b: b.decode().encode("utf-16"), None),
    "UTF-16 without a mark": (TRANSACTIONS, lambda b: b.decode().encode("utf-16-be"), None),
    "carriage returns": (TRANSACTIONS, lambda b: b.replace(b"\n", b"\r"), None),
    "tabs": (ARTICLES, lambda b: b.replace(b",", b"\t"), ["not separated by commas"]),
    "unclosed quote": (
        ARTICLES,
        _line(5, lambda r: r.replace(b",", b',"', 1)),
        ["line 6: a stray quotation mark"],
    ),
    "no transaction": (TRANSACTIONS, lambda b: b.split(b"\n")[0] + b"\n", ["no transaction"]),
    "no customer": ("customers.csv", lambda b: b.split(b"\n")[0] + b"\n", ["no customer"]),
    "same id, other text": (
        ARTICLES,
        lambda b: b + b"100000001" + b",other" * 24 + b"\n",
        ["appears twice"],
    ),
}


@pytest.fixture(scope="module")
def usual_drops(hm_raw, tiny_config, tmp_path_factory):
    """Drops of the undamaged tiny H&M shop."""
    return prepare("hm", hm_raw, tmp_path_factory.mktemp("usual") / "out", tiny_config)["dropped"]


@pytest.mark.parametrize("case", ODD)
def test_odd_csv(case, hm_raw, usual_drops, tmp_path, tiny_config):
    name, mutate, outcome = ODD[case]
    raw = tmp_path / "raw"
    shutil.copytree(hm_raw, raw)
    before = (raw / name).read_bytes()
    after = mutate(before)
    assert after != before
    (raw / name).write_bytes(after)
    if isinstance(outcome, list):
        with pytest.raises(InputError) as caught:
            prepare("hm", raw, tmp_path / "out", tiny_config)
        assert name in str(caught.value)
        for part in outcome:
            assert part in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["raw"]
        return
    dropped = prepare("hm", raw, tmp_path / "out", tiny_config)["dropped"]
    more = {
        reason
        for reason, count in dropped.items()
        if reason.startswith("transaction") and count > usual_drops[reason]
    }
    assert len(more) == (outcome is not None)
    if outcome:
        assert outcome in more.pop()
    assert load_prepared(tmp_path / "out").catalogue["text"].str.len_chars().max() <= 4000


def test_a_refund_is_no_purchase(hm_raw, tmp_path, tiny_config):
    """What is counted as left out is not in the requests either."""
    lines = (hm_raw / TRANSACTIONS).read_bytes().splitlines(keepends=True)
    refunds = [
        line.replace(b",0.", b",-0.") if n % 9 == 4 else line for n, line in enumerate(lines)
    ]
    without = [line for n, line in enumerate(lines) if n % 9 != 4]
    tables = {}
    for case, rows in (("refunds", refunds), ("without", without)):
        raw = tmp_path / case / "raw"
        shutil.copytree(hm_raw, raw)
        (raw / TRANSACTIONS).write_bytes(b"".join(rows))
        prepare("hm", raw, tmp_path / case / "out", tiny_config)
        data = load_prepared(tmp_path / case / "out")
        tables[case] = [(r.request_id, r.history, r.target_id) for r in data.requests]
    assert refunds != lines
    assert tables["refunds"] == tables["without"] != []


def _damage(data: bytes, chance: random.Random) -> bytes:
    """One random mutation of a file's bytes."""
    kind = chance.randrange(7)
    begin = chance.randrange(len(data))
    length = min(len(data) - begin, 1 << chance.randrange(14))
    part = data[begin : begin + length]
    if kind == 0:
        return data[:begin]
    if kind == 1:
        return data[:begin] + chance.randbytes(length) + data[begin + length :]
    if kind == 2:
        return data[:begin] + data[begin + length :]
    if kind == 3:
        return data[: begin + length] + part + data[begin + length :]
    if kind == 4:
        return (
            data[:begin]
            + bytes(byte ^ 1 << chance.randrange(8) for byte in part)
            + data[begin + length :]
        )
    if kind == 5:
        return data.replace(
            chance.choice([b",", b"\n", b'"', b"0"]),
            chance.choice([b";", b"\r", b"", b"\x00", b"\xff"]),
        )
    return chance.randbytes(length)


@pytest.mark.parametrize("dataset", ["esci", "hm"])
@pytest.mark.parametrize("seed", range(15))
def test_fuzzed_real_files(dataset, seed, request, tmp_path):
    """Whatever happens to a file's bytes: valid prepared data, or one clear line and no output."""
    source = request.getfixturevalue(f"{dataset}_real")
    raw = tmp_path / "raw"
    raw.mkdir()
    chance = random.Random(f"{dataset} {seed}")
    files = sorted(source.iterdir())
    victim = chance.choice(files)
    for file in files:
        data = file.read_bytes()
        (raw / file.name).write_bytes(_damage(data, chance) if file == victim else data)
    error = None
    config = load_config(ROOT / "params.yaml")
    try:
        prepare(dataset, raw, tmp_path / "out", config)
    except InputError as caught:
        error = str(caught)
    if seed % 3 == 0:
        assert bool(check_folder(raw, config).problems) == (error is not None), (
            "`ospo data check` says the same"
        )
    if error is None:
        load_prepared(tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]
    else:
        assert str(raw) in error
        assert "\n" not in error
        assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def _problem(function, *arguments) -> str | None:
    """The one line that ``function`` refuses its input with; None where it takes it."""
    try:
        function(*arguments)
    except InputError as caught:
        line = str(caught)
    else:
        return None
    assert "\n" not in line
    return line


@pytest.mark.parametrize("seed", range(40))
def test_fuzzed_prepared_files(seed, hm_tiny, tmp_path):
    folder = tmp_path / "hm"
    shutil.copytree(hm_tiny.directory, folder)
    chance = random.Random(seed)
    victim = chance.choice(sorted(folder.glob("*.parquet")))
    victim.write_bytes(_damage(victim.read_bytes(), chance))
    assert (said := _problem(load_prepared, folder)) is None or "parquet" in said


@pytest.mark.parametrize("seed", range(60))
def test_fuzzed_vectors_and_queries(seed, hm_tiny, hm_raw, tmp_path, tiny_config):
    chance = random.Random(seed)
    file = tmp_path / "v"
    save_vectors(file, [f"item {n}" for n in range(50)], np.ones((50, 8), np.float32), "m")
    file.write_bytes(_damage(file.read_bytes(), chance))
    _problem(stored_ids, file)
    _problem(load_vectors, file, "m", 50)
    lines = [
        json.dumps(
            {"customer_id": r.customer_id, "article_id": r.target_id, "query": f"“{r.query}”"}
        )
        for r in hm_tiny.requests
    ]
    (tmp_path / "q.jsonl").write_bytes(_damage("\n".join(lines).encode(), chance))
    said = _problem(read_queries, tmp_path / "q.jsonl", article_id)
    assert said is None or "q.jsonl" in said


def test_a_title_of_100_mb(esci_raw, tmp_path, tiny_config):
    raw = tmp_path / "raw"
    shutil.copytree(esci_raw, raw)
    file = raw / "shopping_queries_dataset_products.parquet"
    frame = pl.read_parquet(file)
    long = frame.head(1).with_columns(
        product_id=pl.lit("ZZZ"), product_title=pl.lit("<b>red</b> &amp; " * 6_000_000)
    )
    pl.concat([frame, long]).write_parquet(file)
    prepare("esci", raw, tmp_path / "out", tiny_config)
    last = load_prepared(tmp_path / "out").catalogue.row(-1, named=True)
    assert last["item_id"] == "ZZZ"
    assert len(last["text"]) == 4000
    assert last["text"].startswith("red & red & ")


_CHILD = """
import sys
from ospo.config import load_config
from ospo.data.prepare import prepare
from ospo.errors import InputError
dataset, raw, out, params = sys.argv[1:]
config = load_config(params)
print("ready", flush=True)
try:
    prepare(dataset, raw, out, config)
except InputError as error:
    print(error)
    sys.exit(2)
"""


def _start(dataset: str, raw: Path, out: Path, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", _CHILD, dataset, str(raw), str(out), str(ROOT / "params.yaml")]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize(("dataset", "limit"), [("esci", 4_000), ("hm", 2_000), ("hm", 12_000)])
def test_full_disk(dataset, limit, request, tmp_path):
    """A limit on file size stands for a full disk: both make writing fail midway."""
    raw = request.getfixturevalue(f"{dataset}_raw")

    def limit_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = _start(dataset, raw, tmp_path / "out", preexec_fn=limit_files)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert f"{tmp_path / 'out'}: cannot be written" in output
    assert "free disk space" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_ctrl_c_at_the_command_line(dataset, request, tmp_path):
    """One line, exit code 130, and no trace: or the work was done before the key was pressed."""
    raw = request.getfixturevalue(f"{dataset}_real")
    command = [
        sys.executable,
        "-m",
        "ospo.cli",
        "prepare",
        dataset,
        "--raw",
        str(raw),
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.001)  # until writing begins
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    left = [path.name for path in tmp_path.iterdir()]
    if process.returncode == 130:
        assert "ospo: interrupted" in errors
        assert left == []
    else:
        assert (process.returncode, left) == (0, ["out"])
        load_prepared(tmp_path / "out")


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15])
def test_interrupt_leaves_nothing_or_everything(delay, esci_real, tmp_path):
    process = _start("esci", esci_real, tmp_path / "out")
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    left = [path.name for path in tmp_path.iterdir()]
    assert left in ([], ["out"])
    if left:
        load_prepared(tmp_path / "out")
    else:
        assert process.returncode != 0
