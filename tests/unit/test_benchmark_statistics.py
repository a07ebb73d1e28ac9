"""What the learning benchmarks report is what the evaluation's statistics say: seeds drawn for all
arms at once, S − 1 of S, and requests of one shopper taken together.
"""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from benchmarks.controlled import against, report
from benchmarks.learning_arm import judged
from benchmarks.learning_figures import (
    NAMES,
    RESAMPLES,
    _equal_seconds,
    compared,
    over_seeds,
    plot,
    summary,
    within_seconds,
)
from ospo.config import load_config
from ospo.evaluation.statistics import bootstrap_seed_means, holm, randomisation_test, seed_test

SEEDS, SHOPPERS, EACH = [0, 1, 2, 3, 4], 30, 2


def made_up(seed: int = 0) -> dict[tuple[int, str], dict[str, np.ndarray]]:
    """Results of two arms. A shopper's two requests have the same scores; seeds shift OSPO's."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(SHOPPERS), EACH)
    base_ER = rng.uniform(0.2, 0.6, (len(NAMES), SHOPPERS))
    results: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    for s in SEEDS:
        start_ER = base_ER + 0.02

        def run(shift: float, noise: float, start_ER: np.ndarray = start_ER) -> dict:
            end_ER = start_ER + shift + noise * rng.normal(size=start_ER.shape)
            values = np.stack([start_ER, end_ER])[:, :, groups]
            steps, seconds = np.array([1, 2]), np.array([1.0, 1.0])
            held = values.mean(axis=2, keepdims=True)
            return {"values": values, "steps": steps, "seconds": seconds, "validation": held}

        both = np.stack([base_ER, start_ER])[:, :, groups]
        held = both.mean(axis=2, keepdims=True)
        results[s, "sft"] = {"values": both, "groups": groups, "validation": held}
        results[s, "grpo"] = run(0.05, 0.05)
        results[s, "ospo"] = run(0.08 + 0.02 * (s - 2), 0.05)
    return results


def test_the_summary_is_the_librarys() -> None:
    results = made_up()
    figures = summary(results, SEEDS, ["grpo", "ospo"], "ospo")
    groups = results[0, "sft"]["groups"]
    final = {
        name: np.stack([results[s, name]["values"][-1] for s in SEEDS]) for name in ("ospo", "grpo")
    }
    apart_SRE = (final["ospo"] - final["grpo"]).transpose(0, 2, 1)
    draws = bootstrap_seed_means(apart_SRE, RESAMPLES, 0, groups)
    by_seed = stats.ttest_1samp(apart_SRE.mean(axis=1), 0).pvalue
    by_shopper = randomisation_test(apart_SRE.mean(axis=0), RESAMPLES, 0, groups)
    for e, name in enumerate(NAMES):
        found = figures["ours_minus_grpo"][name]
        assert found["mean"] == pytest.approx(apart_SRE[..., e].mean())
        low, high = np.quantile(draws[:, e], [0.025, 0.975])
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=2e-3)
        assert found["p_seeds"] == pytest.approx(by_seed[e])
        assert found["p"] == pytest.approx(max(by_seed[e], by_shopper[e]), abs=5e-3)
    # Holm's correction is over everything reported: three references, five retrievers, and equal
    # seconds.
    rows = [*(figures[f"ours_minus_{other}"] for other in ("grpo", "raw", "sft"))]
    every = [row[name] for row in rows for name in NAMES]
    every.append(figures["ours_minus_grpo_equal_seconds"])
    assert [f["p_holm"] for f in every] == pytest.approx(
        holm(np.array([f["p"] for f in every])).tolist()
    )
    assert figures["kept"]["bm25"]["low"] < figures["kept"]["bm25"]["value"]


def test_a_rule_is_one_more_to_compare_with() -> None:
    results = made_up()
    raw_ER, sft_ER = (results[0, "sft"]["values"][look] for look in (0, 1))
    plain = summary(results, SEEDS, ["grpo", "ospo"], "ospo")
    figures = summary(results, SEEDS, ["grpo", "ospo"], "ospo", sft_ER)
    assert "ours_minus_rule" not in plain
    assert figures["ndcg"]["rule"] == pytest.approx(figures["ndcg"]["sft"])
    for name in NAMES:
        rule, sft = figures["ours_minus_rule"][name], figures["ours_minus_sft"][name]
        assert rule["mean"] == pytest.approx(sft["mean"])
        assert rule["mean"] < figures["ours_minus_raw"][name]["mean"]
    assert not np.array_equal(raw_ER, sft_ER)
    rows = [figures[f"ours_minus_{other}"] for other in ("grpo", "raw", "sft", "rule")]
    every = [row[name] for row in rows for name in NAMES]
    every.append(figures["ours_minus_grpo_equal_seconds"])  # Holm's correction is over these too
    assert [f["p_holm"] for f in every] == pytest.approx(
        holm(np.array([f["p"] for f in every])).tolist()
    )


def test_equal_seconds_choose_alike_on_validation_requests() -> None:
    """Of two equal arms the slower one is not held to a policy that its own looks would reject."""

    def arm(seconds: float, held: list[float]) -> dict[str, np.ndarray]:
        # A policy's test score is its validation score plus one, so that the two are told apart.
        table = np.array(held)[:, None, None] * np.ones((1, 1, 4))
        return {"values": table + 1, "validation": table, "steps": np.array([1, 2, 3]),
                "seconds": np.full(3, seconds)}  # fmt: skip

    start = {"values": np.full((2, 1, 4), 1.2), "validation": np.full((2, 1, 4), 0.2)}
    slow = arm(1.0, [0.5, 0.4, 0.9])
    for seconds, best in ((0.5, 1.2), (1.0, 1.5), (2.5, 1.5), (3.0, 1.9)):
        assert within_seconds(slow, start, seconds)[0, 0] == pytest.approx(best), seconds
    assert within_seconds(arm(1.0, [0.1, 0.1, 0.1]), start, 9.0)[0, 0] == pytest.approx(1.2)
    results = {(0, "sft"): start, (0, "grpo"): slow, (0, "ospo"): arm(0.5, [0.5, 0.4, 0.9])}
    # In 1.5 seconds ours is done, GRPO has looked once.
    assert _equal_seconds(results, [0], "ospo") == pytest.approx(np.full((1, 4), 0.4))


def test_figures_are_called_by_their_retriever(tmp_path: Path) -> None:
    names = judged(load_config(ROOT / "params.yaml", [
        "retrievers.training=bm25", "retrievers.unseen=[static]"]))  # fmt: skip
    assert names == ["bm25", "static", "lsa", "hybrid"]
    results = {
        key: {n: v[:, :4] if n in ("values", "validation") else v for n, v in one.items()}
        for key, one in made_up().items()
    }
    figures = summary(results, SEEDS, ["grpo", "ospo"], "ospo", names=names)
    assert list(figures["ndcg"]["ospo"]) == list(figures["ours_minus_raw"]) == names
    assert list(figures["kept"]) == names[1:]
    plot(figures | {"seeds": SEEDS}, "hm", tmp_path / "curves.svg")
    assert "(bm25)" in (tmp_path / "curves.svg").read_text(encoding="utf-8")


def test_two_requests_of_one_shopper_are_one() -> None:
    """Doubling every request of a shopper adds nothing: neither interval nor p gets narrower."""
    rng = np.random.default_rng(1)
    once_SRC = 0.05 + rng.normal(0, 0.2, (1, 25, 1))
    twice_SRC, groups = np.repeat(once_SRC, 2, axis=1), np.repeat(np.arange(25), 2)
    [one], [two] = compared(once_SRC, np.arange(25)), compared(twice_SRC, groups)
    assert two == pytest.approx(one)
    [naive] = compared(twice_SRC, np.arange(50))
    assert naive["p"] < 0.7 * one["p"]


def test_few_seeds_are_as_uncertain_as_they_are() -> None:
    """Where only the seeds differ, the interval's variance is s² / S: drawing S of S seeds would
    give (S − 1) / S of it.
    """
    shifts = np.array([-0.03, 0.01, 0.0, 0.02, 0.04])
    apart_SRC = np.repeat(shifts[:, None, None], 40, axis=1)
    draws = bootstrap_seed_means(apart_SRC, RESAMPLES, 0)[:, 0]
    low, high = np.quantile(draws, [0.025, 0.975])
    [found] = compared(apart_SRC, np.arange(40))
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert draws.var() == pytest.approx(shifts.var(ddof=1) / 5, rel=0.05)
    assert found["p"] == found["p_seeds"] == pytest.approx(stats.ttest_1samp(shifts, 0).pvalue)


@pytest.mark.parametrize(("file", "lead", "p"), [("hm", 0.027, 0.078), ("hm-100", 0.028, 0.165)])
def test_the_published_leads_are_not_clear_over_seeds(file: str, lead: float, p: float) -> None:
    kept = json.loads((ROOT / "docs/experiments" / f"learning-{file}.json").read_text())
    by_seed = kept["ndcg_by_seed"]
    apart = np.array(by_seed["ospo"]) - np.array(by_seed["grpo"])
    assert apart.mean() == pytest.approx(lead, abs=5e-4)
    assert seed_test(apart[:, None])[0] == pytest.approx(p, abs=5e-4)


def test_the_recomputed_tables_stand_in_the_documentation() -> None:
    page = (ROOT / "docs/experiments/2026-11-26-statistics.md").read_text(encoding="utf-8")
    for file in ("esci", "hm", "esci-100", "hm-100"):
        kept = json.loads((ROOT / "docs/experiments" / f"learning-{file}.json").read_text())
        for row in over_seeds(kept):
            assert row in page


def test_controlled_generation_compares_by_seed() -> None:
    apart = np.array([0.02, 0.05, -0.01, 0.03])
    reference = stats.ttest_1samp(apart, 0)
    interval = reference.confidence_interval(0.95)
    found = against(apart)
    assert found["ci"] == pytest.approx([interval.low, interval.high])
    assert found["p"] == pytest.approx(reference.pvalue)
    steps = np.linspace(0.1, 0.5, 40)
    curves = {"grpo": np.stack([steps, steps + 0.1]), "to-go": np.stack([steps + 0.1, steps + 0.3])}
    row = report(curves)["comparison"]["to-go"]
    assert row["final_minus_grpo"] == pytest.approx(0.15)
    assert row["final_p"] == pytest.approx(stats.ttest_1samp([0.1, 0.2], 0).pvalue)


def test_the_picture_is_an_svg_of_its_own(tmp_path: Path) -> None:
    figures = summary(made_up(), SEEDS, ["grpo", "ospo"], "ospo") | {"seeds": SEEDS}
    plot(figures, "hm", tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    shown = "".join(root.itertext())
    for arm in ("grpo", "ospo"):
        assert f"{arm} {figures['curves'][arm]['test'][-1]:.3f}" in shown
    assert "raw query" in shown
    assert "--c0" in shown  # the style sheet is inside
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
