"""The guard: where a policy's answer is used, chosen on validation requests, and kept to in
evaluation and serving.
"""

import json
from pathlib import Path

import evaluation_shop as shop
import numpy as np
import polars as pl
import pytest
import torch
from registry_shop import ROOT, SUMMARY, Shop
from rich.console import Console

from ospo import registry, tracking
from ospo.config import Model
from ospo.data.dataset import PreparedData
from ospo.data.request import Purchase, Request
from ospo.errors import InputError
from ospo.evaluation.analysis import analyse
from ospo.evaluation.completions import CachedPolicy
from ospo.evaluation.evaluate import evaluate
from ospo.evaluation.guard import choose_guard, chosen_guard, greedy_values
from ospo.files import read_json, write_manifest
from ospo.policy.decoding import Decoding
from ospo.policy.generate import Generator
from ospo.policy.guard import GROUNDS, Guard, grounds, read_guard, unanswered, write_guard
from ospo.policy.kind import write_answer_kind
from ospo.policy.text import EXPAND, REWRITE, search_text
from ospo.policy.weights import build_scratch, save_policy
from ospo.reports.demo_table import demo_table
from ospo.reports.evaluation import write_report
from ospo.reports.headline import summary_markdown
from ospo.serving.rewriter import Rewriter

SHAPE = {"vocab_size": 320, "hidden_size": 32, "layers": 1, "heads": 2}
TOKENS = 8


