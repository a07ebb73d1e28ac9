"""Batched generation against one request at a time, the cache, and sampling that knows no batch."""

import json
import shutil
from pathlib import Path

import evaluation_shop as shop
import numpy as np
import polars as pl
import pytest
import torch

from ospo.config import Model
from ospo.errors import InputError
from ospo.evaluation.completions import CachedPolicy, policy_hash, rewrite
from ospo.evaluation.policies import AnswerFile, RulePolicy, open_policy
from ospo.policy.generate import Decoding, gumbel_choice
from ospo.policy.prompts import prompt_messages
from ospo.policy.rules import RULES
from ospo.policy.weights import build_scratch, load_policy, save_policy

TINY = Model(
    source="scratch",
    vocab_size=320,
    hidden_size=32,
    layers=1,
    heads=2,
    dtype="float32",
    quantization="none",
    lora_rank=0,
    lora_alpha=1,
    lora_dropout=0.0,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The small shop."""
    return shop.write_shop(tmp_path_factory.mktemp("shop"), requests=40)


@pytest.fixture(scope="module")
def policy(tmp_path_factory, data) -> Path:
    """A tiny policy with random weights, made sharper so that greedy choices have no near-ties."""
    directory = tmp_path_factory.mktemp("policy") / "model"
    network, tokenizer = build_scratch(TINY, data.item_texts, 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    save_policy(network, tokenizer, TINY, directory)
    return directory


def one_by_one(policy: Path, requests, tokens: int) -> list[str]:
    """The reference: plain greedy search, one request, no padding, no cache."""
    network, tokenizer = load_policy(policy)
    texts = []
    for request in requests:
        ids = tokenizer.apply_chat_template(
            prompt_messages(request),
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"]
        for _ in range(tokens):
            with torch.inference_mode():
                chosen = network(ids).logits[0, -1].argmax()
            ids = torch.cat([ids, chosen[None, None]], dim=1)
            if int(chosen) == tokenizer.eos_token_id:
                break
        start = len(
            tokenizer.apply_chat_template(prompt_messages(request), add_generation_prompt=True)[
                "input_ids"
            ]
        )
        texts.append(tokenizer.decode(ids[0, start:], skip_special_tokens=True))
    return texts


def test_batched_equals_one_by_one(policy: Path, data) -> None:
    requests = data.requests[:12]
    found = [
        r.completion for r in CachedPolicy(policy, 5, 128, None).complete(requests, Decoding(8))
    ]
    assert found == one_by_one(policy, requests, 8)
    assert len(set(found)) > 1


def test_order_and_batch_size_do_not_matter(policy: Path, data) -> None:
    requests = data.requests[:15]
    for decoding in (Decoding(8), Decoding(8, temperature=1.0, seed=3)):
        whole = CachedPolicy(policy, 15, 128, None).complete(requests, decoding)
        parts = CachedPolicy(policy, 2, 128, None).complete(requests[::-1], decoding)[::-1]
        assert whole == parts


def test_samples_differ_by_seed_and_number(policy: Path, data) -> None:
    cached = CachedPolicy(policy, 16, 128, None)
    texts = {
        key: [r.completion for r in cached.complete(data.requests[:16], Decoding(8, 1.0, *key))]
        for key in ((0, 0), (0, 1), (1, 0))
    }
    assert texts[0, 0] != texts[0, 1]
    assert texts[0, 0] != texts[1, 0]
    # At a temperature where only the noise speaks, every prompt has noise of its own.
    hot = cached.complete(data.requests[:16], Decoding(8, 1e6))
    assert len({r.completion for r in hot}) == len(
        {(r.query, r.history) for r in data.requests[:16]}
    )
    greedy = {Decoding(8, seed=seed, sample=seed).key for seed in range(3)}
    assert greedy == {"greedy-8"}


def test_gumbel_noise_samples_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    count = 4000
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    drawn = gumbel_choice(logits.repeat(count, 1), 2.0, generators)
    shares = np.bincount(drawn.numpy(), minlength=3) / count
    np.testing.assert_allclose(shares, torch.softmax(logits / 2.0, dim=0), atol=0.03)


def test_cache_answers_without_a_model(policy: Path, data, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(policy, copy)
    cache = tmp_path / "cache"
    first = CachedPolicy(copy, 16, 128, cache)
    requests = data.requests[:20]
    answers = first.complete(requests, Decoding(6))
    assert first.generated == len(
        {r.query + str(r.history) for r in requests}
    )  # equal prompts once
    again = CachedPolicy(copy, 16, 128, cache)
    assert again.complete(requests[::-1], Decoding(6)) == answers[::-1]
    assert again.generated == 0
    assert again._generator is None
    # More requests: only the new ones are generated. Another decoding or policy shares nothing.
    more = CachedPolicy(copy, 16, 128, cache)
    more.complete(data.requests, Decoding(6))
    assert 0 < more.generated < len(data.requests)
    other = CachedPolicy(copy, 16, 128, cache)
    other.complete(requests, Decoding(5))
    assert other.generated == first.generated
    network, tokenizer = load_policy(copy)
    with torch.no_grad():
        next(network.parameters()).add_(0.01)
    save_policy(network, tokenizer, TINY, copy)
    assert policy_hash(copy) != first.hash
    changed = CachedPolicy(copy, 16, 128, cache)
    changed.complete(requests, Decoding(6))
    assert changed.generated == first.generated


def test_damaged_cache_is_told(policy: Path, data, tmp_path: Path) -> None:
    cached = CachedPolicy(policy, 16, 128, tmp_path)
    cached.complete(data.requests[:4], Decoding(4))
    file = next(tmp_path.rglob("*.parquet"))
    file.write_bytes(b"broken")
    with pytest.raises(InputError, match="unreadable cache file"):
        cached.complete(data.requests[:4], Decoding(4))


def test_endless_text_is_cut_and_reported(policy: Path, data) -> None:
    completions = CachedPolicy(policy, 16, 128, None).complete(data.requests[:8], Decoding(3))
    assert all(r.tokens <= 3 for r in completions)
    assert any(not r.finished for r in completions)


def test_long_prompts_lose_history_not_the_query(policy: Path, data) -> None:
    request = next(r for r in data.requests if len(r.history) == 3)
    full = CachedPolicy(policy, 1, 128, None).complete([request], Decoding(2))[0]
    cut = CachedPolicy(policy, 1, 14, None).complete([request], Decoding(2))[0]
    assert not full.prompt_cut
    assert cut.prompt_cut
    with pytest.raises(InputError, match="max_prompt_tokens"):
        CachedPolicy(policy, 1, 1, None).complete([request], Decoding(2))


def test_context_overflow_is_told(policy: Path, data) -> None:
    with pytest.raises(InputError, match="exceed the model's 512"):
        CachedPolicy(policy, 1, 128, None).complete(data.requests[:1], Decoding(600))


def test_rewrite(policy: Path, data, tmp_path: Path) -> None:
    answers = rewrite(policy, data.requests[:3], 2, max_new_tokens=4, cache=tmp_path)
    assert len(answers) == 3
    assert all(isinstance(answer, str) for answer in answers)


def test_no_policy(tmp_path: Path) -> None:
    for call in (
        lambda: rewrite(tmp_path, [], 4),
        lambda: open_policy(tmp_path / "gone", shop.config(), None),
    ):
        with pytest.raises(InputError, match="holds no policy"):
            call()


def test_raw_query_and_answer_file(data, tmp_path: Path) -> None:
    requests = data.requests[:5]
    raw = RulePolicy(RULES["raw"], lambda requests: [()] * len(requests))
    assert [r.answer for r in raw.complete(requests, Decoding(1))] == [r.query for r in requests]
    file = shop.write_answers(tmp_path / "a.jsonl", data, shop.oracle)
    assert (
        open_policy(file, shop.config(), None)
        .complete(requests, Decoding(1))[0]
        .answer.startswith("red ")
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("not json", "line 2"),
        ('{"request_id": "r1"}', "line 2"),
        ('{"request_id": "r1", "answer": null}', "line 2"),
        ("[1, 2]", "line 2"),
        ('{"request_id": "r0", "answer": "b"}', "appears twice"),
    ],
)
def test_bad_answer_file(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"request_id": "r0", "answer": "a"}) + f"\n{line}\n")
    with pytest.raises(InputError, match=problem):
        AnswerFile(file)


def test_answer_file_must_answer_all(data, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"request_id": data.requests[0].request_id, "answer": ""}) + "\n")
    assert AnswerFile(file).complete(data.requests[:1], Decoding(1))[0].answer == ""
    with pytest.raises(InputError, match="1 requests have no answer"):
        AnswerFile(file).complete(data.requests[:2], Decoding(1))
    with pytest.raises(InputError, match="file not found"):
        open_policy(tmp_path / "none.jsonl", shop.config(), None)


def test_cache_file_is_plain(policy: Path, data, tmp_path: Path) -> None:
    CachedPolicy(policy, 16, 128, tmp_path).complete(data.requests[:4], Decoding(4))
    frame = pl.read_parquet(next(tmp_path.rglob("*.parquet")))
    assert frame.columns == ["prompt", "completion", "tokens", "finished", "logprob"]
