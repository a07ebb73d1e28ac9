"""Rules that a figure depends on and that no figure shows when broken: what is paired, what is one
unit, which rows make a table, whose requests define a slice, what counts as a leak, whose p-value
promotes.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import evaluation_shop as shop
import numpy as np
import polars as pl
import pytest

from ospo.data.dataset import PreparedData, Requests
from ospo.evaluation.analysis import Analysis, analyse
from ospo.evaluation.evaluate import evaluate
from ospo.evaluation.examples import pick
from ospo.evaluation.leaks import LeakError, check_split
from ospo.evaluation.measures import MEASURES
from ospo.evaluation.slices import slice_table
from ospo.evaluation.statistics import (
    bootstrap_seed_means,
    difference_test,
    holm,
    percentile_interval,
    randomisation_test,
)
from ospo.evaluation.tables import load_values

RESAMPLES = 400


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    return shop.write_shop(tmp_path_factory.mktemp("shop"))


def sometimes(share: int, shift: int = 0):
    """A policy that names the right colour for some shoppers: a shopper's requests fare alike."""
    return lambda request, colour: (
        f"{colour if (int(request.request_id[1:]) // 2 + shift) % 5 < share else 'pink'}, "
        f"{request.query}"
    )


@pytest.fixture(scope="module")
def evaluation(data: PreparedData, tmp_path_factory) -> Path:
    """Two seeds of two policies."""
    root = tmp_path_factory.mktemp("evaluation")
    files = {
        name: [
            shop.write_answers(root / f"{name}{s}.jsonl", data, sometimes(share, s)) for s in (0, 1)
        ]
        for name, share in (("sft", 2), ("ospo", 3))
    }
    evaluate(shop.config(), data, files, root / "out", cache=None)
    return root / "out"


# --- pairs and units


def test_seeds_are_drawn_once_for_all_policies() -> None:
    """Training runs that shift two policies alike say nothing about their difference: drawn apart,
    they would.
    """
    shifts = np.array([-0.4, 0.0, 0.1, 0.3])[:, None, None]
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 30, 1))
    values_SRC = shifts + noise + np.array([0.0, 0.05])
    draws = bootstrap_seed_means(values_SRC, 500, 0)
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 0.05, atol=1e-12)
    assert draws[:, 0].std() > 0.1


def test_the_randomisation_test_turns_whole_shoppers() -> None:
    once = np.random.default_rng(1).normal(0.1, 0.4, size=(40, 3))
    shoppers = np.repeat(np.arange(40), 3)
    thrice = np.repeat(once, 3, axis=0)
    expected = randomisation_test(once, 2000, 0)
    np.testing.assert_array_equal(randomisation_test(thrice, 2000, 0, shoppers), expected)
    assert (randomisation_test(thrice, 2000, 0) < 0.8 * expected).all()


def test_one_p_for_requests_and_seeds_is_the_larger_one() -> None:
    rng = np.random.default_rng(2)
    agree = 0.1 + rng.normal(0, 0.3, (1, 50, 1)) + rng.normal(0, 1e-3, (4, 1, 1))
    differ = 0.1 + rng.normal(0, 0.01, (1, 50, 1)) + np.array([-0.3, 0.2, 0.4, 0.1])[:, None, None]
    groups = np.repeat(np.arange(25), 2)
    by_requests = randomisation_test(agree.mean(axis=0), 2000, 0, groups)
    assert difference_test(agree, 2000, 0, groups) == by_requests  # the runs agree to the last bit
    assert difference_test(differ, 2000, 0, groups) > 0.2
    assert randomisation_test(differ.mean(axis=0), 2000, 0, groups) < 0.01


