"""How well relevant items can be told without the request: made-up shops that leak and one that
does not.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from ospo.cli import app
from ospo.config import Config
from ospo.data.dataset import PreparedData, load_prepared
from ospo.data.item_places import FOLDS, prepared_places
from ospo.data.item_side import ItemSide, auc_by_pool, item_side
from ospo.data.schemas import PREPARED
from ospo.files import write_json
from ospo.reports.data_check import Check, check_folder

ITEMS, SHOPPERS, POOL, SOLD = 240, 90, 20, 60
MARK = "AUC"


def write_shop(
    folder: Path, *, described: bool = False, popular: bool = False, shoppers: int = SHOPPERS
) -> PreparedData:
    """Shoppers with two requests each for items that nothing tells from others.

    described: only items that were sold have descriptions. popular: the sold ones are few, so that
    what was chosen before tells.
    """
    rng = np.random.default_rng(5)
    requests = 2 * shoppers
    targets = rng.integers(SOLD if popular or described else ITEMS, size=requests)
    ids = np.array([f"i{n:04}" for n in range(ITEMS)])
    long = "soft jersey with a round neck and short sleeves"
    texts = [long if described and n < SOLD else "" for n in range(ITEMS)]
    colours = rng.choice(["red", "blue", "green"], size=ITEMS).tolist()
    catalogue = pl.DataFrame(
        {
            "item_id": ids,
            "title": [f"{colour} thing" for colour in colours],
            "text": [f"{c} thing {text}".strip() for c, text in zip(colours, texts, strict=True)],
            "category": "thing", "group": "", "brand": "", "colour": colours, "description": texts,
        },
        schema=PREPARED["catalogue"],
    )  # fmt: skip
    splits = [("train", "train", "validation", "test")[n // 2 % 4] for n in range(requests)]
    names = [f"r{n:04}" for n in range(requests)]
    pools = []
    for target in targets:
        others = rng.permutation(np.delete(np.arange(ITEMS), target))[: POOL - 1]
        pools.append(ids[rng.permutation([target, *others])].tolist())
    tables = {
        "catalogue": catalogue,
        "requests": pl.DataFrame(
            {
                "request_id": names, "split": splits, "query": "thing", "history": [[]] * requests,
                "customer_id": [f"c{n // 2:04}" for n in range(requests)],
                "target_id": ids[targets],
            },
            schema=PREPARED["requests"],
        ),
        "qrels": pl.DataFrame(
            {"request_id": names, "item_id": ids[targets], "gain": 1.0, "label": "purchase"},
            schema=PREPARED["qrels"],
        ),
        "pools": pl.DataFrame({"request_id": names, "item_ids": pools}, schema=PREPARED["pools"]),
    }  # fmt: skip
    folder.mkdir(parents=True)
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
    write_json(folder / "stats.json", {"read": {}, "kept": {}, "dropped": {}})
    return load_prepared(folder)


def measured(data: PreparedData) -> ItemSide:
    found = item_side(data.catalogue, prepared_places(data))
    assert found is not None
    return found


def test_auc_of_a_pool_counts_pairs_and_half_of_ties() -> None:
    scores = np.array([[3.0, 1.0, 2.0, 3.0, -9.0], [1.0, 1.0, 1.0, 1.0, -9.0], [1.0, 2, 3, 4, 5]])
    relevant = np.array([[1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=bool)
    held = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=bool)
    # First pool: 3 against (1, 3) wins and ties, 2 against them wins and loses: 2.5 of 4. The place
    # that holds no item, with the lowest score, counts nothing.
    np.testing.assert_allclose(auc_by_pool(scores, relevant, held), [2.5 / 4, 0.5, np.nan])


def test_a_shop_without_a_leak_is_near_chance(tmp_path: Path) -> None:
    """An item that was chosen once for a shopper is not known by that choice: a popularity that
    counts a request's own purchase would tell nearly every target.
    """
    found = measured(write_shop(tmp_path / "shop"))
    assert found.auc == pytest.approx(0.5, abs=0.08)
    assert not found.suspicious
    assert found.requests == 2 * SHOPPERS


def test_descriptions_of_sold_articles_alone_are_told(tmp_path: Path) -> None:
    found = measured(write_shop(tmp_path / "shop", described=True))
    assert found.suspicious
    assert found.auc > 0.75
    assert any(t.feature in ("description filled in", "length of text") for t in found.telling)
    # The error is over shoppers: of the order of their spread over the root of their number.
    assert 0.005 < found.error < 0.03


def test_what_sells_is_told(tmp_path: Path) -> None:
    found = measured(write_shop(tmp_path / "shop", popular=True))
    assert 0.65 < found.auc < 0.82  # .87 where a shopper's own purchases count as popularity
    assert found.telling[0].feature == "how often it was chosen in training"


def test_popularity_is_that_of_training_requests_alone(tmp_path: Path) -> None:
    data = write_shop(tmp_path / "shop")
    counts_KI = prepared_places(data).counts_KI
    assert counts_KI.shape == (FOLDS, ITEMS)
    rows = data.rows("train")
    bought = {(data.requests[row].customer_id, data.requests[row].target_id) for row in rows}
    assert counts_KI.sum() == len(bought)  # once per shopper, none of the held-out ones


def told(check: Check) -> list[str]:
    """The warnings about the item side."""
    return [warning for warning in check.warnings if MARK in warning]


def test_data_check_says_it_and_warns(tmp_path: Path, tiny_config: Config) -> None:
    leaking, clean = tmp_path / "leaking", tmp_path / "clean"
    write_shop(leaking, described=True)
    write_shop(clean)
    check = check_folder(leaking, tiny_config)
    [line] = [line for line in check.lines if MARK in line]
    assert "180 requests" in line
    assert "description filled in" in line
    [warning] = told(check)
    assert "whatever the request is" in warning
    assert "\n" not in warning
    check = check_folder(clean, tiny_config)
    assert any(MARK in line for line in check.lines)
    assert told(check) == check.problems == []
    # A warning is no failure: figures can be made, and what they mean is said.
    result = CliRunner().invoke(app, ["data", "check", str(leaking)])
    assert (result.exit_code, "warning: relevant items look" in result.stderr) == (0, True)


def test_too_few_shoppers_are_no_measure(tmp_path: Path, tiny_config: Config) -> None:
    write_shop(tmp_path / "few", described=True, shoppers=12)
    check = check_folder(tmp_path / "few", tiny_config)
    assert any("too few to say how well" in line for line in check.lines)
    assert told(check) == []


@pytest.mark.parametrize("dataset", ["esci", "hm"])
def test_raw_files_give_what_their_preparation_gives(
    dataset: str, request: pytest.FixtureRequest, tiny_config: Config
) -> None:
    """Through tables in memory or from files: the same figure."""
    raw = request.getfixturevalue(f"{dataset}_raw")
    prepared = request.getfixturevalue(f"{dataset}_tiny").directory
    lines = [
        next(line for line in check_folder(folder, tiny_config).lines if MARK in line)
        for folder in (raw, prepared)
    ]
    assert lines[0] == lines[1]
