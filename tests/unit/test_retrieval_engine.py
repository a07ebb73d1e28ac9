"""OpenSearch and Elasticsearch as retrievers, by their own clients, against a double that answers
the used part of their API (tests/engine_double.py). No real server of either is asked.
"""

import json
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from engine_double import JSON, Double, Shop, serving

from ospo.config import Config, load_config
from ospo.data.dataset import PreparedData
from ospo.errors import ConfigError, InputError
from ospo.retrieval import build_retriever, load_retriever
from ospo.retrieval import engine as module
from ospo.retrieval.base import RetrieverError, top_rows
from ospo.retrieval.engine import NOT_FOUND, EngineRetriever
from ospo.retrieval.engine_clients import read_address
from ospo.retrieval.engine_query import QueryTemplate, read_template
from ospo.reward.credit import credit_engine
from ospo.reward.search import SearchReward
from ospo.tracking import record_name

KINDS = ["opensearch", "elasticsearch"]
HTML = b"<!DOCTYPE html><html><title>Welcome to nginx</title></html>"


@pytest.fixture(scope="module")
def shop(esci_tiny: PreparedData) -> Shop:
    return Shop(esci_tiny.catalogue)


@pytest.fixture
def double(shop: Shop) -> Iterator[Double]:
    with serving(Double(shop)) as running:
        yield running


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(module, "PATIENCE_AT_START", 0.1)
    for kind in KINDS:
        for name in ("USER", "PASSWORD", "API_KEY", "CA"):
            monkeypatch.delenv(f"{kind.upper()}_{name}", raising=False)


def settings(**engine: object) -> Config:
    """params.yaml with settings of the engine; its query's file by its whole path."""
    given = {"query": str(ROOT / "configs/engine-query.json"), "wait": 5.0} | engine
    return load_config(
        ROOT / "params.yaml", [f"retrievers.engine.{k}={json.dumps(v)}" for k, v in given.items()]
    )


def built(
    double: Double, data: PreparedData, kind: str = "opensearch", **engine: object
) -> EngineRetriever:
    retriever = build_retriever(f"{kind}:{double.url}/products", settings(**engine), data)
    assert isinstance(retriever, EngineRetriever)
    return retriever


def queries(data: PreparedData, count: int) -> list[str]:
    return [request.query for request in data.requests][:count]


# --- what it answers


@pytest.mark.parametrize("kind", KINDS)
def test_pools_are_ranked_as_the_engine_ranks_them(
    kind: str, double: Double, shop: Shop, esci_tiny: PreparedData
) -> None:
    retriever = built(double, esci_tiny, kind)
    texts, pools_BP = queries(esci_tiny, 6), np.array(esci_tiny.pools_RP[:6])
    pools_BP[2, 30:] = -1
    scores_BP = retriever.score(texts, pools_BP)
    assert scores_BP.dtype == np.float32
    query = json.loads((ROOT / "configs/engine-query.json").read_text())["query"]
    for b, text in enumerate(texts):
        filled = json.loads(json.dumps(query).replace("{{text}}", text))
        hits = shop.search({"query": filled, "size": 10_000})["hits"]["hits"]
        true = {hit["_id"]: hit["_score"] for hit in hits}
        expected = [
            -np.inf if row < 0 else true.get(esci_tiny.item_ids[row], NOT_FOUND)
            for row in pools_BP[b]
        ]
        assert scores_BP[b].tolist() == pytest.approx(expected, rel=1e-6)
    assert (scores_BP > 0).any(axis=1).all()
    rows_BK, found_BK = retriever.search(texts, 50)
    every_BI = retriever.score(texts, np.tile(np.arange(len(esci_tiny.item_ids)), (6, 1)))
    best_BK = top_rows(every_BI, 50)[1]
    assert (found_BK == best_BK).all()
    assert all(len(set(rows)) == 50 for rows in rows_BK.tolist())