def make_policy(directory: Path, data: PreparedData, seed: int = 0) -> Path:
    """A real policy with random weights, whose answers are rewrites."""
    settings = Model.model_validate({"source": "scratch", "dtype": "float32", **SHAPE})
    network, tokenizer = build_scratch(settings, data.item_texts, seed)
    save_policy(network, tokenizer, settings, directory)
    write_answer_kind(directory, "rewrite")
    write_manifest(directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return shop.write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def policy(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy") / "model", data)


# --- what is chosen


def judged(seed: int = 0) -> dict[str, np.ndarray]:
    """A policy that gains where it is sure and loses where it is not."""
    random = np.random.default_rng(seed)
    logprob = random.uniform(-2, 0, 400)
    raw = random.uniform(0.3, 0.5, 400)
    return {
        "logprob_R": logprob,
        "grounds_R": np.full(400, "own"),
        "policy_R": raw + np.where(logprob > -1, 0.1, -0.1) + random.normal(0, 0.02, 400),
        "raw_R": raw,
        "groups_R": np.arange(400),
    }


def test_the_threshold_is_where_answers_begin_to_gain() -> None:
    choice = choose_guard(**judged())
    assert choice is not None
    assert choice.guard.min_logprob == pytest.approx(-1, abs=0.15)
    assert choice.guard.needs == "none"
    assert choice.gain == pytest.approx(0.05, abs=0.01)
    assert 0 < choice.low < choice.gain
    assert choice.used == pytest.approx(0.5, abs=0.06)


def test_no_guard_without_a_clear_gain() -> None:
    """Where sureness says nothing the best of ten thresholds gains something, by luck."""
    for seed in range(8):
        values = judged(seed)
        random = np.random.default_rng(seed + 50)
        values["policy_R"] = values["raw_R"] + 0.02 + random.normal(0, 0.2, 400)
        assert choose_guard(**values) is None, seed
    nobody = judged() | {"logprob_R": np.full(400, np.nan)}
    assert choose_guard(**nobody) is None  # answers that no model wrote


def test_the_guard_can_be_what_the_request_comes_with_alone() -> None:
    random = np.random.default_rng(1)
    for needs, given in (("history", ["none", "history", "own"]), ("own", ["history", "own"])):
        values = judged()
        grounds_R = random.choice(given, 400)
        enough = [GROUNDS.index(one) >= GROUNDS.index(needs) for one in grounds_R.tolist()]
        gain = np.where(enough, 0.1, -0.1)
        values |= {"grounds_R": grounds_R, "policy_R": values["raw_R"] + gain}
        choice = choose_guard(**values)
        assert choice is not None
        assert choice.guard == Guard(None, needs)


def test_grounds_are_a_name_of_the_requested_type_that_says_something_new() -> None:
    lena = Purchase(name="Lena", type="Shirt")
    assert grounds(Request(query="shirt")) == "none"
    assert grounds(Request(query="jeans", history=(lena,))) == "history"
    assert grounds(Request(query="shirt", history=(lena,))) == "own"
    assert grounds(Request(query="lena shirt", history=(lena,))) == "history"


def test_the_interval_is_over_shoppers() -> None:
    values = judged()
    apart = choose_guard(**values)
    together = choose_guard(**(values | {"groups_R": np.arange(400) // 40}))
    assert apart is not None
    assert together is None or together.low != apart.low


# --- what it is kept by


def test_a_guard_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_guard(tmp_path) is None
    for guard in (Guard(-0.25, "own"), Guard(None)):
        write_guard(tmp_path, guard)
        assert read_guard(tmp_path) == guard
    old = '{"min_logprob": -1.5, "needs_history": true}'  # of models registered before
    (tmp_path / "guard.json").write_text(old)
    assert read_guard(tmp_path) == Guard(-1.5, "history")
    for damaged in (
        '{"min_logprob": "x", "needs": "own"}',
        '{"min_logprob": null, "needs": "all"}',
        "[]",
        "{",
        '{"a": 1}',
    ):
        (tmp_path / "guard.json").write_text(damaged)
        with pytest.raises(InputError, match=r"guard\.json"):
            read_guard(tmp_path)


def test_unanswered_is_the_raw_query() -> None:
    request = Request(query="red,, dress")
    for rule in (REWRITE, EXPAND):
        assert rule.text(request.query, unanswered(rule, request)) == search_text(request.query)


def test_log_probabilities_are_the_models(data: PreparedData, policy: Path) -> None:
    """Of a batch as of each alone, and as the model gives them to the whole completion."""
    generator = Generator.load(policy)
    prompts = [generator.render(data.requests[row], 128) for row in range(6)]
    for decoding in (Decoding(TOKENS), Decoding(TOKENS, 1.5, 3)):
        written, logprobs = generator.with_logprobs(prompts, decoding)
        for prompt, ids, logprob in zip(prompts, written, logprobs, strict=True):
            whole = torch.tensor([[*prompt.ids, *ids]])
            with torch.inference_mode():
                table = generator.model(whole).logits[0].float().log_softmax(dim=-1)
            first = len(prompt.ids) - 1
            own = [float(table[first + t, token]) for t, token in enumerate(ids)]
            assert logprob == pytest.approx(np.mean(own), abs=1e-4)


def test_served_and_evaluated_answers_keep_to_the_guard(
    data: PreparedData, policy: Path, tmp_path: Path
) -> None:
    requests = [data.requests[row] for row in range(12)]
    free = CachedPolicy(policy, 8, 128, tmp_path / "cache").complete(requests, Decoding(TOKENS))
    middle = float(np.median([c.logprob for c in free]))
    guarded_dir = make_policy(tmp_path / "guarded", data)
    write_guard(guarded_dir, Guard(middle, "history"))
    write_manifest(guarded_dir)
    guarded = CachedPolicy(guarded_dir, 8, 128, tmp_path / "cache")
    twice = [guarded.complete(requests, Decoding(TOKENS)) for _ in range(2)]  # the second: cached
    assert twice[0] == twice[1]
    used = [bool(r.history) and c.logprob >= middle for r, c in zip(requests, free, strict=True)]
    assert {True, False} == set(used)
    texts = [
        search_text(c.answer if use else r.query)
        for r, c, use in zip(requests, free, used, strict=True)
    ]
    assert [search_text(c.answer) for c in twice[0]] == texts
    rewriter = Rewriter.load(guarded_dir, max_prompt_tokens=128, max_new_tokens=TOKENS)
    asked = [
        {"query": r.query, "history": [{"name": p.name, "type": p.type, "colour": p.colour}
                                       for p in r.history]}
        for r in requests
    ]  # fmt: skip
    served = rewriter.rewrite(asked)
    assert served == [text or r.query for text, r in zip(texts, requests, strict=True)]
    # A drawn answer is as unlikely as the temperature makes it: no guard.
    drawn = Decoding(TOKENS, 1.0, 1)
    plain = CachedPolicy(policy, 8, 128, None).complete(requests, drawn)
    assert [c.answer for c in guarded.complete(requests, drawn)] == [c.answer for c in plain]


def test_a_policy_is_not_asked_where_its_guard_needs_more(
    data: PreparedData, tmp_path: Path
) -> None:
    lena = Purchase(name="Lena", type="Shirt")
    bought = [Request(query=f"{word} shirt", history=(lena,)) for word in ("red", "blue")]
    requests = [*bought, Request(query="jeans", history=(lena,)), *list(data.requests)[:4]]
    enough = [grounds(request) == "own" for request in requests]
    assert {True, False} == set(enough)
    guarded_dir = make_policy(tmp_path / "guarded", data)
    write_guard(guarded_dir, Guard(None, "own"))
    write_manifest(guarded_dir)
    policy = CachedPolicy(guarded_dir, 8, 128, None)
    completions = policy.complete(requests, Decoding(TOKENS))
    assert policy.generated == sum(enough) == 2
    for request, completion, asked in zip(requests, completions, enough, strict=True):
        assert np.isfinite(completion.logprob) == asked
        if not asked:
            assert search_text(completion.answer) == search_text(request.query)
    rewriter = Rewriter.load(guarded_dir, max_prompt_tokens=128, max_new_tokens=TOKENS)
    assert rewriter.rewrite(["red dress"]) == ["red dress"]
    assert rewriter.batches == 0
    rewriter.rewrite(["red dress"], {"temperature": 1.0, "seed": 1})
    assert rewriter.batches == 1, "a drawn answer has no guard"


def test_requests_that_were_not_asked_do_not_keep_a_guard_from_being_chosen() -> None:
    values = judged()
    some = np.arange(400) % 4 == 0
    values["logprob_R"] = np.where(some, np.nan, values["logprob_R"])
    values["policy_R"] = np.where(some, values["raw_R"], values["policy_R"])
    choice = choose_guard(**values)
    assert choice is not None
    assert choice.guard.min_logprob == pytest.approx(-1, abs=0.15)


# --- in an evaluation and in the registry


@pytest.fixture(scope="module")
def evaluation(data: PreparedData, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random answers lose nearly everything: any guard gains."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    config = shop.config(f"presets.nano.rl.max_completion_tokens={TOKENS}")
    evaluate(config, data, {"ospo": policy}, out, cache=None)
    return out


def test_the_guard_is_chosen_on_validation_and_worth_what_the_test_says(
    data: PreparedData, evaluation: Path
) -> None:
    guard = chosen_guard(evaluation, "ospo", shop.config().seed)
    assert guard is not None
    part = greedy_values(evaluation, data, "validation").filter(policy="ospo", retriever="bm25")
    columns = [part[name].to_numpy() for name in ("logprob", "grounds", "value", "raw", "group")]
    expected = choose_guard(*columns)
    assert expected is not None
    assert guard == expected.guard
    test = greedy_values(evaluation, data, "test").filter(policy="ospo", retriever="bm25")
    values = [
        value if guard.uses(given, logprob) else raw
        for value, raw, logprob, given in test.select(
            "value", "raw", "logprob", "grounds"
        ).iter_rows()
    ]
    summary = read_json(evaluation / "summary.json")
    assert summary["guard"]["ospo"]["bm25"] == pytest.approx(np.mean(values))
    assert set(summary["guard"]["ospo"]) == {"bm25", "static"}
    assert "raw" not in read_json(evaluation / "guard.json")


def test_the_report_has_the_figures_with_and_without_it(evaluation: Path, tmp_path: Path) -> None:
    analysis = write_report(evaluation, tmp_path / "page.html", resamples=300)
    summary = read_json(evaluation / "summary.json")
    assert [g.retriever for g in analysis.guards] == ["bm25", "static"]
    for guarded in analysis.guards:
        value = summary["guard"]["ospo"][guarded.retriever]
        before = summary["test"]["ospo"][guarded.retriever]
        assert guarded.mean.value == pytest.approx(value)
        assert guarded.change.value == pytest.approx(value - before)
        assert guarded.change.low > 0
    used = pl.read_parquet(evaluation / "guarded.parquet")["used"]
    assert analysis.guards[0].used == pytest.approx(used.cast(pl.Float64).to_numpy().mean())
    page = (tmp_path / "page.html").read_text()
    assert "OSPO + guard" in page
    assert "Its guard, chosen on validation requests" in page.partition("<nav")[0]
    cell = f"{summary['guard']['ospo']['bm25']:.4f}"
    assert f"| OSPO + guard | {cell} |" in summary_markdown(analysis, "x")
    console = Console(width=120, record=True)
    console.print(demo_table({"shop": summary}, "bm25"))
    assert "OSPO + guard" in console.export_text()
    # An evaluation from before there were guards.
    (evaluation / "guarded.parquet").rename(tmp_path / "kept")
    try:
        assert analyse([evaluation], resamples=200).guards == []
    finally:
        (tmp_path / "kept").rename(evaluation / "guarded.parquet")


def test_a_registered_policy_brings_its_guard(
    data: PreparedData, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = Shop(tmp_path).config
    with tracking.run(config, "ospo", kind="rl", directory=tmp_path / "step") as run:
        pass
    guard = Guard(0.0)  # no answer is as sure as that
    candidate = registry.Candidate("ospo", policy, run.id, SUMMARY, "0" * 32, guard=guard)
    version = registry.register(config, "esci", candidate, root=ROOT)
    assert read_guard(registry.policy_directory(config, version)) == guard
    assert "It has a guard" in version.description
    assert registry.rewrite(config, "esci", ["red dress"]) == ["red dress"]
    assert json.loads((policy / "answer.json").read_text()) == {"answer": "rewrite"}
