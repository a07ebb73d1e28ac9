"""The normal form of queries: no two queries that a shopper would call the same lie on two sides of
the split, in preparation and in evaluation alike.
"""

import json
import shutil
import unicodedata
from dataclasses import replace

import polars as pl
import pytest

from ospo.data.dataset import Requests, load_prepared, prepared_language
from ospo.data.prepare import prepare
from ospo.data.query_key import query_key, query_keys
from ospo.errors import InputError
from ospo.evaluation.leaks import LeakError, check_split

EXAMPLES = "shopping_queries_dataset_examples.parquet"
SAME = [
    ("café dress", unicodedata.normalize("NFD", "café dress")),
    ("red shirt", "ｒｅｄ　ｓｈｉｒｔ"),
    ("men's shoes", "men’s shoes"),
    ("men's shoes", "mens shoes"),
    ("men's shoes", "men´s shoe"),
    ("t-shirt", "t shirt"),
    ("t-shirt", "T shirt."),
    ("t-shirt", "t-shirts"),
    ("t‑shirt", "t–shirt"),
    ("strasse", "STRASSE"),
    ("straße", "STRASSE"),
    ("µ meter", "μ meter"),
    ("ﬁne ﬂats", "fine flats"),
    ("σοφός", "ΣΟΦΌΣ"),
    ("red  dress", " Red\u00a0dress\u200b "),
    ("running shoe", "Running Shoes!"),
    ("dress 👗", "dress"),
    ("dress ❤️", "dress"),
    ("½ inch bolt", "1⁄2 inch bolts"),
    ("kodak™ film", "Kodak TM film"),
]
DIFFERENT = [
    ("red shirt", "blue shirt"),
    ("usb c", "usb a"),
    ("iphone 12", "iphone 13"),
    ("???", "!!"),
    ("赤いドレス", "青いドレス"),
    ("año", "ano"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_query_in_two_spellings(one, other):
    assert query_key(one, "en") == query_key(other, "en") != ""


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_two_queries(one, other):
    assert query_key(one, "en") != query_key(other, "en")


def test_stemming_follows_the_language():
    assert query_key("pantalones rojos", "es") == query_key("pantalón rojo", "es")
    assert query_key("running shoes") != query_key("running shoe")
    assert query_key("ドレス 赤", "ja") == query_key("ドレス赤", "ja")


def test_a_key_is_its_own_key():
    """What was joined stays joined, however often the key is taken."""
    for query in {query for pair in SAME for query in pair}:
        key = query_key(query)
        assert query_key(key) == key


def test_keys_of_a_column():
    queries = pl.Series(["b shirts", "a", "B shirt", "a"])
    keys = query_keys(queries, "en").to_list()
    assert keys == ["bshirt", "a", "bshirt", "a"]
    assert query_keys(queries.clear(), "en").to_list() == []


def _with_queries(esci_raw, folder, queries):
    """Raw files whose first queries, by query_id, are the given texts."""
    shutil.copytree(esci_raw, folder)
    frame = pl.read_parquet(folder / EXAMPLES)
    text = dict(zip(sorted(frame["query_id"].unique()), queries, strict=False))
    query = pl.col("query_id").replace_strict(text, default=pl.col("query"), return_dtype=pl.String)
    frame.with_columns(query=query).write_parquet(folder / EXAMPLES)


def _sides(folder):
    return {request.query: request.split for request in load_prepared(folder).requests}


def test_spellings_lie_on_one_side(esci_raw, tmp_path, tiny_config):
    """Six seeds: were the sides drawn for each spelling, all pairs would agree once in 10^20."""
    pairs = [(f"{one} {n}", f"{other} {n}") for n, (one, other) in enumerate(SAME)]
    _with_queries(esci_raw, tmp_path / "raw", [query for pair in pairs for query in pair])
    for seed in range(6):
        config = tiny_config.model_copy(update={"seed": seed})
        stats = prepare("esci", tmp_path / "raw", tmp_path / "out", config)
        data = load_prepared(tmp_path / "out")
        keys = [query_key(request.query, "en") for request in data.requests]
        sides = dict(zip(keys, (request.split for request in data.requests), strict=True))
        assert len(set(sides.values())) == 3
        for key, request in zip(keys, data.requests, strict=True):
            assert request.split == sides[key], request.query
        assert data.language == stats["used"]["language"] == "en"
        texts = {request.query for request in data.requests}
        assert stats["used"]["queries_joined"] == len(texts) - len(set(keys)) > 10
        check_split(data)


def test_one_text_under_two_ids_or_in_capitals_lies_on_one_side(esci_raw, tmp_path, tiny_config):
    """The split is drawn per query text, whatever its query_id and case."""
    queries = [text for n in range(30) for text in (f"red shirt {n}", f"Red SHIRT {n}")]
    queries[20:40] = [f"blue hat {n // 2}" for n in range(20)]
    _with_queries(esci_raw, tmp_path / "raw", queries)
    stats = prepare("esci", tmp_path / "raw", tmp_path / "out", tiny_config)
    sides: dict[str, set[str]] = {}
    requests = load_prepared(tmp_path / "out").requests
    for request in requests:
        sides.setdefault(request.query.lower(), set()).add(request.split)
    assert len(sides) == 30 < len(requests)
    assert all(len(side) == 1 for side in sides.values())
    # One text under two ids is one query already: only other spellings were joined.
    spellings = {request.query for request in requests}
    assert stats["used"]["queries_joined"] == len(spellings) - 30 < len(requests) - 30


@pytest.mark.parametrize(("one", "other"), SAME)
def test_evaluation_refuses_what_preparation_would_join(one, other, esci_tiny):
    requests = list(esci_tiny.requests)
    train, test = (int(esci_tiny.rows(split)[0]) for split in ("train", "test"))
    requests[train] = replace(requests[train], query=one)
    requests[test] = replace(requests[test], query=other)
    with pytest.raises(LeakError, match=r"1 query\(s\) on two sides"):
        check_split(replace(esci_tiny, requests=Requests.of(requests)))


def test_data_from_elsewhere_are_compared_without_stemming(esci_tiny, tmp_path):
    """Where stats.json names no language: a split made by others is not refused for a plural."""
    folder = tmp_path / "other"
    shutil.copytree(esci_tiny.directory, folder)
    (folder / "stats.json").unlink()
    data = load_prepared(folder)
    assert prepared_language(folder, unknown="other") == "other"
    requests = list(data.requests)
    train, test = (int(data.rows(split)[0]) for split in ("train", "test"))
    requests[train] = replace(requests[train], query="running shoe")
    requests[test] = replace(requests[test], query="running shoes")
    check_split(replace(data, requests=Requests.of(requests)))
    requests[test] = replace(requests[test], query="Running-Shoe")
    with pytest.raises(LeakError):
        check_split(replace(data, requests=Requests.of(requests)))
    (folder / "stats.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match=r"stats.json: used: is not readable"):
        _ = load_prepared(folder).language