def test_searches_go_in_batches_some_at_a_time(double: Double, esci_tiny: PreparedData) -> None:
    retriever = built(double, esci_tiny, batch=4, concurrency=3)
    double.latency, before = 0.01, len(double.requests)
    texts = queries(esci_tiny, 40)
    scores_BP = retriever.score(texts, esci_tiny.pools_RP[:40])
    sent = [len(lines) // 2 for _, _, lines in double.requests[before:]]
    assert sent == [4] * 10
    assert 1 < double.most_at_once <= 3
    # In order, whatever came back first.
    alone = built(double, esci_tiny, batch=1, concurrency=1)
    double.latency = 0
    assert (alone.score(texts, esci_tiny.pools_RP[:40]) == scores_BP).all()


def test_a_pair_of_text_and_pool_is_asked_once(double: Double, esci_tiny: PreparedData) -> None:
    retriever = built(double, esci_tiny)
    before, texts = len(double.searches), queries(esci_tiny, 3)
    first = retriever.score(texts * 2, np.concatenate([esci_tiny.pools_RP[:3]] * 2))
    assert len(double.searches) == before + 3
    assert (retriever.score(texts, esci_tiny.pools_RP[:3]) == first[:3]).all()
    assert len(double.searches) == before + 3
    retriever.score(texts[:1], esci_tiny.pools_RP[1:2])  # another pool; one old answer asked again
    assert len(double.searches) == before + 5


def test_a_text_stays_text(double: Double, esci_tiny: PreparedData) -> None:
    retriever = built(double, esci_tiny)
    texts = ['"}, "size": 0, {"', "{{text}}", "a\\", "\ud800 half a pair", "日本 👟\x00", ""]
    before = len(double.searches)
    scores = retriever.score(texts, np.tile(esci_tiny.pools_RP[:1], (len(texts), 1)))
    assert scores.shape == (6, esci_tiny.pools_RP.shape[1])
    sent = [body["query"]["bool"]["must"][0]["multi_match"] for body in double.searches[before:]]
    assert [body["query"] for body in sent] == [
        text if text[0:1] != "\ud800" else "? half a pair" for text in texts
    ]
    assert all(body["fields"] == ["title^2", "description", "attributes"] for body in sent)


def test_a_query_that_sorts_gives_ranks(double: Double, esci_tiny: PreparedData) -> None:
    retriever = built(double, esci_tiny)
    retriever.template = QueryTemplate(
        {"query": {"match": {"title": "{{text}}"}}, "sort": ["price"], "size": 3}
    )

    def without_scores(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for response in responses:
            for hit in response["hits"]["hits"]:
                hit["_score"] = None
        return responses

    double.change = without_scores
    scores = retriever.score(queries(esci_tiny, 1), esci_tiny.pools_RP[:1])[0]
    found = sorted(scores[scores > 0], reverse=True)
    assert len(found) > 1
    assert found == list(range(len(found), 0, -1))


def test_items_outside_the_catalogue_are_left_out_of_searches(
    double: Double, esci_tiny: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    retriever = built(double, esci_tiny)

    def renamed(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for response in responses:
            response["hits"]["hits"][0]["_id"] = "unknown"
        return responses

    double.change = renamed
    texts = queries(esci_tiny, 2)
    rows_BK, scores_BK = retriever.search(texts, 5)
    assert rows_BK.shape == (2, 5)
    assert (np.diff(scores_BK, axis=1) <= 0).all()
    assert caplog.text.count("are not in the catalogue") == 1
    with pytest.raises(RetrieverError, match="'unknown', which is not in the pool"):
        retriever.score(texts, esci_tiny.pools_RP[:2])


# --- away, and back


def unavailable(times: int) -> Any:
    left = [times]

    def behave(*_: object) -> tuple[int, str, bytes] | None:
        left[0] -= 1
        return (503, "text/html", HTML) if left[0] >= 0 else None

    return behave


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_comes_back_is_waited_for(
    kind: str, double: Double, esci_tiny: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    texts = queries(esci_tiny, 8)
    expected = built(double, esci_tiny, kind).score(texts, esci_tiny.pools_RP[:8])
    retriever = built(double, esci_tiny, kind, batch=2)
    double.behave = unavailable(5)
    assert (retriever.score(texts, esci_tiny.pools_RP[:8]) == expected).all()
    lines = [record.getMessage() for record in caplog.records]
    assert all("\n" not in line for line in lines)
    assert f"'{kind}:{double.url}/products': answered HTTP 503 (an HTML page)" in lines[0]
    assert "8 searches wait for it, trying again in 0.02 s (for 5 s at most)" in lines[0]
    assert "is back after" in lines[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_restart_of_the_engine_is_waited_for(
    kind: str, shop: Shop, esci_tiny: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused connection, then the same port answers again."""
    texts = queries(esci_tiny, 4)
    with serving(Double(shop)) as double:
        retriever = built(double, esci_tiny, kind)
        expected = built(double, esci_tiny, kind).score(texts, esci_tiny.pools_RP[:4])
        port = int(double.url.rpartition(":")[2])
    result: list[np.ndarray] = []
    waiting = threading.Thread(
        target=lambda: result.append(retriever.score(texts, esci_tiny.pools_RP[:4]))
    )
    waiting.start()
    time.sleep(0.2)
    assert not result
    with serving(Double(shop), port):
        waiting.join(10)
    assert (result[0] == expected).all()
    assert f"no connection to {double.url}" in caplog.text
    assert "is back after" in caplog.text


def test_only_the_searches_that_failed_are_sent_again(
    double: Double, esci_tiny: PreparedData
) -> None:
    retriever, texts = built(double, esci_tiny, batch=8), queries(esci_tiny, 8)
    expected = built(double, esci_tiny).score(texts, esci_tiny.pools_RP[:8])
    cause = {"type": "es_rejected_execution_exception", "reason": "queue is full"}
    faults = [
        {"error": cause, "status": 429},
        {"timed_out": True, "hits": {"hits": []}},
        {"timed_out": False, "_shards": {"failed": 1}, "hits": {"hits": []}},
    ]

    def change(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
        double.change = None
        return [*faults, *responses[3:]]

    double.change, before = change, len(double.requests)
    assert (retriever.score(texts, esci_tiny.pools_RP[:8]) == expected).all()
    assert [len(lines) // 2 for _, _, lines in double.requests[before:]] == [8, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_stays_away_stops_the_run_with_one_line(
    kind: str, double: Double, esci_tiny: PreparedData
) -> None:
    retriever = built(double, esci_tiny, kind, wait=0.1)
    double.behave = unavailable(10**6)
    with pytest.raises(RetrieverError) as error:
        retriever.score(queries(esci_tiny, 2), esci_tiny.pools_RP[:2])
    assert f"{double.url}/products': answered HTTP 503" in str(error.value)
    assert "Fix: look at the engine's log" in str(error.value)
    double.behave = None  # nothing of the failure is remembered
    assert (retriever.score(queries(esci_tiny, 2), esci_tiny.pools_RP[:2]) > 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_late_answer_is_a_failure(kind: str, double: Double, esci_tiny: PreparedData) -> None:
    retriever = built(double, esci_tiny, kind, timeout=0.2, wait=0.1)
    double.latency = 0.6
    with pytest.raises(RetrieverError, match=r"no answer within 0\.2 s.*engine\.timeout"):
        retriever.score(queries(esci_tiny, 1), esci_tiny.pools_RP[:1])


# --- bad answers: one line with the URL and the fix, at once


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((200, "text/html", HTML), r"answered no search result.*Fix: name the engine's own URL"),
        ((200, JSON, b"{}"), "answered no search result.*Fix: name the engine's own URL"),
        ((200, JSON, b"[1]"), "answered no search result"),
        ((200, JSON, b"{"), "answered no search result"),
        ((200, JSON, b'{"responses": []}'), "answered 0 of 1 searches"),
        ((200, JSON, b'{"responses": [7]}'), "answered no search result"),
        ((200, JSON, b'{"responses": [{"hits": {"hits": [{"_id": "x"}]}}]}'), "no search result"),
        ((301, "text/html", HTML), "HTTP 301|no search result"),
        ((401, JSON, b'{"error": "Unauthorized"}'), "401 .*Fix: set .*_USER and .*_PASSWORD"),
        ((403, JSON, b"{}"), "403.*Fix: give the user"),
        ((404, JSON, b'{"error": {"reason": "no such index"}}'), "404 .*no such index.*Fix: make"),
        ((400, JSON, b'{"error": {"root_cause": [{"reason": "odd"}]}}'), r"400 \(odd\).*mend the f"),
        ((413, "text/html", HTML), "413.*Fix: lower retrievers.engine.batch"),
    ],
)  # fmt: skip
def test_bad_answers(
    kind: str,
    answer: tuple[int, str, bytes],
    problem: str,
    double: Double,
    esci_tiny: PreparedData,
) -> None:
    retriever = built(double, esci_tiny, kind)
    double.behave, before = lambda *_: answer, len(double.requests)
    with pytest.raises(RetrieverError, match=problem) as error:
        retriever.score(queries(esci_tiny, 1), esci_tiny.pools_RP[:1])
    assert double.url in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert len(double.requests) == before + 1  # not asked in vain again


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_connection_at_the_start(kind: str, esci_tiny: PreparedData) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(RetrieverError, match=f"no connection to {url}.*Fix: start the engine"):
            build_retriever(f"{kind}:{url}/products", settings(wait=600.0), esci_tiny)
        assert time.monotonic() - started < 5  # a wrong URL is not waited for


def test_an_index_of_other_items(
    double: Double, esci_tiny: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    retriever = load_retriever(f"opensearch:{double.url}/products", settings())
    ids = list(esci_tiny.item_ids)
    some = [*ids[:-4], *(f"new{n}" for n in range(4))]
    retriever.index(some, some)
    assert f"lacks 4 of {len(ids)} items looked up, such as 'new0'" in caplog.text
    most = [f"new{n}" for n in range(len(ids))]
    with pytest.raises(RetrieverError, match=r"lacks 400 of 400 .*Fix: index the whole catalogue"):
        retriever.index(most, most)
    with pytest.raises(RetrieverError, match=r"404 .*Fix: make the index 'goods', or name another"):
        build_retriever(f"opensearch:{double.url}/goods", settings(), esci_tiny)


def test_an_item_found_twice(double: Double, esci_tiny: PreparedData) -> None:
    retriever = built(double, esci_tiny)

    def twice(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for response in responses:
            response["hits"]["hits"] *= 2
        return responses

    double.change = twice
    with pytest.raises(RetrieverError, match=r"found item '.*' twice.*Fix: name one index"):
        retriever.score(queries(esci_tiny, 1), esci_tiny.pools_RP[:1])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("opensearch:search/products", "holds no http:// or https:// URL"),
        ("opensearch:https://search", "ends with no index's name"),
        ("opensearch:https://search/", "ends with no index's name"),
        ("opensearch:https://search/_all", "ends with no index's name"),
        ("opensearch:https://search/a,b", "ends with no index's name"),
        ("opensearch:https://search/shop*", "ends with no index's name"),
        ("opensearch:https://search:many/shop", "is no URL"),
        ("elasticsearch:ftp://search/shop", "holds no http:// or https:// URL"),
        ("opensearch:", "unknown retriever"),
    ],
)
def test_bad_names(name: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        load_retriever(name, settings())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "file not found; retrievers.engine.query names it"),
        ('{"query": {"match": {"title": {{text}}}}}', "is not JSON.*stands within quotes"),
        ("[]", "query: the body has no object"),
        ('{"query": {"match_all": {}}}', "no value in it holds"),
        ('{"query": {"{{text}}": 1}}', "no value in it holds"),
    ],
)
def test_bad_templates(content: str | None, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "query.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=problem) as error:
        read_template(file)
    assert str(file) in str(error.value)


# --- credentials and TLS


def test_credentials_come_from_the_environment_and_are_never_shown(
    double: Double, esci_tiny: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hunter2-and-more"  # pragma: allowlist secret
    monkeypatch.setenv("OPENSEARCH_USER", "ospo")
    monkeypatch.setenv("OPENSEARCH_PASSWORD", secret)
    monkeypatch.setenv("ELASTICSEARCH_API_KEY", secret)
    for kind, scheme in (("opensearch", "Basic "), ("elasticsearch", "ApiKey ")):
        retriever = built(double, esci_tiny, kind)
        assert double.requests[-1][1]["authorization"].startswith(scheme)
        assert secret not in repr(retriever.client.address)
        said = json.dumps({"error": f"no user with {secret}"}).encode()
        double.behave = lambda *_, said=said: (401, JSON, said)
        with pytest.raises(RetrieverError, match="no user with …") as error:
            retriever.score(queries(esci_tiny, 1), esci_tiny.pools_RP[:1])
        assert secret not in str(error.value)
        double.behave = None
    for name in ("opensearch:http://search:9200/shop", "elasticsearch:http://10.0.0.1/shop"):
        with pytest.raises(InputError, match="would go over the network unencrypted") as refused:
            load_retriever(name, settings())
        assert secret not in str(refused.value)


def test_a_url_with_a_password_is_refused_and_not_repeated() -> None:
    name = "opensearch:https://me:hunter2@search/shop"  # pragma: allowlist secret
    for setting in (f"retrievers.training={name}", f'retrievers.unseen=["{name}"]'):
        with pytest.raises(ConfigError, match="credentials belong in the environment") as error:
            load_config(ROOT / "params.yaml", [setting])
        assert "hunter2" not in str(error.value)
    with pytest.raises(InputError, match="holds a user") as refused:
        load_retriever(name, settings())
    assert "hunter2" not in str(refused.value)


def test_half_of_the_credentials_is_named() -> None:
    given = {"OPENSEARCH_PASSWORD": "x"}  # pragma: allowlist secret
    with pytest.raises(InputError, match="Fix: set OPENSEARCH_USER"):
        read_address("opensearch:https://search/shop", 1, 1, given)
    with pytest.raises(InputError, match="OPENSEARCH_CA names it"):
        read_address("opensearch:https://search/shop", 1, 1, {"OPENSEARCH_CA": "/no/such.pem"})


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_are_checked(
    kind: str,
    shop: Shop,
    esci_tiny: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ssl

    from engine_double import make_server

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out",
         certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    server = make_server(Double(shop))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        name = f"{kind}:https://127.0.0.1:{server.server_address[1]}/products"
        with pytest.raises(RetrieverError, match=f"TLS with .*Fix: .*{kind.upper()}_CA"):
            build_retriever(name, settings(), esci_tiny)
        monkeypatch.setenv(f"{kind.upper()}_CA", str(certificate))
        retriever = build_retriever(name, settings(), esci_tiny)
        assert (retriever.score(queries(esci_tiny, 1), esci_tiny.pools_RP[:1]) > 0).any()
    finally:
        server.shutdown()
        server.server_close()


# --- credit, and answers that change


def test_credit_takes_the_engine_for_a_black_box(double: Double, esci_tiny: PreparedData) -> None:
    config = settings()
    reward = SearchReward(built(double, esci_tiny), esci_tiny, 10, 1000)
    assert reward.pool is None
    assert reward.coalitions is None
    text = ", ".join(f"{word} one" for word in "red blue steel oak cotton wool large small".split())
    [credit] = credit_engine(config, reward).credit([text], [0])
    assert credit.estimator == "bayes"
    assert credit.phi_N.sum() == pytest.approx(credit.total - credit.empty_value)
    asked = len(double.searches)
    credit_engine(config, reward).credit([text], [0])
    assert len(double.searches) == asked  # all remembered


def test_an_answer_that_changes_is_named_once_and_the_first_kept(
    double: Double, esci_tiny: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    retriever, texts = built(double, esci_tiny), queries(esci_tiny, 10)
    pools = esci_tiny.pools_RP
    first = retriever.score(texts[:2], pools[:2])
    retriever.score(texts[2:4], pools[2:4])
    assert "differently" not in caplog.text

    def other(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for response in responses:
            hits = response["hits"]["hits"]
            scores = [hit["_score"] for hit in hits]
            for hit, score in zip(hits, reversed(scores), strict=True):
                hit["_score"] = score + 1
        return responses

    double.change = other
    for b in range(4, 10):
        retriever.score(texts[b : b + 1], pools[b : b + 1])
    warned = [r for r in caplog.records if "answered differently" in r.getMessage()]
    assert len(warned) == 1
    assert warned[0].levelno == logging.WARNING
    assert "the first answer of each text is kept" in warned[0].getMessage()
    assert (retriever.score(texts[:2], pools[:2]) == first).all()


# --- how it is declared


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opensearchpy", None)
    with pytest.raises(InputError, match=r"Fix: pip install 'ospo\[opensearch\]'"):
        load_retriever("opensearch:https://search/shop", settings())


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("opensearch:https://search:9200/shop", "opensearch:https:/search:9200/shop"),
        ("opensearch:http://[::1]:9200/shop", "opensearch:http:/-::1-:9200/shop"),
        ("path:/models/./x", "path:/models/x"),
        ("hub:ORG/MODEL_1-a", "hub:ORG/MODEL_1-a"),
        ("shop.search:Mine", "shop.search:Mine"),
    ],
)
def test_mlflow_takes_the_name_of_a_retriever(name: str, recorded: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_tag_name

    assert record_name(f"ospo/{name}/ndcg_at_10") == f"ospo/{recorded}/ndcg_at_10"
    _validate_metric_name(record_name(f"ospo/{name}/ndcg_at_10"))
    _validate_tag_name(record_name(f"ndcg_at_10.{name}"))
