"""What serving does at its limits: long histories, full queues, late answers, altered files."""

import asyncio
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import fastapi
import httpx
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from registry_shop import make_config, make_policy

from ospo.errors import InputError
from ospo.files import write_manifest
from ospo.policy.decoding import Decoding
from ospo.serving import rewriter as module
from ospo.serving.hosts import set_up_server
from ospo.serving.requests import (
    KEPT_PURCHASES,
    MAX_NEW_TOKENS,
    MAX_PURCHASES,
    parse_options,
    parse_request,
)
from ospo.serving.rewriter import Busy, Rewriter, _Job


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    return make_policy(make_config(folder), folder / "model", seed=1)


@pytest.fixture(scope="module")
def rewriter(policy: Path) -> Rewriter:
    return Rewriter.load(policy, max_prompt_tokens=128, max_new_tokens=8, remembered=0)


def job(rewriter: Rewriter, query: str, decoding: Decoding) -> _Job:
    return _Job(rewriter._prompt(parse_request(query)), decoding)


def test_of_many_purchases_the_last_are_kept() -> None:
    history = [{"name": f"shirt {n}"} for n in range(MAX_PURCHASES)]
    kept = parse_request({"query": "a", "history": history}).history
    assert [purchase.name for purchase in kept] == [
        f"shirt {n}" for n in range(MAX_PURCHASES - KEPT_PURCHASES, MAX_PURCHASES)
    ]


def test_half_a_surrogate_pair_reaches_no_tokenizer() -> None:
    found = parse_request({"query": "red \ud800 hat", "history": [{"name": "\udfff"}]})
    assert (found.query, found.history[0].name) == ("red ? hat", "?")
    assert parse_request('{"query": "\\ud83d\\ude00"}').query == "\U0001f600", "a whole pair stays"


def test_what_a_call_does_not_say_is_the_default() -> None:
    assert parse_options(None, 12) == parse_options({}, 12) == Decoding(12, 0.0, 0)
    assert parse_options({"temperature": None, "seed": 3}, 12) == Decoding(12, 0.0, 3)


def test_an_answer_is_as_long_as_the_context_leaves_room_for(rewriter: Rewriter) -> None:
    context = rewriter.generator.context
    assert context is not None
    assert rewriter.most_new_tokens == MAX_NEW_TOKENS
    tight = Rewriter(rewriter.generator, max_prompt_tokens=context - 20, max_new_tokens=8)
    assert tight.most_new_tokens == 20


def test_callers_with_other_parameters_do_not_share_a_batch(rewriter: Rewriter) -> None:
    greedy, drawn = Decoding(8), Decoding(8, 2.0, 5)
    jobs = [job(rewriter, f"shoes {n}", d) for n, d in enumerate([greedy, drawn, greedy, drawn])]
    rewriter._queue = deque(jobs)
    rewriter._step()
    assert [waiting.done.is_set() for waiting in jobs] == [True, False, True, False]
    rewriter._step()
    assert all(waiting.done.is_set() for waiting in jobs)
    for waiting in jobs:
        [ids] = rewriter.generator([waiting.prompt], waiting.decoding)
        assert waiting.completion == rewriter.generator.decode(ids)


def test_a_full_queue_turns_callers_away_at_once(
    rewriter: Rewriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    with pytest.raises(Busy, match="0 inputs wait already"):
        rewriter.rewrite([f"shoes {n}" for n in range(4)])
    assert not rewriter._queue
    assert len(rewriter.rewrite([f"shoes {n}" for n in range(3)])) == 3


def test_who_has_waited_too_long_is_told_so(rewriter: Rewriter) -> None:
    late, fresh = (job(rewriter, query, Decoding(8)) for query in ("hat", "scarf"))
    late.queued = time.monotonic() - module.MAX_SECONDS - 1
    rewriter._queue = deque([late, fresh])
    rewriter._step()
    assert isinstance(late.error, Busy)
    assert late.completion == ""
    assert late.done.is_set()
    assert fresh.error is None
    assert fresh.done.is_set()


def test_a_busy_model_is_503_and_a_wrong_input_400(
    rewriter: Rewriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ospo.serving.pyfunc import OspoRewriter

    model = OspoRewriter()
    model.rewriter = rewriter
    monkeypatch.setattr(module, "MAX_WAITING", 0)
    for inputs, status in ((["hat"], 503), ([3], 400)):
        wrong: Any = inputs
        with pytest.raises(MlflowException) as refused:
            model.predict(wrong)
        assert refused.value.get_http_status_code() == status


def test_an_altered_policy_is_not_served(policy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in policy.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "training_requests.json").write_text("[]\n")
    with pytest.raises(InputError, match="is not listed"):
        Rewriter.load(folder)
    write_manifest(folder)
    assert Rewriter.load(folder).rewrite(["hat"]) == Rewriter.load(policy).rewrite(["hat"])


def test_only_the_scoring_server_gets_the_check_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fastapi.FastAPI
    assert scoring_server._SERVER_MODEL_PATH not in os.environ
    set_up_server()
    assert fastapi.FastAPI is plain
    monkeypatch.setattr(fastapi, "FastAPI", plain)  # put back, whatever happens
    monkeypatch.setenv(scoring_server._SERVER_MODEL_PATH, "model")
    set_up_server()
    guarded = fastapi.FastAPI()
    assert fastapi.FastAPI is plain, "for one application only"
    assert [kind.cls.__name__ for kind in guarded.user_middleware] == ["TrustedHostMiddleware"]  # type: ignore[attr-defined]


def test_the_scoring_server_works_on_two_batches_of_requests_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fastapi, "FastAPI", fastapi.FastAPI)
    monkeypatch.setenv(scoring_server._SERVER_MODEL_PATH, "model")
    set_up_server()
    application = fastapi.FastAPI()
    waiting = threading.Barrier(2 * 32)

    @application.get("/")
    async def answer() -> str:
        await asyncio.to_thread(waiting.wait, 20)
        return "answered"

    async def ask_all() -> list[int]:
        transport = httpx.ASGITransport(application)
        async with (
            application.router.lifespan_context(application),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            found = await asyncio.gather(*[client.get("/") for _ in range(2 * 32)])
        return [response.status_code for response in found]

    assert asyncio.run(ask_all()) == [200] * 64


def test_a_greedy_answer_is_written_once(policy: Path) -> None:
    rewriter = Rewriter.load(policy, max_prompt_tokens=128, max_new_tokens=8, remembered=3)
    plain = Rewriter.load(policy, max_prompt_tokens=128, max_new_tokens=8, remembered=0)
    first = rewriter.rewrite(["shoes", "hat"])
    assert first == plain.rewrite(["shoes", "hat"])
    written = rewriter.batches
    assert rewriter.rewrite(["hat", "shoes"]) == first[::-1]
    assert rewriter.batches == written
    # Another history, length, or a draw, is another answer.
    history = '{"query": "hat", "history": [{"name": "cap"}]}'
    for query, params in (
        (history, {}),
        ("hat", {"max_new_tokens": 2}),
        ("hat", {"temperature": 1.0}),
    ):
        for _ in range(2):
            assert rewriter.rewrite([query], params) == plain.rewrite([query], params)
    assert rewriter.batches == written + 4, "draws are never remembered"
    # At most three are kept, those asked for last.
    rewriter.rewrite(["hat", "scarf", "belt", "glove"])
    assert len(rewriter._known) == 3
    before = rewriter.batches
    rewriter.rewrite(["shoes"])
    assert rewriter.batches == before + 1