def grouped(evaluation: Path) -> tuple[dict[tuple[str, str], np.ndarray], np.ndarray, list[str]]:
    """(seeds, requests) values of each (policy, retriever), the shoppers, the requests' ids."""
    wide, policies, retrievers = load_values([evaluation])
    values = {
        (p, r): np.stack([wide[f"{s}|{p}|{r}"].to_numpy() for s in (0, 1)])
        for p in policies
        for r in retrievers
    }
    slices = pl.read_parquet(evaluation / "slices.parquet")
    owner = dict(slices.select("request_id", "group").rows())
    ids = wide["request_id"].to_list()
    return values, np.array([owner[request] for request in ids]), ids


def test_the_analysis_takes_a_shoppers_requests_together(evaluation: Path) -> None:
    """Means, differences and slices have the library's intervals and p-values over shoppers, which
    differ from those over requests.
    """
    analysis = analyse([evaluation], resamples=RESAMPLES)
    values, groups, ids = grouped(evaluation)
    assert len(set(groups)) == len(groups) / 2 == analysis.groups
    narrower = 0
    for (policy, retriever), values_SR in values.items():
        draws = bootstrap_seed_means(values_SR[..., None], RESAMPLES, 0, groups)[:, 0]
        expected = percentile_interval(values_SR.mean(), draws)
        found = analysis.means[policy][retriever]
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    for c in analysis.comparisons:
        apart = (values[c.policy, c.retriever] - values[c.reference, c.retriever])[..., None]
        assert c.p == pytest.approx(difference_test(apart, RESAMPLES, 0, groups)[0])
        draws = bootstrap_seed_means(apart, RESAMPLES, 0, groups)[:, 0]
        expected = percentile_interval(apart.mean(), draws)
        got = (c.difference.low, c.difference.high)
        assert got == pytest.approx((expected.low, expected.high), abs=1e-9)
        alone = percentile_interval(apart.mean(), bootstrap_seed_means(apart, RESAMPLES, 0)[:, 0])
        narrower += alone.high - alone.low < 0.9 * (got[1] - got[0])
    assert narrower >= 2
    corrected = holm(np.array([c.p for c in analysis.comparisons]))
    assert [c.p_holm for c in analysis.comparisons] == pytest.approx(corrected.tolist())
    slices = pl.read_parquet(evaluation / "slices.parquet")
    for part in analysis.slices:
        value = dict(slices.select("request_id", part.slice).rows())
        here = np.array([value[request] == part.value for request in ids])
        gains = (values[analysis.best, "bm25"] - values["raw", "bm25"])[:, here, None]
        draws = bootstrap_seed_means(gains, RESAMPLES, 0, groups[here])[:, 0]
        expected = percentile_interval(gains.mean(), draws)
        assert (part.gain.low, part.gain.high) == pytest.approx(
            (expected.low, expected.high), abs=1e-9
        )


def test_one_seeds_p_values_are_over_shoppers(data: PreparedData, tmp_path: Path) -> None:
    """With one training run nothing but the shoppers is tested."""
    file = shop.write_answers(tmp_path / "a.jsonl", data, sometimes(4))
    evaluate(shop.config(), data, {"ospo": file}, tmp_path / "out", cache=None)
    analysis = analyse([tmp_path / "out"], resamples=RESAMPLES)
    wide, _, _ = load_values([tmp_path / "out"])
    owner = dict(pl.read_parquet(tmp_path / "out" / "slices.parquet")["request_id", "group"].rows())
    groups = np.array([owner[request] for request in wide["request_id"]])
    apart = (wide["0|ospo|bm25"] - wide["0|raw|bm25"]).to_numpy()[:, None]
    [first] = [
        c
        for c in analysis.comparisons
        if (c.policy, c.reference, c.retriever) == ("ospo", "raw", "bm25")
    ]
    [over_shoppers] = randomisation_test(apart, RESAMPLES, 0, groups)
    [over_requests] = randomisation_test(apart, RESAMPLES, 0)
    assert first.p == pytest.approx(over_shoppers)
    assert over_shoppers != pytest.approx(over_requests)


# --- rows of the table


