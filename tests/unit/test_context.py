"""Titles of first hits in the prompt: from the whole catalogue, as many as the policy was trained to
read, and never for one that reads none.
"""

from dataclasses import replace
from pathlib import Path

import evaluation_shop as shop
import pytest
from training_shop import LetterReward, make_policy, small_config

from ospo.data.dataset import PreparedData, Requests
from ospo.data.request import Purchase, Request
from ospo.errors import ConfigError, InputError
from ospo.evaluation.completions import CachedPolicy
from ospo.evaluation.evaluate import evaluate
from ospo.evaluation.hits import FirstHits, with_hits
from ospo.files import read_json, write_json, write_manifest
from ospo.policy.decoding import Decoding
from ospo.policy.generate import Generator, render
from ospo.policy.kind import FILE, read_context
from ospo.policy.prompts import fit_messages, prompt_messages
from ospo.policy.scratch import build_tokenizer
from ospo.policy.text import EXPAND
from ospo.policy.weights import load_tokenizer
from ospo.serving.requests import RequestError, parse_request
from ospo.training.names import NameTeacher
from ospo.training.prompts import prompt_dataset
from ospo.training.run import TrainingRun
from ospo.training.sft import train_sft
from ospo.training.teacher import Teacher
from ospo.training.train import train

HIT = ("Linen dress",)
ASKED = Request(
    query="red dress",
    history=(Purchase(name="Lena", type="Shirt"),),
    hits=("Linen Dress", "<b>Red</b>\nSkirt", "", "Hat"),
)


def test_hits_stand_between_purchases_and_request_as_clean_text() -> None:
    system, user = prompt_messages(ASKED)
    assert user["content"].splitlines() == [
        "- lena shirt", "+ linen dress", "+ b red /b skirt", "+ hat", "red dress"
    ]  # fmt: skip
    assert "plus sign" in system["content"]
    without, _ = prompt_messages(Request(query="red dress"))
    assert "plus sign" not in without["content"]


def test_purchases_are_cut_before_hits_and_of_hits_the_last() -> None:
    tokenizer = build_tokenizer([prompt_messages(ASKED)[1]["content"]] * 3, 400)
    _, whole = fit_messages(ASKED, tokenizer, 300)
    lines = []
    for limit in range(whole, 3, -1):
        messages, tokens = fit_messages(ASKED, tokenizer, limit)
        assert tokens <= limit
        shown = messages[-1]["content"].splitlines()
        if not lines or lines[-1] != shown:
            lines.append(shown)
    assert lines[1:4] == [
        ["+ linen dress", "+ b red /b skirt", "+ hat", "red dress"],
        ["+ linen dress", "+ b red /b skirt", "red dress"],
        ["+ linen dress", "red dress"],
    ]


def test_the_latest_purchase_of_the_requested_type_is_cut_last() -> None:
    """It is what a policy of shoppers' purchases goes by; titles alone say nothing of the shopper."""
    names = (("Anna", "Dress"), ("Lena", "Shirt"), ("Mia", "Dress"))
    bought = [Purchase(name=name, type=kind) for name, kind in names]
    asked = Request(query="red dress", history=tuple(bought), hits=("Linen dress", "Hat"))
    tokenizer = build_tokenizer([prompt_messages(asked)[1]["content"]] * 3, 400)
    _, whole = fit_messages(asked, tokenizer, 300)
    seen = []
    for limit in range(whole, 3, -1):
        shown = fit_messages(asked, tokenizer, limit)[0][-1]["content"].splitlines()
        if not seen or seen[-1] != shown:
            seen.append(shown)
    assert seen[:6] == [
        ["- lena shirt", "- anna dress", "- mia dress", "+ linen dress", "+ hat", "red dress"],
        ["- anna dress", "- mia dress", "+ linen dress", "+ hat", "red dress"],
        ["- mia dress", "+ linen dress", "+ hat", "red dress"],
        ["- mia dress", "+ linen dress", "red dress"],
        ["- mia dress", "red dress"],
        ["red dress"],
    ]


