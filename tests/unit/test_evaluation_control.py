"""The control: answers given to other requests, whose they are, and what it says of a gain."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import evaluation_shop as shop
import numpy as np
import polars as pl
import pytest
from rich.console import Console
from test_item_side import write_shop as write_item_shop

from ospo.data.dataset import PreparedData
from ospo.data.request import Request
from ospo.evaluation.analysis import analyse
from ospo.evaluation.answers import Job, write_answers
from ospo.evaluation.completions import Completion
from ospo.evaluation.control import control_partners, partners
from ospo.evaluation.evaluate import evaluate
from ospo.evaluation.statistics import bootstrap_means, percentile_interval
from ospo.files import read_json
from ospo.policy.decoding import Decoding
from ospo.policy.text import EXPAND, SearchText
from ospo.registry.card import model_card
from ospo.reports.demo_table import demo_table
from ospo.reports.evaluation import write_report
from ospo.reports.headline import headline, summary_markdown

FACTS = {"data_md5": "d", "git_commit": "c", "git_dirty": "false"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return shop.write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def evaluation(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that knows each shopper's colour, and one that hurts."""
    root = tmp_path_factory.mktemp("evaluation")
    files: dict = {
        "ospo": shop.write_answers(root / "ospo.jsonl", data, shop.oracle),
        "sft": shop.write_answers(root / "sft.jsonl", data, lambda r, colour: "zzz"),
    }
    evaluate(shop.config(), data, files, root / "out", cache=None)
    return root / "out"


# --- whose answer a request is given


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_partners_are_of_the_group_and_of_another_owner(seed: int) -> None:
    random = np.random.default_rng(seed)
    groups = [f"g{n}" for n in random.integers(3, size=60)]
    owners = [f"{group} {n}" for group, n in zip(groups, random.integers(9, size=60), strict=True)]
    partner = partners(groups, owners, seed).tolist()
    assert sorted(partner) == list(range(60))
    for place, other in enumerate(partner):
        assert groups[place] == groups[other]
        assert owners[place] != owners[other]
    assert partners(groups, owners, seed).tolist() == partner
    assert partners(groups, owners, seed + 1).tolist() != partner


def test_an_owner_with_most_places_meets_itself_only_where_it_must() -> None:
    owners = ["a"] * 5 + ["b", "c"]
    partner = partners(["g"] * 7, owners, 0).tolist()
    assert all(place != other for place, other in enumerate(partner))
    assert sum(owners[place] == owners[other] for place, other in enumerate(partner)) == 3


@pytest.mark.parametrize(
    ("groups", "owners", "partner"),
    [
        (["a", "b"], ["x", "y"], [1, 0]),  # groups of one are joined
        (["a", "a", "b"], ["x", "x", "y"], None),  # and groups of one owner
        (["a", "a", "b"], ["x", "y", "z"], None),  # what is left alone goes to the largest group
        (["a"], ["x"], [0]),
        (["a", "a"], ["x", "x"], [1, 0]),
        ([], [], []),
    ],
)
def test_small_groups(groups: list[str], owners: list[str], partner: list[int] | None) -> None:
    found = partners(groups, owners, 0).tolist()
    assert found == partner if partner is not None else all(p != n for n, p in enumerate(found))


def test_partners_seek_the_same_category_for_another_shopper(data: PreparedData) -> None:
    rows = data.rows("test")
    category = dict(data.catalogue.select("item_id", "category").iter_rows())
    requests = [data.requests[int(row)] for row in rows]
    partner = control_partners(data, rows, 0)
    for request, place in zip(requests, partner, strict=True):
        other = requests[place]
        assert category[request.target_id] == category[other.target_id]
        assert request.customer_id != other.customer_id


class Adding:
    """Adds its number to each request, beside a word of it."""

    hash: str = ""
    answer: SearchText = EXPAND

    def complete(self, requests: Sequence[Request], decoding: Decoding) -> list[Completion]:
        answers = [f"{r.query.split()[-1]}, mark{r.request_id}" for r in requests]
        return [Completion(a, a, 3, True) for a in answers]

    def release(self) -> None:
        """Nothing to give back."""


@pytest.mark.parametrize("chunk", [5, 500])
def test_what_an_answer_adds_follows_the_other_request(
    data: PreparedData, tmp_path: Path, chunk: int
) -> None:
    """The request's own words stay, the addition is its partner's, and no count knows of it."""
    rows = {"test": data.rows("test")}
    jobs = [Job("p", 0, "test", Decoding(8), swapped) for swapped in (False, True)]
    partner = control_partners(data, rows["test"], 0)
    file = tmp_path / "answers.parquet"
    counts = write_answers({("p", 0): Adding()}, data, jobs, rows, file, chunk, partner)
    assert counts["p"]["answers"] == len(rows["test"])
    swapped = pl.read_parquet(file).filter(decoding="swapped")
    requests = [data.requests[int(row)] for row in rows["test"]]
    assert swapped["request_id"].to_list() == [r.request_id for r in requests]
    assert swapped["text"].to_list() == [
        f"{r.query}, mark{requests[place].request_id}"
        for r, place in zip(requests, partner, strict=True)
    ]