def with_strangers(evaluation: Path, folder: Path) -> Path:
    """A copy whose table begins with rows that belong to other tables, all with wrong values."""
    shutil.copytree(evaluation, folder)
    table = pl.read_parquet(folder / "evaluation.parquet")
    table = table.filter(pl.col("scope") == "pool")
    greedy = table.filter(pl.col("decoding") == "greedy")
    wrong = greedy.with_columns((1 - pl.col(name)).alias(name) for name in MEASURES)
    test = wrong.filter(pl.col("split") == "test")
    strangers = [
        test.with_columns(decoding=pl.lit("sampled")),
        test.with_columns(scope=pl.lit("catalogue")),
        test.with_columns(split=pl.lit("validation")),
    ]
    pl.concat([*strangers, table], how="vertical_relaxed").write_parquet(
        folder / "evaluation.parquet"
    )
    return folder


def figures(analysis: Analysis) -> tuple:
    return analysis.means, analysis.comparisons, analysis.robustness, analysis.slices


def test_only_greedy_answers_within_pools_to_test_requests_make_the_table(
    evaluation: Path, tmp_path: Path
) -> None:
    mixed = with_strangers(evaluation, tmp_path / "mixed")
    clean, found = (analyse([folder], resamples=RESAMPLES) for folder in (evaluation, mixed))
    assert figures(found) == figures(clean)
    for policy in clean.policies:
        for retriever in clean.retrievers:
            for name in MEASURES:
                value = clean.measures.value("pool", policy, retriever, name)
                assert found.measures.value("pool", policy, retriever, name) == pytest.approx(value)
                sampled = found.measures.value("sampled", policy, retriever, name)
                assert sampled == pytest.approx(1 - value)
    assert "sampled" not in {scope for scope, _, _ in clean.measures.means}
    assert pick(mixed / "evaluation.parquet", "bm25").equals(
        pick(evaluation / "evaluation.parquet", "bm25")
    )


# --- slices and leaks


def test_head_and_tail_are_those_of_the_training_requests(data: PreparedData) -> None:
    """Every training request seeks boots, every test request something else: all of the test is
    tail, although its own most frequent category would be its head.
    """
    sought = dict(data.catalogue.select("item_id", "category").iter_rows())
    boots = next(item for item, category in sought.items() if category == "boots")
    requests = [replace(r, target_id=boots) if r.split == "train" else r for r in data.requests]
    turned = replace(data, requests=Requests.of(requests))
    rows = turned.rows("test")
    table = slice_table(turned, rows)
    expected = [
        "head" if sought[turned.requests[row].target_id] == "boots" else "tail" for row in rows
    ]
    assert table["popularity"].to_list() == expected
    assert set(expected) == {"head", "tail"}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_leak_of_either_held_out_split_stops_the_evaluation(
    data: PreparedData, tmp_path: Path, split: str
) -> None:
    """Validation chooses the policy: a policy trained on it would choose itself."""
    policy = tmp_path / "run" / "model.jsonl"
    policy.parent.mkdir()
    shop.write_answers(policy, data, shop.oracle)
    leaked = data.requests[int(data.rows(split)[0])].request_id
    log = policy.parent / "completions.parquet"
    pl.DataFrame({"request_id": [leaked]}).write_parquet(log)
    with pytest.raises(LeakError, match="was trained on 1 of"):
        evaluate(shop.config(), data, {"ospo": policy}, tmp_path / "out", cache=None)


@pytest.mark.parametrize(
    "pair", [("train", "validation"), ("train", "test"), ("validation", "test")]
)
def test_a_shopper_on_any_two_sides_is_a_leak(data: PreparedData, pair: tuple[str, str]) -> None:
    first, second = (int(data.rows(split)[0]) for split in pair)
    requests = list(data.requests)
    requests[first] = replace(requests[first], customer_id=requests[second].customer_id)
    with pytest.raises(LeakError, match=r"customer\(s\) on two sides"):
        check_split(replace(data, requests=Requests.of(requests)))
