"""The evaluation as a whole: one table, derived figures, leak checks, broken retrievers and
policies, comparisons.
"""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import evaluation_shop as shop
import numpy as np
import polars as pl
import pytest
from registry_shop import Shop as RegisteredShop
from rich.console import Console

from ospo.config import Model
from ospo.data.dataset import PreparedData, Requests
from ospo.errors import InputError, OspoError
from ospo.evaluation.analysis import analyse
from ospo.evaluation.answers import choose_requests
from ospo.evaluation.evaluate import evaluate
from ospo.evaluation.leaks import LeakError, check_split
from ospo.evaluation.measures import MEASURES, measure
from ospo.evaluation.scoring import score_texts
from ospo.evaluation.selection import best_policy, best_rule
from ospo.evaluation.slices import OTHERS, in_order, slice_table
from ospo.files import write_manifest
from ospo.policy.seen import request_keys, write_seen
from ospo.policy.text import search_text
from ospo.policy.weights import build_scratch, save_policy
from ospo.reports.compare import Named, compare, comparison_table, resolve
from ospo.reports.demo_table import demo_table, holds, write_demo_report
from ospo.retrieval import build_retriever
from ospo.reward.search import SearchReward

TINY = {
    "source": "scratch",
    "vocab_size": 320,
    "hidden_size": 32,
    "layers": 1,
    "heads": 2,
    "dtype": "float32",
}
KEYS = ["policy", "retriever", "split", "scope", "decoding", "sample", "request_id"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    """The small shop."""
    return shop.write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def policies(tmp_path_factory, data) -> dict[str, Path]:
    """A policy that guesses half of the time, one that is always right, one that is silent for
    every fourth request.
    """
    root = tmp_path_factory.mktemp("answers")

    def half(request, colour: str) -> str:
        return f"{colour if int(request.request_id[1:]) % 4 < 2 else 'pink'} {request.query}"

    def silent(request, colour: str) -> str:
        return " ,,, " if int(request.request_id[1:]) % 4 == 0 else shop.oracle(request, colour)

    written = {"sft": half, "grpo": silent, "ospo": shop.oracle}
    return {
        name: shop.write_answers(root / f"{name}.jsonl", data, answer)
        for name, answer in written.items()
    }


@pytest.fixture(scope="module")
def tiny_policy(tmp_path_factory, data) -> Path:
    """A real policy with random weights."""
    settings = Model(**TINY)
    directory = tmp_path_factory.mktemp("policy") / "model"
    network, tokenizer = build_scratch(settings, data.item_texts, 0)
    save_policy(network, tokenizer, settings, directory)
    return directory


@pytest.fixture(scope="module")
def result(tmp_path_factory, data, policies) -> tuple[Path, dict]:
    """One evaluation: its directory and its summary."""
    out = tmp_path_factory.mktemp("out")
    return out, evaluate(shop.config(), data, policies, out, cache=None)


def test_one_row_each(result, data) -> None:
    table = pl.read_parquet(result[0] / "evaluation.parquet")
    tests, validations = len(data.rows("test")), len(data.rows("validation"))
    swapped = 3 * tests * 2  # no rule has a control, and no catalogue is searched for it
    assert len(table) == swapped + 6 * (
        tests * 2 * 2 + validations
    )  # policies x requests x retrievers x scopes
    assert not table.select(KEYS).is_duplicated().any()
    assert table.null_count().sum_horizontal().item() == 0
    assert set(table.filter(pl.col("split") == "validation")["retriever"]) == {"bm25"}
    values = table.select(MEASURES).to_numpy()
    assert values.min() >= 0
    assert values.max() <= 1 + 1e-12


def test_rows_equal_the_training_reward(result, data) -> None:
    """The table's nDCG@10 is SearchReward's, to the last bit: evaluation and training rank
    alike.
    """
    config = shop.config()
    table = pl.read_parquet(result[0] / "evaluation.parquet").filter(
        (pl.col("scope") == "pool") & (pl.col("split") == "test")
    )
    for name in ("bm25", "static"):
        rows = table.filter(pl.col("retriever") == name)
        reward = SearchReward(build_retriever(name, config, data), data, 10, 1000)
        expected = reward(rows["answer"].to_list(), [data.row_of(r) for r in rows["request_id"]])
        assert np.array_equal(rows["ndcg@10"].to_numpy(), expected)


def test_catalogue_rows_equal_a_ranking_of_everything(
    result, data, policies, tmp_path, monkeypatch
) -> None:
    retriever = build_retriever("static", shop.config(), data)
    table = pl.read_parquet(result[0] / "evaluation.parquet").filter(
        (pl.col("scope") == "catalogue")
        & (pl.col("retriever") == "static")
        & (pl.col("policy") != "grpo")
    )
    rows = [data.row_of(request) for request in table["request_id"]]
    gains = np.zeros((len(rows), len(data.item_ids)), dtype=np.float32)
    np.put_along_axis(gains, data.pools_RP[rows], data.gains_RP[rows], axis=1)
    everything = np.tile(np.arange(len(data.item_ids)), (len(rows), 1))
    scores = retriever.score([search_text(answer) for answer in table["answer"]], everything)
    for name, expected in measure(scores, gains).items():
        np.testing.assert_allclose(table[name], expected, atol=1e-12, err_msg=name)
    monkeypatch.setattr("ospo.evaluation.scoring.SEARCHES", 5)
    evaluate(shop.config(), data, policies, tmp_path, cache=None)
    assert pl.read_parquet(tmp_path / "evaluation.parquet").equals(
        pl.read_parquet(result[0] / "evaluation.parquet")
    )


def test_summary_is_the_mean_of_the_table(result) -> None:
    out, summary = result
    assert json.loads((out / "summary.json").read_text()) == summary
    table = pl.read_parquet(out / "evaluation.parquet").filter(pl.col("scope") == "pool")
    assert summary["guard"] == {}  # no model wrote these answers: none is more sure than another
    for split, figures in summary.items():
        for policy, row in figures.items():
            for retriever, value in row.items():
                here = (
                    (pl.col("split") == split.replace("control", "test"))
                    & (pl.col("decoding") == ("swapped" if split == "control" else "greedy"))
                    & (pl.col("policy") == policy)
                    & (pl.col("retriever") == retriever)
                )
                assert value == pytest.approx(table.filter(here)["ndcg@10"].mean())
    assert summary["test"]["ospo"]["bm25"] > summary["test"]["sft"]["bm25"]
    assert summary["test"]["ospo"]["static"] > summary["test"]["raw"]["static"]


def test_chunks_do_not_change_the_table(result, data, policies, tmp_path) -> None:
    evaluate(shop.config(), data, policies, tmp_path, cache=None, chunk=7)
    whole = pl.read_parquet(result[0] / "evaluation.parquet").sort(KEYS)
    chunked = pl.read_parquet(tmp_path / "evaluation.parquet").sort(KEYS)
    assert whole.equals(chunked)


def test_empty_answers_score_zero_and_are_counted(result, data) -> None:
    details = json.loads((result[0] / "details.json").read_text())
    asked = [data.requests[r] for split in ("validation", "test") for r in data.rows(split)]
    silent = sum(int(request.request_id[1:]) % 4 == 0 for request in asked)
    assert details["answers"]["grpo"]["empty"] == silent > 0
    assert details["answers"]["ospo"]["empty"] == 0
    table = pl.read_parquet(result[0] / "evaluation.parquet").filter(
        (pl.col("policy") == "grpo")
        & (pl.col("decoding") == "greedy")
        & (pl.col("request_id").str.slice(1).cast(pl.Int32) % 4 == 0)
    )
    assert len(table)
    assert table.select(pl.max_horizontal(pl.col(MEASURES).max())).item() == 0


def test_policy_is_chosen_on_validation(result) -> None:
    assert best_policy(result[1], "bm25") == "ospo"
    figures = {
        "validation": {"grpo": {"bm25": 0.5}, "ospo": {"bm25": 0.5}, "sft": {"bm25": 0.9}},
        "test": {},
    }
    assert best_policy(figures, "bm25") == "grpo"
    with pytest.raises(ValueError, match="none of"):
        best_policy({"validation": {}}, "bm25")


def test_request_choice(data) -> None:
    chosen = choose_requests(data, "test", 10)
    assert len(chosen) == 10
    assert set(chosen) <= set(data.rows("test"))
    assert not np.array_equal(chosen, data.rows("test")[:10])
    assert set(chosen) <= set(
        choose_requests(data, "test", 20)
    )  # more requests extend, never exchange
    nothing = replace(
        data, requests=Requests.of(replace(request, split="train") for request in data.requests)
    )
    with pytest.raises(InputError, match="no request in split 'test'"):
        choose_requests(nothing, "test", 0)


def test_leaks_stop_the_evaluation(data, policies, tmp_path) -> None:
    check_split(data)
    test = int(data.rows("test")[0])
    requests = list(data.requests)
    requests[test] = replace(
        requests[test], split="train"
    )  # its shopper's other request stays in the test split
    with pytest.raises(LeakError, match=r"1 customer\(s\) on two sides"):
        evaluate(
            shop.config(),
            replace(data, requests=Requests.of(requests)),
            policies,
            tmp_path / "a",
            cache=None,
        )
    anonymous = [replace(r, customer_id="", query=f"q{n}") for n, r in enumerate(data.requests)]
    check_split(replace(data, requests=Requests.of(anonymous)))
    train = int(data.rows("train")[0])
    anonymous[test] = replace(anonymous[test], query=f" {anonymous[train].query.upper()} ")
    with pytest.raises(LeakError, match=r"1 query\(s\) on two sides"):
        check_split(replace(data, requests=Requests.of(anonymous)))
    assert not (tmp_path / "a" / "evaluation.parquet").exists()


def test_training_log_is_checked(data, policies, tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    policy = run / "model.jsonl"
    policy.write_bytes(policies["ospo"].read_bytes())
    train, test = (
        data.requests[int(data.rows(split)[0])].request_id for split in ("train", "test")
    )
    pl.DataFrame({"request_id": [train]}).write_parquet(run / "completions.parquet")
    evaluate(shop.config(), data, {"ospo": policy}, tmp_path / "out", cache=None)
    assert (
        json.loads((tmp_path / "out" / "details.json").read_text())["leak_checks"][
            "training_requests"
        ]["ospo"]
        == 1
    )
    pl.DataFrame({"request_id": [train, test]}).write_parquet(run / "completions.parquet")
    with pytest.raises(LeakError, match="was trained on 1 of"):
        evaluate(shop.config(), data, {"ospo": policy}, tmp_path / "out", cache=None)


def test_what_a_policy_has_seen_travels_with_it(data, tiny_policy, tmp_path) -> None:
    """The directory of a policy names its training requests, wherever it was copied to."""
    train, test = (data.rows(split) for split in ("train", "test"))
    clean, leaky = tmp_path / "clean", tmp_path / "leaky"
    for copy, rows in ((clean, train), (leaky, [*train, test[0]])):
        shutil.copytree(tiny_policy, copy)
        write_seen(copy, request_keys(data, rows))
        write_manifest(copy)
    overrides = ["evaluation.max_requests=0", "presets.nano.rl.max_completion_tokens=2"]
    evaluate(shop.config(*overrides), data, {"mine": clean}, tmp_path / "out", cache=None)
    details = json.loads((tmp_path / "out" / "details.json").read_text())
    assert details["leak_checks"]["training_requests"]["mine"] == len(train)
    with pytest.raises(LeakError, match="was trained on 1 of"):
        evaluate(shop.config(*overrides), data, {"mine": leaky}, tmp_path / "out", cache=None)
    # The same ids in another shop are other requests.
    elsewhere = replace(
        data, requests=Requests.of(replace(r, query=f"{r.query} cheap") for r in data.requests)
    )
    evaluate(
        shop.config(*overrides), elsewhere, {"mine": leaky}, tmp_path / "elsewhere", cache=None
    )
    (clean / "training_requests.json").write_text("{")
    with pytest.raises(InputError, match="not a list of request keys"):
        evaluate(shop.config(*overrides), data, {"mine": clean}, tmp_path / "out", cache=None)


class Broken:
    """A retriever that breaks its contract in a chosen way."""

    name, linear = "broken", False

    def __init__(self, how: str):
        self.how = how

    def index(self, item_ids, item_texts, cache=None):
        self.items = len(item_ids)

    def score(self, texts, rows_BP):
        scores = np.zeros(rows_BP.shape, dtype=np.float32)
        if self.how == "few":
            return scores[:, :-1]
        if self.how == "nan":
            scores[0, 0] = np.nan
        if self.how == "infinite":
            scores[0, 0] = -np.inf
        if self.how == "raises":
            raise ValueError("retriever broken: returned NaN for text 0 of the batch")
        return scores

    def search(self, texts, top_k):
        rows = np.tile(np.arange(self.items), (len(texts), 1))
        scores = -rows.astype(np.float32)
        if self.how == "few":
            return rows[:, :3], scores[:, :3]
        if self.how == "unknown":
            rows[0, 0] = self.items
        if self.how == "twice":
            rows[0, 0] = 1
        if self.how == "order":
            scores = -scores
        return rows, scores


@pytest.mark.parametrize("how", ["few", "nan", "infinite", "raises"])
def test_broken_scores_are_reported(data, how: str) -> None:
    rows = data.rows("test")[:3]
    with pytest.raises(OspoError, match=r"retriever .?broken"):
        score_texts(Broken(how), ["a"] * 3, data.pools_RP[rows], data.gains_RP[rows])


@pytest.mark.parametrize("how", ["few", "unknown", "twice", "order"])
def test_broken_search_is_reported(data, how: str) -> None:
    rows = data.rows("test")[:3]
    retriever = Broken(how)
    retriever.index(data.item_ids, data.item_texts)
    with pytest.raises(OspoError, match="retriever 'broken'"):
        score_texts(
            retriever,
            ["a"] * 3,
            data.pools_RP[rows],
            data.gains_RP[rows],
            "catalogue",
            len(data.item_ids),
        )


def test_nothing_is_left_half_written(data, policies, tmp_path) -> None:
    with pytest.raises(OspoError, match="nonesuch"):
        evaluate(
            shop.config("retrievers.unseen=[nonesuch:Class]"), data, policies, tmp_path, cache=None
        )
    assert [p.name for p in tmp_path.iterdir()] == ["answers.parquet"]


def test_slices(data) -> None:
    table = slice_table(data, data.rows("test"))
    assert table.null_count().sum_horizontal().item() == 0
    assert set(table["words"]) == {"1", "2"}
    assert in_order({"10 or more", "4–9", OTHERS, "2–3", "1"}) == [
        "1",
        "2–3",
        "4–9",
        "10 or more",
        OTHERS,
    ]
    assert set(table["grades"]) == {"E", "E+S"}
    assert set(table["history"]) == {"0", "1–2", "3–4"}
    assert table["group"].n_unique() == len(table) / 2


def test_analysis(result, data) -> None:
    analysis = analyse([result[0]], resamples=400)
    assert analysis.policies == ["raw", "history", "feedback", "sft", "grpo", "ospo"]
    assert analysis.retrievers == ["bm25", "static"]
    assert analysis.requests == len(data.rows("test"))
    assert analysis.groups == analysis.requests / 2  # two requests a shopper are one unit
    assert analysis.best == "ospo"
    asked = {(c.policy, c.reference) for c in analysis.comparisons}
    rule = best_rule(result[1], "bm25")
    assert asked == {
        ("history", "raw"),
        ("feedback", "raw"),
        *((policy, rule) for policy in ("sft", "grpo", "ospo")),
        ("sft", "raw"),
        ("grpo", "raw"),
        ("ospo", "raw"),
        ("grpo", "sft"),
        ("ospo", "sft"),
        ("ospo", "grpo"),
    }
    for c in analysis.comparisons:
        expected = (
            analysis.means[c.policy][c.retriever].value
            - analysis.means[c.reference][c.retriever].value
        )
        assert c.difference.value == pytest.approx(expected)
        assert c.p <= c.p_holm <= 1
    for row in analysis.slices:
        assert row.requests > 0
    for name in {row.slice for row in analysis.slices}:
        assert (
            sum(row.requests for row in analysis.slices if row.slice == name) == analysis.requests
        )


def test_several_seeds(result, data, policies, tmp_path) -> None:
    one = analyse([result[0]], resamples=400)
    twice = analyse([result[0], result[0]], resamples=400)
    assert twice.seeds == 2
    assert twice.means["ospo"]["bm25"] == one.means["ospo"]["bm25"]
    assert len(twice.seed_means["ospo"]["bm25"]) == 2
    evaluate(shop.config(), data, {"other": policies["sft"]}, tmp_path, cache=None)
    with pytest.raises(InputError, match="other policies or retrievers"):
        analyse([result[0], tmp_path], resamples=400)


def test_a_policy_of_several_seeds(data, tmp_path) -> None:
    """One evaluation of three training runs: one table with a seed column, and statistics over both
    levels.
    """

    def run(wrong: int):
        return lambda request, colour: (
            ("pink, " if int(request.request_id[1:]) % 7 < wrong else f"{colour}, ") + request.query
        )

    files = {
        name: [
            shop.write_answers(tmp_path / f"{name}{s}.jsonl", data, run(wrong))
            for s, wrong in enumerate(errors)
        ]
        for name, errors in {"sft": (6, 5, 6), "ospo": (2, 1, 3)}.items()
    }
    out = tmp_path / "out"
    summary = evaluate(
        shop.config(), data, {"sft": files["sft"], "ospo": dict(enumerate(files["ospo"]))}, out
    )
    table = pl.read_parquet(out / "evaluation.parquet")
    assert not table.select([*KEYS, "seed"]).is_duplicated().any()
    assert table.group_by("policy").agg(pl.col("seed").n_unique()).sort("policy").rows() == [
        ("feedback", 1),
        ("history", 1),
        ("ospo", 3),
        ("raw", 1),
        ("sft", 3),
    ]
    analysis = analyse([out], resamples=1000)
    assert analysis.seeds == 3
    for policy in ("sft", "ospo"):
        for retriever in analysis.retrievers:
            seeds = analysis.seed_means[policy][retriever]
            assert len(set(seeds)) > 1
            assert analysis.means[policy][retriever].value == pytest.approx(np.mean(seeds))
            assert summary["test"][policy][retriever] == pytest.approx(np.mean(seeds))
    assert len(set(analysis.seed_means["raw"]["bm25"])) == 1
    # Another order of the same runs, as one evaluation a seed: the same figures.
    for s in range(3):
        evaluate(
            shop.config(),
            data,
            {name: listed[s] for name, listed in files.items()},
            tmp_path / f"s{s}",
        )
    apart = analyse([tmp_path / f"s{s}" for s in range(3)], resamples=1000)
    assert apart.means == analysis.means
    assert apart.comparisons == analysis.comparisons
    # A clear difference over requests is not enough where the runs disagree: p is the larger of the
    # two.
    single = analyse([tmp_path / "s0"], resamples=1000)
    gain = next(
        c
        for c in analysis.comparisons
        if (c.policy, c.reference, c.retriever) == ("ospo", "sft", "bm25")
    )
    alone = next(
        c
        for c in single.comparisons
        if (c.policy, c.reference, c.retriever) == ("ospo", "sft", "bm25")
    )
    assert gain.p > alone.p
    examples = json.loads((out / "examples.json").read_text())
    answers = {
        r["request_id"]: r["answer"]
        for r in map(json.loads, files["ospo"][0].read_text().splitlines())
    }
    assert all(e["answer"] == answers[e["request_id"]] for e in examples if e["policy"] == "ospo")
    details = json.loads((out / "details.json").read_text())
    assert [run["seed"] for run in details["policies"]["ospo"]["runs"]] == [0, 1, 2]
    evaluate(
        shop.config(), data, {"sft": files["sft"][:2], "ospo": files["ospo"]}, tmp_path / "uneven"
    )
    with pytest.raises(InputError, match="evaluate the same seeds"):
        analyse([tmp_path / "uneven"])
    with pytest.raises(InputError, match="names no policy"):
        evaluate(shop.config(), data, {"sft": []}, tmp_path / "none")


def test_sampled_answers(data, tmp_path, tiny_policy) -> None:
    """Sampled decoding of a real policy beside greedy decoding: as many rows as asked for, figures
    of their own.
    """
    overrides = [
        "evaluation.samples=2",
        "evaluation.max_requests=10",
        "presets.nano.rl.max_completion_tokens=6",
    ]
    summary = evaluate(
        shop.config(*overrides),
        data,
        {"mine": tiny_policy},
        tmp_path / "out",
        cache=tmp_path / "cache",
    )
    table = pl.read_parquet(tmp_path / "out" / "evaluation.parquet").filter(
        pl.col("policy") == "mine"
    )
    drawn = table.filter(pl.col("decoding") == "sampled")
    assert drawn.group_by("retriever", "scope", "split", "sample").len().sort(
        "retriever", "sample"
    ).rows() == [
        (retriever, "pool", "test", sample, 10)
        for retriever in ("bm25", "static")
        for sample in (0, 1)
    ]
    assert set(table.filter(pl.col("decoding") == "greedy")["sample"]) == {0}
    by_sample = drawn.filter(pl.col("retriever") == "bm25").pivot(
        "sample", index="request_id", values="answer"
    )
    assert (by_sample["0"] != by_sample["1"]).any()
    analysis = analyse([tmp_path / "out"], resamples=200)
    means = drawn.filter(pl.col("retriever") == "bm25")["ndcg@10"].mean()
    greedy = table.filter(
        (pl.col("retriever") == "bm25")
        & (pl.col("split") == "test")
        & (pl.col("scope") == "pool")
        & (pl.col("decoding") == "greedy")
    )["ndcg@10"].mean()
    assert greedy != pytest.approx(means)
    assert summary["test"]["mine"]["bm25"] == pytest.approx(greedy)
    assert analysis.means["mine"]["bm25"].value == pytest.approx(greedy)
    assert analysis.measures.value("sampled", "mine", "bm25", "ndcg@10") == pytest.approx(means)
    assert analysis.measures.policies("sampled") == ["mine"]
    assert analysis.measures.policies("pool") == ["raw", "history", "feedback", "mine"]


def test_examples_show_the_credit(result) -> None:
    examples = json.loads((result[0] / "examples.json").read_text())
    assert {example["kind"] for example in examples} == {"improved", "worse"}
    for example in examples:
        assert "".join(phrase["text"] for phrase in example["phrases"]) == example["answer"]
        change = example["ndcg"] - example["raw_ndcg"]
        assert (change > 0) == (example["kind"] == "improved")
    best = [e for e in examples if e["policy"] == "ospo" and e["kind"] == "improved"]
    assert len(best) == 6
    assert best == sorted(best, key=lambda e: e["raw_ndcg"] - e["ndcg"])


def test_compare(data, policies, tmp_path) -> None:
    a, b = (Named(name, policies[name]) for name in ("sft", "ospo"))
    analysis = compare(shop.config(), data, a, b, tmp_path, cache=None)
    assert {(c.policy, c.reference) for c in analysis.comparisons} == {
        ("ospo", "sft"),
        ("sft", "raw"),
        ("ospo", "raw"),
    }
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(comparison_table(analysis, a, b, "shop"))
    console_text = console.export_text()
    assert console_text.count("B is better") == 2
    against_raw = compare(shop.config(), data, Named("raw", None), b, tmp_path, cache=None)
    assert {(c.policy, c.reference) for c in against_raw.comparisons} == {("ospo", "raw")}
    with pytest.raises(InputError, match="named twice"):
        compare(shop.config(), data, a, a, tmp_path, cache=None)


def test_compare_names(policies, tmp_path) -> None:
    config = shop.config()
    run = tmp_path / "runs" / "esci" / "grpo"
    (run / "model").mkdir(parents=True)
    (run / "step.json").write_text(json.dumps({"run_id": "abc123"}))
    assert resolve("raw", config) == Named("raw", None)
    assert resolve("history", config) == Named("history", None)
    assert resolve(str(policies["sft"]), config).source == policies["sft"]
    assert resolve(str(run), config).source == run / "model"
    assert resolve("abc123", config, tmp_path / "runs").source == run / "model"
    with pytest.raises(InputError, match="names no policy"):
        resolve("nothing", config, tmp_path / "runs")


def test_registered_versions_are_compared(tmp_path, data, monkeypatch) -> None:
    """Two versions of a real registry, by alias and by number, and a version against a run's
    folder.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    registered = RegisteredShop(tmp_path / "registry")
    registered.folder.mkdir()
    registered.register(seed=0)
    registered.register(seed=1)
    config = shop.config(
        f"tracking.uri={registered.config.tracking.uri}",
        "evaluation.max_requests=12",
        "presets.nano.rl.max_completion_tokens=4",
        "presets.nano.rl.max_prompt_tokens=40",
    )
    first, second = (
        resolve("ospo-rewriter-esci@champion", config),
        resolve("ospo-rewriter-esci/2", config),
    )
    assert (first.name, second.name) == ("ospo-rewriter-esci/1", "ospo-rewriter-esci/2")
    analysis = compare(config, data, first, second, tmp_path / "out", cache=None)
    assert set(analysis.policies) == {"raw", "history", "feedback", first.name, second.name}
    details = json.loads((tmp_path / "out" / "details.json").read_text())
    hashes = {policy["hash"] for policy in details["policies"].values()}
    assert len(hashes) == 3
    greedy = pl.read_parquet(tmp_path / "out" / "answers.parquet").filter(decoding="greedy")
    answers = greedy.pivot("policy", index="row", values="answer")
    assert (answers[first.name] != answers[second.name]).any()
    # A version is asked as it is served, whatever the preset of now allows.
    asked = pl.read_parquet(tmp_path / "out" / "answers.parquet").filter(
        pl.col("policy").is_in([first.name, second.name])
    )
    assert asked["tokens"].max() == 8
    assert not asked["prompt_cut"].any()
    plain = Named("plain", first.source)
    compare(config, data, plain, second, tmp_path / "plain", cache=None)
    asked = pl.read_parquet(tmp_path / "plain" / "answers.parquet").filter(policy="plain")
    assert asked["tokens"].max() == 4
    assert asked["prompt_cut"].any()
    with pytest.raises(InputError, match="is not registered"):
        resolve("ospo-rewriter-esci/9", config)


def test_endless_and_hostile_answers(data, tmp_path) -> None:
    """A text of a megabyte, control characters, half a surrogate pair, commas without end: scored,
    never a crash.
    """
    texts = [
        "very long " * 100_000,
        "\x00\x1b[31mred\udcff dress",
        "," * 50_000,
        "red " * 50_000,
        "\u202e'); DROP TABLE",
    ]
    file = tmp_path / "hostile.jsonl"
    rows = [
        {"request_id": r.request_id, "answer": texts[n % len(texts)]}
        for n, r in enumerate(data.requests)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    overrides = ["retrievers.unseen=[static,minilm]", "evaluation.max_requests=10"]
    evaluate(shop.config(*overrides), data, {"hostile": file}, tmp_path / "out", cache=None)
    table = pl.read_parquet(tmp_path / "out" / "evaluation.parquet").filter(
        pl.col("policy") == "hostile"
    )
    assert np.isfinite(table.select(MEASURES).to_numpy()).all()
    commas = table.filter(pl.col("answer").str.starts_with(",,"))
    assert len(commas)
    assert commas["ndcg@10"].max() == 0
    assert table["answer"].str.len_chars().max() == 4000
    details = json.loads((tmp_path / "out" / "details.json").read_text())
    counts = details["answers"]["hostile"]
    written = {row["request_id"]: row["answer"] for row in rows}
    chosen = [
        data.requests[r].request_id
        for split in ("validation", "test")
        for r in choose_requests(data, split, 10)
    ]
    assert counts["empty"] == sum(written[name].startswith(",,") for name in chosen) > 0
    assert counts["unfinished"] == sum(len(written[name]) > 4000 for name in chosen) > 0


def test_demo_table_and_report(result, tmp_path) -> None:
    summaries = {"esci": result[1], "hm": result[1]}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(demo_table(summaries, "bm25"))
    text = console.export_text()
    rows = [line for line in text.splitlines() if "raw query" in line or "OSPO" in line]
    assert len(rows) == 2 * 3  # raw, OSPO, its control
    assert text.index("raw query") < text.index("SFT") < text.index("GRPO") < text.index("OSPO")
    written = write_demo_report(
        tmp_path / "demo.json", summaries, registered={"esci": "ospo"}, seconds=12.34, commit="abc"
    )
    assert json.loads((tmp_path / "demo.json").read_text()) == written
    assert written["esci"]["ospo"]["bm25"] == pytest.approx(
        result[1]["test"]["ospo"]["bm25"], abs=1e-6
    )
    assert set(written) == {"esci", "hm", "registered", "seconds", "commit"}
    # Its seconds stay on record only while the rest is what was measured.
    file, last = tmp_path / "demo.json", {"esci": "ospo"}
    assert holds(file, summaries, last)
    assert not holds(file, {"esci": result[1]}, last)
    assert not holds(file, summaries, {"esci": "grpo"})
    assert not holds(tmp_path / "none.json", summaries, last)
    with pytest.raises(ValueError, match="key of the report"):
        write_demo_report(
            tmp_path / "x.json", {"commit": result[1]}, registered={}, seconds=0, commit=""
        )
