"""What names of earlier purchases are worth: candidates, and choosers that never see what they are
judged by.
"""

from collections import Counter

import numpy as np
import pytest

from benchmarks.additions import CANDIDATES, Table, additions, features, measure
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