def test_a_policy_reads_as_many_hits_as_it_was_trained_to(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    policy = make_policy(small_config(), esci_tiny, tmp_path / "policy")
    tokenizer = load_tokenizer(policy)
    texts = [render(tokenizer, ASKED, 128, "expand", hits).text for hits in range(4)]
    assert [text.count("+ ") for text in texts] == [0, 1, 2, 2]  # the third is empty
    assert Generator.load(policy).render(ASKED, 128).text.count("+ ") == 0


def test_training_and_evaluation_show_the_first_hits_of_the_whole_catalogue(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    config = small_config(
        "context=2", "answer=expand", "retrievers.training=bm25", "retrievers.unseen=[static]"
    )
    shown = with_hits(config, esci_tiny, {})
    row, other = int(esci_tiny.rows("train")[0]), int(esci_tiny.rows("test")[0])
    [expected] = FirstHits(config, esci_tiny, {})([esci_tiny.requests[row]])
    assert shown.requests[row].hits == expected[:2]
    assert shown.requests[other].hits == (), "test requests are searched when they are evaluated"
    assert [r.hits for r in shown.requests][row] == expected[:2]
    assert with_hits(small_config(), esci_tiny, {}) is esci_tiny
    assert Requests.of(list(shown.requests)) == esci_tiny.requests, "hits are no part of the table"

    train_sft(TrainingRun(config, shown, tmp_path / "sft"))
    model = tmp_path / "sft/model"
    assert read_context(model) == read_json(model / FILE)["context"] == 2
    then = TrainingRun(config, shown, tmp_path / "ospo", model, LetterReward())
    train(then, "ospo")
    assert read_context(tmp_path / "ospo/model") == 2
    prompts = prompt_dataset(shown, esci_tiny.rows("train")[:1], load_tokenizer(model), 200)
    assert prompts["prompt"][0][-1]["content"].count("+ ") == 2
    other_config = small_config("answer=expand")
    with pytest.raises(InputError, match="context"):
        TrainingRun(other_config, esci_tiny, tmp_path / "x", model, LetterReward()).policy  # noqa: B018

    seen: list[int] = []

    def titles(requests: list[Request]) -> list[tuple[str, ...]]:
        seen.append(len(requests))
        return [("one", "two", "three")] * len(requests)

    policy = CachedPolicy(model, 8, 200, None, titles)  # type: ignore[arg-type]
    asked = [esci_tiny.requests[other]]
    rendered: list[str] = []
    policy.complete(asked, Decoding(4))
    rendered = [policy._render(Request(query="x", hits=("one", "two", "three"))).text]
    assert seen == [1]
    assert rendered[0].count("+ ") == 2
    plain = CachedPolicy(
        make_policy(small_config(), esci_tiny, tmp_path / "p"), 8, 200, None, titles
    )  # type: ignore[arg-type]
    plain.complete(asked, Decoding(4))
    assert seen == [1], "a policy that reads no hits asks for none"


def test_an_evaluation_searches_for_policies_that_read_hits(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    config = shop.config("presets.nano.rl.max_completion_tokens=4", "evaluation.max_requests=6")
    policy = make_policy(small_config("answer=expand"), esci_tiny, tmp_path / "policy")
    write_json(policy / FILE, {"answer": "expand", "context": 1})
    write_manifest(policy)
    evaluate(config, esci_tiny, {"ospo": policy}, tmp_path / "out", cache=tmp_path / "cache")
    assert read_json(tmp_path / "out/summary.json")["test"]["ospo"]


def test_an_example_that_asks_something_else_shows_no_hits(hm_tiny: PreparedData) -> None:
    shown = replace(
        hm_tiny,
        requests=Requests(hm_tiny.requests.frame, dict.fromkeys(range(len(hm_tiny.requests)), HIT)),
    )
    for teacher in (NameTeacher(shown, 0.5, 0, EXPAND), Teacher(shown, 0.5, 0, EXPAND)):
        made = [teacher.example(row, draw) for row in teacher.rows.tolist() for draw in range(4)]
        asked = {request.request_id: request.query for request in hm_tiny.requests}
        other = [request for request, _ in made if request.query != asked[request.request_id]]
        assert other
        assert all(request.hits == () for request in other)
        assert any(request.hits == HIT for request, _ in made)


def test_damaged_numbers_of_hits_are_refused(tmp_path: Path) -> None:
    assert read_context(tmp_path) == 0
    for damaged in ("-1", "true", '"two"'):
        (tmp_path / FILE).write_text(f'{{"answer": "expand", "context": {damaged}}}')
        with pytest.raises(InputError, match="context"):
            read_context(tmp_path)
    with pytest.raises(ConfigError, match="context"):
        small_config("context=11")


def test_a_served_request_may_bring_its_hits() -> None:
    assert parse_request({"query": "hat", "hits": ["Sun hat", "Cap"]}).hits == ("Sun hat", "Cap")
    for wrong in ("Sun hat", ["x"] * 21, [3]):
        with pytest.raises(RequestError, match="hits"):
            parse_request({"query": "hat", "hits": wrong})