# --- what it says


def test_the_control_stands_beside_every_policy_but_rules(evaluation: Path) -> None:
    table = pl.read_parquet(evaluation / "evaluation.parquet")
    swapped = table.filter(decoding="swapped")
    assert Counter(swapped["policy"]).keys() == {"ospo", "sft"}
    assert set(swapped["scope"]) == {"pool"}
    assert set(swapped["split"]) == {"test"}
    summary = read_json(evaluation / "summary.json")
    assert summary["control"].keys() == {"ospo", "sft"}
    for retriever, value in summary["control"]["ospo"].items():
        mean = swapped.filter(policy="ospo", retriever=retriever)["ndcg@10"].mean()
        assert value == pytest.approx(mean)


def test_a_gain_of_the_request_is_not_in_the_control(evaluation: Path) -> None:
    analysis = analyse([evaluation], resamples=500)
    found = {(c.policy, c.retriever): c for c in analysis.controls}
    assert list(found) == [(p, r) for p in ("sft", "ospo") for r in ("bm25", "static")]
    control = found["ospo", "bm25"]
    gain = analysis.means["ospo"]["bm25"].value - analysis.means["raw"]["bm25"].value
    assert control.share is not None
    assert control.share.value == pytest.approx(control.gain.value / gain)
    assert control.share.high < 0.2
    assert found["sft", "bm25"].share is None  # it has no gain to share
    assert control.mean == pytest.approx(
        analysis.measures.value("swapped", "ospo", "bm25", "ndcg@10")
    )


def test_the_controls_interval_is_over_shoppers(evaluation: Path) -> None:
    analysis = analyse([evaluation], resamples=500)
    table = pl.read_parquet(evaluation / "evaluation.parquet").filter(
        split="test", scope="pool", retriever="bm25"
    )
    slices = pl.read_parquet(evaluation / "slices.parquet").sort("request_id")

    def values(policy: str, decoding: str) -> np.ndarray:
        part = table.filter(policy=policy, decoding=decoding).sort("request_id")
        return part["ndcg@10"].to_numpy()

    apart = (values("ospo", "swapped") - values("raw", "greedy"))[:, None]
    draws = bootstrap_means(apart, 500, 0, slices["group"].to_numpy())[:, 0]
    expected = percentile_interval(apart.mean(), draws)
    found = next(c for c in analysis.controls if (c.policy, c.retriever) == ("ospo", "bm25"))
    assert (found.gain.value, found.gain.low, found.gain.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sold items alone are described, and a policy writes like a description, whatever is asked."""
    root = tmp_path_factory.mktemp("leaking")
    data = write_item_shop(root / "shop", described=True)
    file = shop.write_answers(root / "a.jsonl", data, lambda r, colour: f"{r.query} soft jersey")
    evaluate(shop.config(), data, {"ospo": file}, root / "out", cache=None)
    return root / "out"


def test_a_gain_of_the_items_is_all_in_the_control(leaking: Path) -> None:
    analysis = analyse([leaking], resamples=500)
    control = analysis.controls[0]
    assert control.share is not None
    assert control.share.value == pytest.approx(1)
    assert control.gain.low > 0.1
    sentence = headline(analysis)[3]
    assert "100 % of the gain, which is not of the request" in sentence


def test_report_table_and_card_say_what_the_control_has(
    leaking: Path, evaluation: Path, tmp_path: Path
) -> None:
    for folder, says in ((leaking, "100 % of the gain"), (evaluation, "of the gain")):
        analysis = write_report(folder, tmp_path / "page.html", resamples=200)
        page = (tmp_path / "page.html").read_text()
        assert "Is the gain of the request?" in page
        assert (
            f"Control (n = {analysis.requests}): given to other requests"
            in page.partition("<nav")[0]
        )
        mean = f"{analysis.controls[-2].mean:.4f}"
        assert f"| control: OSPO for other requests | {mean} |" in summary_markdown(analysis, "x")
        console = Console(width=120, record=True)
        summary = read_json(folder / "summary.json")
        console.print(demo_table({"shop": summary}, "bm25"))
        text = console.export_text()
        assert "control: OSPO for other requests" in text
        assert f"{says} on bm25" in text
        card = model_card(
            "esci",
            "ospo",
            shop.config(),
            summary["test"],
            FACTS,
            control=summary["control"]["ospo"],
        )
        assert f"| control: its answers given to other requests | {mean} |" in card
        assert f"{says} over the raw query on bm25" in card


def test_evaluations_without_a_control_are_read(evaluation: Path, tmp_path: Path) -> None:
    """Written before there was one, or of rules alone."""
    for file in evaluation.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    table = pl.read_parquet(tmp_path / "evaluation.parquet")
    table.filter(pl.col("decoding") != "swapped").write_parquet(tmp_path / "evaluation.parquet")
    analysis = write_report(tmp_path, tmp_path / "page.html", resamples=200)
    assert analysis.controls == []
    assert "Control:" not in (tmp_path / "page.html").read_text()
