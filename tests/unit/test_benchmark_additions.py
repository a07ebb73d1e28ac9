"""What names of earlier purchases are worth: candidates, and choosers that never see what they are
judged by.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.additions import (
    CANDIDATES,
    Table,
    additions,
    days_since,
    features,
    measure,
    purchase_days,
)
from ospo.data.dataset import PreparedData
from ospo.data.request import Purchase, Request
from ospo.policy.rules import latest_name


def test_candidates_are_names_of_the_requested_type_latest_first() -> None:
    history = tuple(
        Purchase(name=name, type=kind, colour=colour)
        for name, kind, colour in (
            ("Ada", "Shirt", "Red"), ("Bo", "Hat", "Red"), ("Cleo", "Shirt", ""),
            ("Ada", "Shirt", "Blue"), ("Dee", "Shirt", "Black"),
        )
    )  # fmt: skip
    request = Request(query="shirt", history=history)
    assert additions(request) == {
        "raw": "", "latest": "dee", "second": "ada", "third": "cleo", "two": "dee, ada",
        "four": "dee, ada, cleo", "colour": "dee, black",
    }  # fmt: skip
    assert additions(request)["latest"] == latest_name(request)
    assert additions(Request(query="hat", history=history)) == {
        "raw": "", "latest": "bo", "colour": "bo, red"
    }  # fmt: skip
    known = [features(request, candidate, Counter()) for candidate in CANDIDATES]
    assert len({tuple(row[: len(CANDIDATES)]) for row in known}) == len(CANDIDATES)


def test_the_figures_are_differences_per_request(hm_tiny: PreparedData) -> None:
    table = Table(hm_tiny)
    # A reward that likes the second name: every chooser should find it, the oracle more.
    values = np.array([0.5 + 0.3 * (candidate == "second") for candidate in table.candidates])
    found = measure(table, values, 0)["test"]
    assert found["raw"] == 0.5
    assert found["over_raw"]["latest"]["mean"] == 0
    second = found["over_raw"]["second"]["mean"]  # of requests with one name: the latest
    assert 0 < second <= 0.3
    assert found["oracle_over_rule"] == pytest.approx(second)
    chosen = found["over_rule"]["boosting"]
    assert chosen["low"] <= chosen["mean"] <= chosen["high"]
    assert set(table.splits) == {"train", "validation", "test"}


def test_days_since_are_those_of_the_article_that_is_named() -> None:
    history = (
        Purchase(item_id="1", name="Ada", type="Shirt"),
        Purchase(item_id="2", name="Bo", type="Shirt"),
        Purchase(item_id="3", name="Cleo", type="Hat"),
    )
    request = Request(query="shirt", history=history, customer_id="c", target_id="4")
    days = {("c", "1"): 100, ("c", "2"): 120, ("c", "3"): 130, ("c", "4"): 131, ("d", "4"): 7}
    since = {name: days_since(request, name, days) for name in ("raw", "latest", "second", "two")}
    assert since == {"raw": [11, 1], "latest": [11, 1], "second": [31, 1], "two": [11, 1]}


def test_with_raw_files_the_choosers_know_the_days(hm_tiny: PreparedData, hm_raw: Path) -> None:
    days = purchase_days(hm_raw)
    table = Table(hm_tiny, days)
    assert table.since.min() >= 0  # a history lies before its request
    plain, dated = table.known()[""], table.known()[" with days"]
    assert dated.shape == (len(plain), plain.shape[1] + 2)
    # A reward that likes names bought within seven days.
    lately = table.since[:, 0] <= 7
    named = np.array([candidate != "raw" for candidate in table.candidates])
    found = measure(table, 0.5 + named * np.where(lately, 0.3, -0.3), 0)
    assert set(found["test"]["over_rule"]) == {
        "forest", "boosting", "forest with days", "boosting with days"
    }  # fmt: skip
    assert set(Table(hm_tiny).known()) == {""}
    for part in found.values():
        for name, one in part["over_raw_by_days"].items():
            assert one["mean"] == pytest.approx(0.3 if name == "up to 7" else -0.3)
    total = sum(one["requests"] for one in found["test"]["over_raw_by_days"].values())
    assert total == found["test"]["requests"]
