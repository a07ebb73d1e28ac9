"""The promotion rule on cases with known answers, and the whole way from evaluation files to the
alias.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from registry_shop import Shop

from ospo import registry
from ospo.errors import InputError
from ospo.evaluation.analysis import Comparison
from ospo.evaluation.measures import MEASURES
from ospo.evaluation.statistics import (
    Interval,
    bootstrap_means,
    percentile_interval,
    randomisation_test,
)
from ospo.policy.rules import RULES
from ospo.registry import promotion
from ospo.registry.promotion import decide


def compared(retriever: str, value: float, p: float, p_holm: float | None = None) -> Comparison:
    interval = Interval(value, value - 0.01, value + 0.01)
    return Comparison("ospo", "champion", retriever, interval, p, p if p_holm is None else p_holm)


@pytest.mark.parametrize(
    ("gain", "p", "unseen", "promoted", "says"),
    [
        (0.02, 0.001, {"bm25": 0.01, "static": -0.009}, True, "better: +0.0200"),
        (0.02, 0.001, {"bm25": 0.01, "static": -0.011}, False, "better on minilm only"),
        (0.02, 0.05, {"bm25": 0.01}, False, "not clearly better"),
        (0.0, 0.001, {"bm25": 0.5}, False, "not better"),
        (-0.02, 0.001, {"bm25": 0.5}, False, "not better"),
        (0.02, 0.049, {}, True, "no unseen"),
    ],
)
def test_the_rule(
    gain: float, p: float, unseen: dict[str, float], promoted: bool, says: str
) -> None:
    comparisons = [compared(name, value, 0.5) for name, value in unseen.items()] + [
        compared("minilm", gain, p)
    ]
    decision = decide(comparisons, "minilm")
    assert (decision.promoted, says in decision.reason) == (promoted, True), decision.reason
    assert decision.figures["minilm"]["p"] == p


def test_the_one_primary_test_is_not_corrected_for_others() -> None:
    """p of the training retriever decides: not Holm's, which counts the unseen ones too, and not
    the p of an unseen one.
    """
    others = [compared("bm25", 0.01, 0.9), compared("static", 0.0, 0.001)]
    assert decide([*others, compared("minilm", 0.02, 0.03, 0.09)], "minilm").promoted
    assert not decide([*others, compared("minilm", 0.02, 0.3, 0.9)], "minilm").promoted


def test_without_the_training_retriever_there_is_no_decision() -> None:
    with pytest.raises(ValueError, match="minilm"):
        decide([compared("bm25", 1.0, 0.0)], "minilm")


def write_evaluation(
    folder: Path,
    gains: dict[str, float],
    requests: int = 120,
    against: str = "champion",
    shoppers: int = 0,
    spread: float = 0.02,
) -> Path:
    """An evaluation of two policies whose values differ by a gain per retriever plus noise
    of the standard deviation ``spread``.

    ``shoppers``: the requests come from that many, and those of one have the same noise.
    """
    folder.mkdir()
    random = np.random.default_rng(0)
    ids = [f"r{number:03}" for number in range(requests)]
    groups = [f"s{number % shoppers}" for number in range(requests)] if shoppers else ids
    frames = []
    rules = {against} if against in RULES else {"raw", against}
    for retriever, gain in gains.items():
        base = random.uniform(0.2, 0.6, requests)
        noise = random.normal(0, spread, requests)
        if shoppers:
            noise = noise[np.arange(requests) % shoppers]
        for policy, values in (
            # The champion is better than the rules.
            *((name, base if name == against else base - 0.1) for name in sorted(rules)),
            ("ospo", base + gain + noise),
        ):
            columns = {
                "policy": policy,
                "retriever": retriever,
                "split": "test",
                "scope": "pool",
                "decoding": "greedy",
                "sample": 0,
                "request_id": ids,
                "query": "q",
                "answer": "a",
            }
            frames.append(pl.DataFrame(columns | dict.fromkeys(MEASURES, values)))
    pl.concat(frames).write_parquet(folder / "evaluation.parquet")
    slices = pl.DataFrame({"request_id": ids, "group": groups})
    slices.write_parquet(folder / "slices.parquet")
    details = {"training_retriever": "minilm", "policies": {name: {} for name in [*rules, "ospo"]}}
    (folder / "details.json").write_text(json.dumps(details))
    summary = {"validation": {name: {"minilm": 0.4} for name in rules}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def two_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shop = Shop(tmp_path)
    shop.register(seed=1)
    shop.register(seed=2)
    return shop


def test_a_worse_challenger_stays_and_a_better_one_moves_the_alias(
    two_versions: Shop, tmp_path: Path
) -> None:
    config = two_versions.config
    worse = write_evaluation(tmp_path / "worse", {"minilm": 0.03, "bm25": -0.05})
    assert not promotion.consider(config, "esci", worse, challenger="ospo").promoted
    assert registry.champion(config, "esci").version == 1
    refused = registry.models(config)[0]
    assert refused.aliases == ("challenger",)
    assert json.loads(refused.tags["decision"])["figures"]["bm25"]["difference"] == pytest.approx(
        -0.05, abs=0.01
    )
    assert "**Not champion** since" in refused.description
    better = write_evaluation(tmp_path / "better", {"minilm": 0.03, "bm25": 0.0})
    assert promotion.consider(config, "esci", better, challenger="ospo").promoted
    champion = registry.champion(config, "esci")
    decision = json.loads(champion.tags["decision"])
    assert (champion.version, decision["against"], decision["requests"]) == (2, 1, 120)
    assert decision["figures"]["minilm"]["p"] < 0.05


def test_the_decision_names_the_version_that_was_evaluated(
    two_versions: Shop, tmp_path: Path
) -> None:
    """Where the champion's files are damaged, another version is compared in its place."""
    config = two_versions.config
    registry.promote(config, "esci", 2)
    two_versions.register(seed=3)
    [former] = [item for item in registry.models(config) if item.version == 1]
    better = write_evaluation(tmp_path / "better", {"minilm": 0.03, "bm25": 0.0})
    noted = {"evaluation": "e"}
    promotion.consider(config, "esci", better, challenger="ospo", in_use=former, noted=noted)
    champion = registry.champion(config, "esci")
    decision = json.loads(champion.tags["decision"])
    assert (champion.version, decision["against"], decision["evaluation"]) == (3, 1, "e")
    assert "by" not in decision


