"""BEIR, TREC, UBI and click logs: what comes out, and what each mistake in the files says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import ROOT
from shops import (
    judgements,
    lines,
    products,
    queries,
    side,
    write_beir,
    write_clicks,
    write_trec,
    write_ubi,
)

from ospo.config import Config, load_config
from ospo.data.clicks import TOP_GRADE, graded, position_corrected
from ospo.data.dataset import load_prepared
from ospo.data.prepare import prepare
from ospo.data.stats import Stats
from ospo.errors import InputError
from ospo.reports.data_check import check_folder

SMALL = ["data.pool.size=20", "data.pool.hard=10", "data.pool.related=6", "data.pool.random=4"]
WRITE = {"beir": write_beir, "trec": write_trec, "ubi": write_ubi, "clicks": write_clicks}
OPTIONS = {"trec": ", documents: documents.tsv"}


def shop_config(kind: str, raw: Path, more: str = "") -> Config:
    section = f"data.shop={{format: {kind}, raw: {raw}{OPTIONS.get(kind, '')}{more}}}"
    return load_config(ROOT / "params.yaml", [*SMALL, section])


def prepared(kind: str, raw: Path, out: Path, more: str = "") -> dict[str, Any]:
    return prepare("shop", None, out, shop_config(kind, raw, more))


@pytest.mark.parametrize("kind", WRITE)
def test_a_made_up_shop_is_prepared_the_same_each_time(kind: str, tmp_path: Path) -> None:
    raw = WRITE[kind](tmp_path / "raw")
    first = prepared(kind, raw, tmp_path / "out")
    second = prepared(kind, raw, tmp_path / "again")
    assert first == second
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    data = load_prepared(tmp_path / "out")
    assert sorted(data.item_ids) == sorted(item["_id"] for item in products())
    assert len(data.requests) == len(queries())
    assert all(len(data.rows(split)) for split in ("train", "validation", "test"))
    assert set(data.catalogue["category"]) == {item["category"] for item in products()}
    assert set(data.catalogue["group"]) == {"home", "kitchen"}
    assert set(data.catalogue["colour"]) == {item["color"] for item in products()}
    kept = pl.read_parquet(tmp_path / "out" / "catalogue.parquet")
    if kind != "trec":  # whose documents have no such column
        assert set(kept["price"]) == {str(item["price"]) for item in products()}
    assert set(kept["material"]) == {item["material"] for item in products()}
    assert check_folder(raw, shop_config(kind, raw)).problems == []


def test_beir_keeps_its_splits_ids_and_grades(tmp_path: Path) -> None:
    prepared("beir", write_beir(tmp_path / "raw"), tmp_path / "out")
    data = load_prepared(tmp_path / "out")
    names = {"train": "train", "dev": "validation", "test": "test"}
    assert {r.request_id: r.split for r in data.requests} == {
        name: names[side(name)] for name in queries()
    }
    assert {r.request_id: r.query for r in data.requests} == {
        name: words for name, (_, words) in queries().items()
    }
    qrels = pl.read_parquet(tmp_path / "out" / "qrels.parquet")
    found = {(q, d): (gain, label) for q, d, gain, label in qrels.rows()}
    assert found == {(q, d): (grade / 2, str(grade)) for q, d, grade in judgements()}
    for row, request in enumerate(data.requests):
        pool = {data.item_ids[item] for item in data.pools_RP[row] if item >= 0}
        judged = {d for q, d, _ in judgements() if q == request.request_id}
        assert judged <= pool  # what was judged irrelevant is a hard negative


def test_text_is_made_of_the_fields_that_are_named(tmp_path: Path) -> None:
    raw = write_beir(tmp_path / "raw")
    prepared("beir", raw, tmp_path / "out")
    first = load_prepared(tmp_path / "out").catalogue.row(0, named=True)
    assert first["text"] == ". ".join(
        [first["title"], first["description"], first["brand"], first["colour"]]
    )
    prepared("beir", raw, tmp_path / "out", ", text_fields: [title, material]")
    frame = pl.read_parquet(tmp_path / "out" / "catalogue.parquet")
    assert (frame["text"] == frame["title"] + ". " + frame["material"]).all()
    with pytest.raises(InputError, match=r"wool: no document has this field.*data\.shop\.text_f"):
        prepared("beir", raw, tmp_path / "out", ", text_fields: [title, wool]")


def test_without_dev_validation_is_drawn_from_training(tmp_path: Path) -> None:
    raw = write_beir(tmp_path / "raw")
    (raw / "qrels/dev.tsv").unlink()
    section = f"data.shop={{format: beir, raw: {raw}}}"
    half = load_config(ROOT / "params.yaml", [*SMALL, section, "data.split.validation=0.6"])
    stats = prepare("shop", None, tmp_path / "out", half)
    assert stats["used"]["validation"] == "drawn from train"
    data = load_prepared(tmp_path / "out")
    assert {side(data.requests[row].request_id) for row in data.rows("validation")} == {"train"}
    held_out = {data.requests[row].request_id for row in data.rows("test")}
    assert held_out == {name for name in queries() if side(name) == "test"}


def test_a_query_held_out_is_not_trained_on(tmp_path: Path) -> None:
    """Same id, or another id with words that a shopper would call the same."""
    raw = write_beir(tmp_path / "raw")
    held_out = next(name for name in queries() if side(name) == "test")
    words = queries()[held_out][1]
    with (raw / "queries.jsonl").open("a") as stream:
        stream.write(json.dumps({"_id": "twin", "text": f"{words.upper()}!"}) + "\n")
    item = products()[0]["_id"]
    with (raw / "qrels/train.tsv").open("a") as stream:
        stream.write(f"{held_out}\t{item}\t1\ntwin\t{item}\t1\n")
    stats = prepared("beir", raw, tmp_path / "out")
    assert stats["dropped"]["query_in_two_splits"] == 2
    data = load_prepared(tmp_path / "out")
    assert data.requests[data.row_of(held_out)].split == "test"
    assert "twin" not in {request.request_id for request in data.requests}


def test_drawn_splits_need_one_file(tmp_path: Path) -> None:
    raw = write_beir(tmp_path / "raw")
    every = "".join((raw / f"qrels/{name}.tsv").read_text() for name in ("test",))
    rows = [f"{q}\t{d}\t{g}\n" for q, d, g in judgements() if side(q) != "test"]
    (raw / "qrels/test.tsv").write_text(every + "".join(rows))
    for name in ("train", "dev"):
        (raw / f"qrels/{name}.tsv").unlink()
    with pytest.raises(InputError, match=r"train\.tsv: file not found.*splits=drawn"):
        prepared("beir", raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert prepared("beir", raw, tmp_path / "out", ", splits: drawn")["kept"]["requests"] == 30


def test_unknown_ids_and_duplicates_are_counted(tmp_path: Path) -> None:
    raw = write_beir(tmp_path / "raw")
    name, item, _ = next(j for j in judgements() if side(j[0]) == "train" and j[2] == 1)
    with (raw / "qrels/train.tsv").open("a") as stream:
        stream.write(f"nobody\t{item}\t1\n{name}\tnothing\t1\n{name}\t{item}\t2\n")
    stats = prepared("beir", raw, tmp_path / "out")
    assert stats["dropped"]["judgement_unknown_query"] == 1
    assert stats["dropped"]["judgement_unknown_product"] == 1
    assert stats["dropped"]["judgement_duplicate"] == 1
    qrels = pl.read_parquet(tmp_path / "out" / "qrels.parquet")
    pair = (pl.col("request_id") == name) & (pl.col("item_id") == item)
    assert qrels.filter(pair)["gain"].to_list() == [1.0]  # the better grade stays


def _append(name: str, text: str) -> Any:
    def spoil(raw: Path) -> None:
        with (raw / name).open("a") as stream:
            stream.write(text)

    return spoil


def _replace(name: str, text: bytes) -> Any:
    return lambda raw: (raw / name).write_bytes(text)


ITEM = products()[0]["_id"]
BAD = [
    ("beir", lambda raw: (raw / "corpus.jsonl").unlink(), r"corpus\.jsonl: file not found"),
    ("beir", lambda raw: (raw / "queries.jsonl").unlink(), r"queries\.jsonl: file not found"),
    ("beir", _append("corpus.jsonl", json.dumps({"_id": ITEM})), r"line 61, _id: .*line 1 already"),
    ("beir", _append("corpus.jsonl", '{"title": "x"}'), r"line 61: has no id"),
    ("beir", _append("corpus.jsonl", '{"_id": 1.5}'), r"line 61, _id: is neither text nor"),
    ("beir", _append("corpus.jsonl", "{"), r"corpus\.jsonl: line 61: is not JSON\. Fix: write one"),
    ("beir", _append("corpus.jsonl", "[1]"), r"line 61: is not a JSON object"),
    ("beir", _append("corpus.jsonl", '{"_id": "x", "t": "\\ud800"}'), "half of a surrogate pair"),
    (
        "beir",
        _append("queries.jsonl", '{"_id": "q00", "text": "x"}'),
        "line 31: query 'q00' appears",
    ),
    ("beir", _append("queries.jsonl", '{"_id": "z", "text": 3}'), "line 31, text: is no text"),
    ("beir", _append("qrels/dev.tsv", "q06\tx\t1.5\n"), r"dev\.tsv: line \d+, score: is no whole"),
    ("beir", _append("qrels/dev.tsv", "q06\tx\thigh\n"), "is no whole number: 'high'"),
    ("beir", _append("qrels/dev.tsv", "q06 0 x 1\n"), "has 1 columns, not 3"),
    ("beir", _replace("qrels/test.tsv", b"a\tb\t1\n" * 2), "gives no test request"),
    ("beir", _replace("corpus.jsonl", b""), "holds no document"),
    ("beir", _replace("corpus.jsonl", b'{"_id": "x", "title": "caf\xe9"}\n'), "is not UTF-8 text"),
    ("beir", _replace("corpus.jsonl", b'{"_id": "x", "title": "y"}\n'), "no judged product is in"),
    ("trec", lambda raw: (raw / "topics.tsv").unlink(), r"topics\.tsv: .*set data\.shop\.topics"),
    ("trec", _append("topics.tsv", "q99 no tab\n"), "line 31: has no tab"),
    ("trec", _append("qrels.txt", "q00 0 x\n"), "has 3 columns, not 4"),
    ("trec", _append("qrels.txt", "q00 0 x 1.0\n"), "grade: is no whole number: '1.0'"),
    ("trec", _append("documents.tsv", "a\tb\tc\td\te\tf\tg\th\ti\n"), "line 62: has 9 columns"),
    ("trec", _replace("documents.tsv", b"lamp\tred\n"), "does not name the columns"),
    ("ubi", lambda raw: (raw / "log.ndjson").unlink(), r"\*\.ndjson: file not found"),
    ("ubi", lambda raw: (raw / "corpus.jsonl").unlink(), r"set data\.shop\.documents"),
    ("ubi", _replace("log.ndjson", b'{"action_name": "click", "query_id": "a"}'), "no impression"),
    ("ubi", _append("log.ndjson", "<html>"), "is not JSON"),
    ("clicks", _replace("clicks.csv", b"query,item,position,action\n"), "time: column is missing"),
    ("clicks", lambda raw: (raw / "clicks.csv").unlink(), r"clicks\.csv: file not found"),
]


@pytest.mark.parametrize(
    ("kind", "spoil", "says"), BAD, ids=lambda v: v if isinstance(v, str) else ""
)
def test_bad_input_is_one_line_and_nothing_is_written(
    kind: str, spoil: Any, says: str, tmp_path: Path
) -> None:
    raw = WRITE[kind](tmp_path / "raw")
    spoil(raw)
    with pytest.raises(InputError, match=says) as caught:
        prepared(kind, raw, tmp_path / "out")
    line = str(caught.value)
    assert "Fix: " in line
    assert "\n" not in line
    assert len(line) < 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for kind in WRITE:
        with pytest.raises(InputError, match=r"folder not found. Fix: set data\.shop\.raw"):
            prepared(kind, tmp_path / "nowhere", tmp_path / "out")


def test_position_correction_by_hand() -> None:
    """Two places, s = 1: place 1 shows 4 with 2 clicks, place 2 shows 4 with none; m = 2 / 8."""
    rows = [
        ("q", "a", 1, 1), ("q", "a", 1, 1), ("q", "b", 1, 0), ("q", "b", 1, 0),
        ("q", "b", 2, 0), ("q", "c", 2, 0), ("r", "a", 2, 0), ("r", "b", 2, 0),
    ]  # fmt: skip
    schema = {
        "query_id": pl.String,
        "item_id": pl.String,
        "position": pl.Int64,
        "strength": pl.Int64,
    }
    found = position_corrected(pl.DataFrame(rows, schema=schema, orient="row"), smoothing=1.0)
    first, second = (2 + 0.25) / 5, (0 + 0.25) / 5
    scores = {(q, d): score for q, d, score in found["query_id", "item_id", "score"].rows()}
    assert scores == pytest.approx(
        {
            ("q", "a"): (2 + 1) / (2 * first + 1),
            ("q", "b"): (0 + 1) / (2 * first + second + 1),
            ("q", "c"): (0 + 1) / (second + 1),
            ("r", "a"): (0 + 1) / (second + 1),
            ("r", "b"): (0 + 1) / (second + 1),
        }
    )


def _log(rows: list[tuple[str, str, str, int | None, int]]) -> pl.DataFrame:
    from ospo.data.clicks import EVENTS

    return pl.DataFrame(rows, schema=EVENTS, orient="row")


def test_a_click_further_down_is_worth_more(tmp_path: Path) -> None:
    options = shop_config("clicks", tmp_path).dataset("shop")
    rows: list[tuple[str, str, str, int | None, int]] = []
    for search in range(200):  # at place 1 all is clicked, whatever it is; at place 9 little
        name = f"s{search}"
        rows += [
            (name, "chair", f"top{search % 4}", 1, 0),
            (name, "chair", f"top{search % 4}", 1, 1),
        ]
        rows += [(name, "chair", f"low{search % 4}", 9, 0)]
        if search % 4 == 0 and search % 8 == 0:
            rows += [(name, "chair", "low0", 9, 1)]
    stats = Stats()
    grades = dict(graded(_log(rows), options, stats)["item_id", "grade"].rows())
    assert grades["low0"] == TOP_GRADE
    assert {grades[f"top{n}"] for n in range(4)} <= {1, 2}
    assert {grades[f"low{n}"] for n in (1, 2, 3)} == {0}


def test_what_a_shopper_did_last_counts_once_and_little_evidence_is_left_out(
    tmp_path: Path,
) -> None:
    options = shop_config("clicks", tmp_path, ", language: other").dataset("shop")
    rows = [
        *[("a", "Oak Chair", f"i{n}", 1, 0) for n in range(6)],
        ("a", "Oak Chair", "i3", 1, 1), ("a", "Oak Chair", "i3", 1, 3),
        ("a", "Oak Chair", "i4", 1, 1), ("a", "Oak Chair", "i4", 1, 1),
        ("b", "oak chairs!", "i1", None, 0), ("c", "oak chair", "i1", 1, 0), ("d", "oak chair", "i2", 1, 0),
        *[("e", "seldom", f"i{n}", 1, 0) for n in range(4)],
        ("f", "  ", "i0", 1, 0),
    ]  # fmt: skip
    english = Stats()
    graded(_log(rows), shop_config("clicks", tmp_path).dataset("shop"), english)
    assert english.dropped["query_too_little_evidence"] == 1  # where word endings are ignored
    stats = Stats()
    found = graded(_log(rows), options, stats)
    assert stats.read["showings"] == 13
    assert stats.dropped["query_too_little_evidence"] == 2  # "seldom", and "oak chairs" of its own
    assert stats.dropped["event_without_query"] == 1
    assert set(found["query"]) == {"oak chair"}  # the words most often used
    grades = dict(found["item_id", "grade"].rows())
    assert [grades[f"i{n}"] for n in range(6)] == [0, 0, 0, TOP_GRADE, 2, 0]


def test_logs_in_three_files_say_the_same(tmp_path: Path) -> None:
    """The UBI log, the csv and the parquet are one log."""
    tables = []
    prepared("ubi", write_ubi(tmp_path / "u"), tmp_path / "a")
    prepared("clicks", write_clicks(tmp_path / "c"), tmp_path / "b")
    parquet = write_clicks(tmp_path / "p", parquet=True)
    prepared("clicks", parquet, tmp_path / "d", ", log: clicks.parquet")
    for out in ("a", "b", "d"):
        tables.append([(tmp_path / out / f"{t}.parquet").read_bytes() for t in ("qrels", "pools")])
    assert tables[0] == tables[1] == tables[2]
    qrels = pl.read_parquet(tmp_path / "a" / "qrels.parquet")
    truth = {(queries()[q][1], d): grade for q, d, grade in judgements()}
    wanted = [truth.get(pair, 0) for pair in qrels["request_id", "item_id"].rows()]
    assert np.corrcoef(wanted, qrels["gain"])[0, 1] > 0.5


def test_an_untidy_ubi_log(tmp_path: Path) -> None:
    raw = write_ubi(tmp_path / "raw")
    before = prepared("ubi", raw, tmp_path / "out")
    with (raw / "log.ndjson").open("a") as stream:
        for event in (
            {"action_name": "page_exit", "query_id": "s0", "event_attributes": None},
            {"action_name": "click", "query_id": None, "event_attributes": {"object": {"object_id": "x"}}},
            {"action_name": "impression", "query_id": "never asked",
             "event_attributes": {"object": {"object_id": "x"}, "position": {"ordinal": "one"}}},
            {"action_name": "impression", "query_id": "s0", "event_attributes": {"object": [1]}},
            {"action_name": ["odd"], "timestamp": 1717527764107},
        ):  # fmt: skip
            stream.write(json.dumps(event) + "\n\n")
    after = prepared("ubi", raw, tmp_path / "out")
    assert after["kept"] == before["kept"]
    change = {
        name: count - before["dropped"][name]
        for name, count in after["dropped"].items()
        if count != before["dropped"][name]
    }
    assert change == {"event_other_action": 2, "event_without_query": 2, "event_without_product": 1}


def test_a_real_ubi_log_is_read(tmp_path: Path) -> None:
    import os

    shared = Path(os.environ.get("OSPO_SHARED", ROOT.parent / "shared")) / "data"
    log = shared / "ubi" / "ubi_queries_events.ndjson"
    if not log.is_file():
        pytest.skip(f"real log not found: {log}")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "log.ndjson").symlink_to(log)
    items: dict[str, dict[str, str]] = {}
    for folder in ("esci", "esci-dense"):
        file = shared / folder / "shopping_queries_dataset_products.parquet"
        for name, title in pl.read_parquet(file)["product_id", "product_title"].rows():
            items.setdefault(name, {"_id": name, "title": title or ""})
    lines(tmp_path / "raw" / "corpus.jsonl", items.values())
    stats = prepared("ubi", tmp_path / "raw", tmp_path / "out")
    assert stats["read"]["events"] == 3433
    assert stats["read"]["showings"] > 1900
    assert stats["dropped"]["event_other_action"] == 911
    assert stats["kept"]["requests"] > 20


def test_check_warns_of_one_large_category_and_of_pools_without_hard_negatives(
    tmp_path: Path,
) -> None:
    raw = write_beir(tmp_path / "good")
    check = check_folder(raw, shop_config("beir", raw))
    assert check.kind == "raw beir"
    assert check.warnings == []
    assert any(
        "6 categories, the most frequent: chair 10, clock 10" in line for line in check.lines
    )
    one = [item | {"category": "thing" if n < 21 else f"c{n}"} for n, item in enumerate(products())]
    lines(raw / "corpus.jsonl", one)
    check = check_folder(raw, shop_config("beir", raw))
    assert len(check.warnings) == 2
    assert "category 'thing' holds 21 of 60 products" in check.warnings[0]
    assert "of 30 pools hold no hard negative" in check.warnings[1]
    prepared("beir", raw, tmp_path / "out")
    assert check_folder(tmp_path / "out", shop_config("beir", raw)).warnings == check.warnings


def test_odd_fields_of_a_document(tmp_path: Path) -> None:
    """Lists are joined, metadata is opened, what is nested or cannot be printed is left out."""
    raw = write_beir(tmp_path / "raw")
    first, *rest = products()
    first |= {
        "tags": ["new", 3, {"x": 1}], "metadata": {"origin": "here", "title": "not this"},
        "nested": {"a": 1}, "\x1fgroup": "clash", "given_group": "kept", "item_id": "clash",
        "text": "<b>Bold</b> text", "stock": None,
    }  # fmt: skip
    lines(raw / "corpus.jsonl", [first, *rest])
    prepared("beir", raw, tmp_path / "out")
    frame = pl.read_parquet(tmp_path / "out" / "catalogue.parquet")
    row = frame.filter(pl.col("item_id") == first["_id"]).row(0, named=True)
    assert (row["tags"], row["origin"], row["given_group"]) == ("new, 3", "here", "kept")
    assert (row["title"], row["description"]) == (first["title"], "Bold text")
    assert row["group"] == first["group"]
    assert not {"nested", "metadata", "\x1fgroup", "stock"} & set(frame.columns)


def test_ids_that_are_whole_numbers_are_their_digits(tmp_path: Path) -> None:
    raw = write_beir(tmp_path / "raw")
    text = (raw / "corpus.jsonl").read_text().replace('"00', '"').replace('/LAMP"', '"')
    rows = [json.loads(line) for line in text.splitlines()]
    lines(
        raw / "corpus.jsonl",
        [r | {"_id": int(r["_id"]) if r["_id"].isdigit() else r["_id"]} for r in rows],
    )
    for file in (raw / "qrels").iterdir():
        file.write_text(file.read_text().replace("\t00", "\t").replace("/LAMP", ""))
    stats = prepared("beir", raw, tmp_path / "out")
    assert stats["dropped"]["judgement_unknown_product"] == 0
    assert {"0", "6", "1/CHAIR"} < set(load_prepared(tmp_path / "out").item_ids)


def test_places_of_a_parquet_log_may_be_floats(tmp_path: Path) -> None:
    raw = write_clicks(tmp_path / "raw", parquet=True)
    prepared("clicks", raw, tmp_path / "a", ", log: clicks.parquet")
    frame = pl.read_parquet(raw / "clicks.parquet")
    shuffled = frame.with_columns(pl.col("position").cast(pl.Float64)).sample(
        fraction=1, shuffle=True, seed=3
    )
    shuffled.write_parquet(raw / "clicks.parquet")
    prepared("clicks", raw, tmp_path / "b", ", log: clicks.parquet")
    for table in ("qrels", "pools", "requests"):
        one, other = (tmp_path / out / f"{table}.parquet" for out in "ab")
        assert one.read_bytes() == other.read_bytes()


def test_without_sessions_an_impression_opens_a_showing(tmp_path: Path) -> None:
    """Two shoppers see the same product for the same words; one of them clicks."""
    raw = write_clicks(tmp_path / "raw")
    log = pl.read_csv(raw / "clicks.csv", infer_schema=False, glob=False).drop("session")
    log.write_csv(raw / "clicks.csv")
    stats = prepared("clicks", raw, tmp_path / "out")
    assert stats["read"]["showings"] == int((log["action"] == "impression").sum())


def test_categories_are_guessed_where_none_is_given(tmp_path: Path) -> None:
    raw = write_beir(tmp_path / "raw", category=False)
    assert prepared("beir", raw, tmp_path / "out")["used"]["categories"] == "guessed from titles"
    assert set(load_prepared(tmp_path / "out").catalogue["category"]) == {
        "lamp", "chair", "kettle", "rug", "shelf", "clock"
    }  # fmt: skip