def test_the_first_version_must_be_better_than_the_raw_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shop = Shop(tmp_path)
    shop.register(seed=1, champion_if_first=False)
    worse = write_evaluation(tmp_path / "worse", {"minilm": -0.1, "bm25": 0.0}, against="raw")
    assert not promotion.consider(
        shop.config, "esci", worse, challenger="ospo", champion=None
    ).promoted
    rule = registry.champion(shop.config, "esci")
    assert (rule.version, rule.tags["rule"]) == (2, "raw")
    better = write_evaluation(tmp_path / "better", {"minilm": 0.03, "bm25": 0.0}, against="raw")
    assert promotion.consider(
        shop.config, "esci", better, challenger="ospo", champion=None
    ).promoted
    assert json.loads(registry.champion(shop.config, "esci").tags["decision"])["against"] == "raw"


def test_a_candidate_must_be_better_than_the_best_rule(two_versions: Shop, tmp_path: Path) -> None:
    """Better than the raw query and the champion is not enough; which rule is the best one, the
    validation requests say.
    """
    folder = write_evaluation(tmp_path / "e", {"minilm": 0.03, "bm25": 0.0})
    table = pl.read_parquet(folder / "evaluation.parquet")
    rule = table.filter(policy="ospo").with_columns(pl.lit("history").alias("policy"))
    pl.concat([table, rule]).write_parquet(folder / "evaluation.parquet")
    for value, promoted in ((0.5, False), (0.3, True)):
        summary = {"validation": {"raw": {"minilm": 0.4}, "history": {"minilm": value}}}
        (folder / "summary.json").write_text(json.dumps(summary))
        decision = promotion.consider(two_versions.config, "esci", folder, challenger="ospo")
        assert decision.promoted == promoted
        assert ("against the best rule (rule: history) not better" in decision.reason) != promoted
        assert registry.champion(two_versions.config, "esci").version == (2 if promoted else 3)
        if not promoted:
            noted = json.loads(registry.models(two_versions.config)[1].tags["decision"])
            assert (noted["against"], noted["rule"]["name"]) == ("history", "history")


def test_a_champion_that_a_person_chose_stays(two_versions: Shop, tmp_path: Path) -> None:
    """However bad it is; a candidate that passes takes its place all the same."""
    config = two_versions.config
    registry.promote(config, "esci", 2)
    registry.promote(config, "esci", 1)
    folder = write_evaluation(tmp_path / "e", {"minilm": -0.03}, against="raw")
    for change in ("details.json", "summary.json"):
        found = json.loads((folder / change).read_text())
        if change == "details.json":
            found["policies"]["champion"] = {}
        (folder / change).write_text(json.dumps(found))
    table = pl.read_parquet(folder / "evaluation.parquet")
    worse = table.filter(policy="raw").with_columns(
        pl.lit("champion").alias("policy"), *(pl.col(name) - 0.1 for name in MEASURES)
    )
    pl.concat([table, worse]).write_parquet(folder / "evaluation.parquet")
    decision = promotion.consider(config, "esci", folder, challenger="ospo", version=2)
    assert not decision.promoted
    assert registry.champion(config, "esci").version == 1
    registry.promote(config, "esci", 1, decision={"promoted": True, "reason": "better"})
    promotion.consider(config, "esci", folder, challenger="ospo", version=2)
    assert "rule" in registry.champion(config, "esci").tags


def test_an_evaluation_without_the_champion_is_one_clear_line(
    two_versions: Shop, tmp_path: Path
) -> None:
    evaluation = write_evaluation(tmp_path / "e", {"minilm": 0.03})
    with pytest.raises(InputError, match="former was not evaluated"):
        promotion.consider(
            two_versions.config, "esci", evaluation, challenger="ospo", champion="former"
        )


@pytest.mark.parametrize("others", [("bm25", "static"), ("xlnet", "zebra")])
def test_the_p_value_is_that_of_the_training_retriever(
    two_versions: Shop, tmp_path: Path, others: tuple[str, str]
) -> None:
    """Whatever the other retrievers say, and wherever they stand in the table."""
    gains = dict.fromkeys(others, 0.05) | {"minilm": 0.0005}
    evaluation = write_evaluation(tmp_path / "unclear", gains)
    decision = promotion.consider(two_versions.config, "esci", evaluation, challenger="ospo")
    assert not decision.promoted
    assert decision.figures["minilm"]["p"] > 0.05
    assert all(decision.figures[name]["p"] < 0.01 for name in others)
    gains = dict.fromkeys(others, 0.0) | {"minilm": 0.05}
    evaluation = write_evaluation(tmp_path / "clear", gains)
    decision = promotion.consider(two_versions.config, "esci", evaluation, challenger="ospo")
    assert decision.promoted
    assert decision.figures["minilm"]["p"] < 0.01
    assert all(decision.figures[name]["p"] > 0.05 for name in others)
    assert decision.figures["minilm"]["difference"] == pytest.approx(0.05, abs=0.005)


def test_requests_of_one_shopper_count_together(tmp_path: Path) -> None:
    """Twenty requests each of six shoppers are six opinions, not 120."""
    p = {}
    for name, shoppers in (("alone", 0), ("together", 6)):
        evaluation = write_evaluation(tmp_path / name, {"minilm": 0.009}, shoppers=shoppers)
        [found], requests = promotion.compare(evaluation, "ospo", "champion", seed=0)
        assert requests == 120
        p[name] = found.p
    assert p["alone"] < 0.001
    assert p["together"] > 0.02  # six shoppers: 64 patterns of signs


def test_every_retriever_has_its_own_column(tmp_path: Path) -> None:
    """Every comparison has its own column's p-value and interval, over shoppers; over requests the
    same differences would look clear.
    """
    gains = {"bm25": 0.0, "minilm": 0.05, "static": 0.3}
    folder = write_evaluation(tmp_path / "e", gains, shoppers=20, spread=0.3)
    found, requests = promotion.compare(folder, "ospo", "champion", 0)
    assert requests == 120
    table = pl.read_parquet(folder / "evaluation.parquet").sort("request_id")
    groups = pl.read_parquet(folder / "slices.parquet").sort("request_id")["group"].to_numpy()
    for comparison in found:
        one = table.filter(pl.col("retriever") == comparison.retriever)
        ours, theirs = (one.filter(pl.col("policy") == p)["ndcg@10"] for p in ("ospo", "champion"))
        apart = (ours - theirs).to_numpy()[:, None]
        [p] = randomisation_test(apart, promotion.RESAMPLES, 0, groups)
        draws = bootstrap_means(apart, promotion.RESAMPLES, 0, groups)[:, 0]
        interval = percentile_interval(float(apart.mean()), draws)
        assert comparison.p == pytest.approx(p)
        assert comparison.difference.low == pytest.approx(interval.low)
        assert comparison.difference.high == pytest.approx(interval.high)
    by_name = {comparison.retriever: comparison for comparison in found}
    assert by_name["static"].p < 0.05 < by_name["bm25"].p
    assert by_name["static"].p_holm == pytest.approx(3 * by_name["static"].p)


def test_the_gain_of_few_shoppers_does_not_promote(two_versions: Shop, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "e", {"minilm": 0.08}, shoppers=10, spread=0.25)
    decision = promotion.consider(two_versions.config, "esci", folder, challenger="ospo")
    assert decision.figures["minilm"]["difference"] > 0
    assert not decision.promoted
    table = pl.read_parquet(folder / "slices.parquet").with_columns(group=pl.col("request_id"))
    table.write_parquet(folder / "slices.parquet")  # as if each request were a shopper of its own
    assert promotion.consider(two_versions.config, "esci", folder, challenger="ospo").promoted
