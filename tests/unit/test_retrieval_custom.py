"""Retrievers that users bring: what a class must have, what is refused, what is tried again."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ospo.config import Config
from ospo.data.dataset import PreparedData
from ospo.errors import InputError, OspoError
from ospo.evaluation.scoring import score_texts
from ospo.reports.explain import explain
from ospo.retrieval import build_retriever, load_retriever
from ospo.retrieval.base import (
    Retriever,
    RetrieverError,
    check_found_rows,
    check_scores,
    checked_scores,
    checked_search,
)
from ospo.retrieval.custom import CustomRetriever
from ospo.reward.search import SearchReward

ROWS = np.array([[0, 1, 2], [3, 4, -1]])


class Words:
    """Counts common words; ``change`` alters what ``score`` returns."""

    def __init__(self, change: Callable[[list[list[float]]], Any] = lambda scores: scores) -> None:
        self.change = change

    def index(self, item_ids, item_texts, cache=None) -> None:
        self.words = [set(text.lower().split()) for text in item_texts]

    def score(self, texts, rows_BP) -> Any:
        return self.change(
            [
                [float(len(set(t.lower().split()) & self.words[r])) for r in rows]
                for t, rows in zip(texts, rows_BP, strict=True)
            ]
        )


def custom(inner: object) -> CustomRetriever:
    retriever = CustomRetriever("shop:Mine", inner)
    retriever.index(list("abcde"), ["red", "red dress", "blue", "green", "dress"])
    return retriever


# --- what a class must have


class NoIndex:
    def score(self, texts, rows_BP) -> Any: ...


class NoScore:
    def index(self, item_ids, item_texts, cache=None) -> None: ...


class NotCallable(NoIndex):
    index = 3


@pytest.mark.parametrize(
    ("inner", "method"), [(NoIndex(), "index"), (NoScore(), "score"), (NotCallable(), "index")]
)
def test_a_missing_method_is_named_when_the_class_is_loaded(inner: object, method: str) -> None:
    with pytest.raises(InputError, match=rf"shop:Mine: has no method {method}\(\)"):
        CustomRetriever("shop:Mine", inner)


def test_a_search_of_its_own_is_used_and_checked() -> None:
    class Own(Words):
        found: Any = ([[1, 0]], [[2.0, 1.0]])

        def search(self, texts, top_k) -> Any:
            return self.found

    inner = Own()
    retriever = custom(inner)
    assert isinstance(retriever, Retriever)
    rows, scores = retriever.search(["red dress"], 2)
    assert rows.tolist() == [[1, 0]]
    assert scores.tolist() == [[2, 1]]
    assert custom(Words()).search(["red dress"], 2)[0].tolist() == [[1, 0]]  # every item scored
    for found, problem in (
        ([[1, 0]], "returned list, expected"),
        ((np.array([[1.0, 0.0]]), [[2, 1]]), "type float64, expected integers"),
        (([[1]], [[2.0]]), r"rows of shape \(1, 1\)"),
        (([[1, 1]], [[2, 1]]), "unknown or repeated rows for text 0"),
        (([[1, 5]], [[2, 1]]), "unknown or repeated rows for text 0"),
        (([[1, -1]], [[2, 1]]), "unknown or repeated rows for text 0"),
        (([[1, 0]], [[np.inf, 1]]), "returned infinity for text 0"),
        (([[1, 0]], [[2, "one"]]), "scores of text 0 are no numbers"),
        (([[1, 0], [1]], [[2, 1]]), "rows of search"),
    ):
        inner.found = found
        with pytest.raises(RetrieverError, match=rf"retriever 'shop:Mine'.*{problem}") as error:
            retriever.search(["red dress"], 2)
        assert "\n" not in str(error.value)


# --- what is refused


def _put(value: float) -> Callable[[list[list[float]]], Any]:
    def change(scores: list[list[float]]) -> Any:
        scores[1][0] = value
        return scores

    return change


class Tensor:
    """Raises as a tensor on another device does when it is read."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.\nUse Tensor.cpu()")


WRONG: dict[str, tuple[Callable[[list[list[float]]], Any], str]] = {
    "nan": (_put(np.nan), "returned NaN for text 1, item 0 of its pool"),
    "infinity": (_put(np.inf), "returned infinity for text 1, item 0 of its pool"),
    "minus infinity": (_put(-np.inf), "returned -infinity for text 1, item 0"),
    "too large": (_put(1e300), r"returned 1e\+300, beyond float32 for text 1"),
    "ragged": (lambda s: [s[0], s[1][:2]], r"scores of text 1 have shape \(2,\), expected \(3,\)"),
    "nested": (lambda s: [s[0], [s[1], 1]], "scores of text 1 are ragged"),
    "text": (lambda s: [s[0], ["good", "bad", "so\nso"]], "scores of text 1 are no numbers.*good"),
    "none": (lambda s: [s[0], [1, None, 2]], "scores of text 1 are no numbers, such as None"),
    "nothing": (lambda s: None, "returned NoneType"),
    "generator": (lambda s: (row for row in s), "returned generator"),
    "tensor": (lambda s: Tensor(), "returned Tensor: can't convert"),
    "a text": (lambda s: "good", "returned str"),
    "one per text": (lambda s: [row[0] for row in s], r"shape \(2,\), expected \(2, 3\)"),
    "too few": (lambda s: np.array(s)[:, :2], r"shape \(2, 2\), expected \(2, 3\)"),
    "complex": (lambda s: np.array(s) + 1j, "no numbers"),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_wrong_scores_are_one_line_with_class_and_text(kind: str) -> None:
    change, problem = WRONG[kind]
    with pytest.raises(RetrieverError, match=rf"retriever 'shop:Mine': .*{problem}") as error:
        custom(Words(change)).score(["red", "dress"], ROWS)
    assert isinstance(error.value, OspoError)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_padding_is_minus_infinity_whatever_the_class_returns() -> None:
    for value in (0.0, 1e9, np.nan, np.inf, 1e300):
        scores = np.full((2, 3), 1.0)
        scores[ROWS < 0] = value
        checked = check_scores("x", scores, ROWS)
        assert checked.dtype == np.float32
        assert (checked[ROWS >= 0] == 1).all()
        assert np.isneginf(checked[ROWS < 0]).all()
        assert (scores[ROWS >= 0] == 1).all()
        assert scores[1, 2] == value or np.isnan(value), "the class's own array stays as it is"


def test_other_numbers_are_taken() -> None:
    import torch

    for scores in (
        np.ones((2, 3), dtype=bool),
        [[1, 2, 3], (4, 5, 6)],
        torch.ones(2, 3, dtype=torch.float64),
        np.ones((2, 3), dtype=np.float16),
        [torch.ones(3), torch.ones(3)],
    ):
        assert check_scores("x", scores, ROWS).shape == (2, 3)
    assert check_scores("x", [], np.zeros((0, 3), int)).shape == (0, 3)


def test_the_same_check_in_reward_evaluation_and_explain(
    esci_tiny: PreparedData, tiny_config: Config
) -> None:
    class Bad:
        name, linear = "bad-one", False

        def index(self, item_ids, item_texts, cache=None) -> None: ...

        def score(self, texts, rows_BP) -> Any:
            scores = np.zeros(rows_BP.shape)
            scores[-1, 3] = np.inf
            return scores

        def search(self, texts, top_k) -> Any: ...

    bad: Any = Bad()
    rows = [0, 1]
    reward = SearchReward(bad, esci_tiny, 10, 10)
    request = esci_tiny.requests[0].request_id
    calls: list[Callable[[], Any]] = [
        lambda: reward(["a", "b"], rows),
        lambda: reward.pool_scores(["a", "b"], rows),
        lambda: score_texts(bad, ["a", "b"], esci_tiny.pools_RP[rows], esci_tiny.gains_RP[rows]),
        lambda: explain(tiny_config, esci_tiny, bad, request, "red dress"),
    ]
    for call in calls:
        with pytest.raises(RetrieverError, match=r"'bad-one': returned infinity for text \d+"):
            call()


# --- pool scores


def test_pool_scores_are_of_the_right_texts_and_padding_is_last(esci_tiny: PreparedData) -> None:
    """Each text's scores stand in its own row, also where blank texts lie between; padding scores
    -inf, in a blank text's row too.
    """

    class Numbered:
        name, linear = "numbered", False

        def score(self, texts, rows_BP) -> np.ndarray:
            return np.array([[100.0 * int(text[1:]) + row for row in rows] for text, rows in
                             zip(texts, rows_BP, strict=True)])  # fmt: skip

    pools = np.array(esci_tiny.pools_RP[:4])
    pools[:, 30:] = -1
    data = SimpleNamespace(pools_RP=pools, gains_RP=esci_tiny.gains_RP[:4])
    reward = SearchReward(Numbered(), data, 10, 10)  # type: ignore[arg-type]
    texts, rows = ["x7", " ,", "x1", "x7", "x3"], [2, 0, 1, 0, 2]
    scores = reward.pool_scores(texts, rows)
    for text, row, found in zip(texts, rows, scores, strict=True):
        pool = pools[row]
        expected = 100.0 * int(text[1:]) + pool[:30] if text.strip(" ,") else np.zeros(30)
        assert (found[:30] == expected).all()
        assert np.isneginf(found[30:]).all()


# --- constant scores


def test_constant_scores_are_warned_of_once_with_their_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    retriever = custom(Words())
    rows = np.array([[0, 1, 2], [0, 1, 2], [3, -1, -1], [0, 2, -1]])
    with caplog.at_level(logging.WARNING, logger="ospo.retrieval"):
        retriever.score(["red", "red dress"], rows[:2])
        assert not caplog.records
        # "zzz" is constant, a pool of one item does not count, "blue" tells 0 and 2 apart.
        retriever.score(["zzz", "red", "zzz", "blue"], rows)
        retriever.score(["zzz"], rows[:1])
    [record] = caplog.records
    assert "'shop:Mine': all items have the same score in 1 of 5 pools so far (20 %)" in (
        record.getMessage()
    )
    caplog.clear()
    custom(Words(lambda scores: np.ones((len(scores), 3)))).score(["a", "b"], ROWS)
    [record] = caplog.records
    assert "2 of 2 pools so far (100 %)" in record.getMessage()


# --- a failed call


class Flaky(Words):
    """Fails with an HTTP 503 at the calls in ``failures``."""

    def __init__(self, failures: set[int]) -> None:
        super().__init__()
        self.failures, self.calls = failures, 0

    def score(self, texts, rows_BP) -> Any:
        from urllib.error import HTTPError

        self.calls += 1
        if self.calls in self.failures:
            raise HTTPError("http://search", 503, "Service\nUnavailable", None, None)  # type: ignore[arg-type]
        return super().score(texts, rows_BP)


def test_a_failed_call_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ospo.retrieval.custom.BACK_OFF_SECONDS", (0.01, 0.02, 0.03))
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    inner = Flaky({1, 2, 3})
    expected = custom(Words()).score(["red", "dress"], ROWS)
    assert (custom(inner).score(["red", "dress"], ROWS) == expected).all()
    assert inner.calls == 4
    assert slept == [0.01, 0.02, 0.03]
    messages = [record.getMessage() for record in caplog.records]
    assert len([message for message in messages if "503" in message]) == 3
    inner = Flaky(set(range(1, 9)))
    with pytest.raises(
        RetrieverError, match=r"'shop:Mine': score\(\) failed 4 times.*503"
    ) as error:
        custom(inner).score(["red", "dress"], ROWS)
    assert inner.calls == 4
    assert "\n" not in str(error.value)


def test_a_wrong_result_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(RetrieverError):
        custom(Words(WRONG["nan"][0])).score(["red", "dress"], ROWS)

    class OwnError(Words):
        def index(self, item_ids, item_texts, cache=None) -> None:
            raise InputError("shop.csv", "", "not there", "fetch it")

    with pytest.raises(InputError, match=r"shop\.csv: not there"):
        custom(OwnError())


def test_index_and_search_are_tried_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ospo.retrieval.custom.BACK_OFF_SECONDS", (0.0,))

    class Once(Words):
        indexed = searched = 0

        def index(self, item_ids, item_texts, cache=None) -> None:
            self.indexed += 1
            if self.indexed == 1:
                raise ConnectionResetError("reset")
            super().index(item_ids, item_texts)

        def search(self, texts, top_k) -> Any:
            self.searched += 1
            raise ConnectionResetError("reset")

    inner = Once()
    retriever = custom(inner)
    assert inner.indexed == 2
    with pytest.raises(RetrieverError, match=r"search\(\) failed 2 times, last with Connection"):
        retriever.search(["red"], 2)


# --- loading


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("def broken(:", "cannot be imported .SyntaxError"),
        ("import numpy\nnumpy.no_such_thing", "cannot be imported .AttributeError"),
        ("raise RuntimeError('no\\nservice')", "cannot be imported .RuntimeError: no service"),
        ("Class = 3", "'Class' is no class"),
        ("class Class:\n    def __init__(self, config):\n        1 / 0", "ZeroDivisionError"),
    ],
)
def test_modules_that_fail(
    content: str,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_config: Config,
) -> None:
    (tmp_path / "failing_shop.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "failing_shop", raising=False)
    with pytest.raises(InputError, match=f"failing_shop:Class: .*{problem}") as error:
        load_retriever("failing_shop:Class", tiny_config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("black_box", [True, False])
def test_a_class_may_declare_itself_a_black_box(
    black_box: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_config: Config,
    esci_tiny: PreparedData,
) -> None:
    """Its scores are then not asked for beside the values; explanations still rank by it."""
    base = "BlackBox" if black_box else "object"
    (tmp_path / "box_shop.py").write_text(
        "from ospo.retrieval.base import BlackBox\n"
        f"class Box({base}):\n"
        "    def __init__(self, config): self.asked = 0\n"
        "    def index(self, item_ids, item_texts, cache=None):\n"
        "        self.texts = [set(t.lower().split()) for t in item_texts]\n"
        "    def score(self, texts, rows_BP):\n"
        "        return [[len(set(t.split()) & self.texts[r]) for r in rows]\n"
        "                for t, rows in zip(texts, rows_BP)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "box_shop", raising=False)
    retriever = build_retriever("box_shop:Box", tiny_config, esci_tiny)
    reward = SearchReward(retriever, esci_tiny, 10, 100)
    assert (reward.pool is None) is black_box
    request = esci_tiny.requests[0]
    explained = explain(tiny_config, esci_tiny, retriever, request.request_id, "red, blue, green")
    assert explained.rank >= 1
    assert len(explained.phrases) == 3


# --- the built-in ones, by the same checks


def test_the_checks_pass_what_is_right_and_name_what_is_not(
    esci_tiny: PreparedData, tiny_config: Config
) -> None:
    retriever = build_retriever("bm25", tiny_config, esci_tiny)
    items = len(esci_tiny.item_ids)
    texts, pools = ["red dress", "shoes"], esci_tiny.pools_RP[:2]
    assert (checked_scores(retriever, texts, pools) == retriever.score(texts, pools)).all()
    rows, scores = checked_search(retriever, texts, 7, items)
    assert (rows == retriever.search(texts, 7)[0]).all()
    with pytest.raises(RetrieverError, match=r"'bm25': .*outside the catalogue"):
        checked_scores(retriever, texts, pools + items)

    class Upwards:
        name = "upwards"

        def search(self, texts, top_k) -> Any:
            return rows, scores[:, ::-1]

    with pytest.raises(RetrieverError, match=r"'upwards'.*out of order for text 0"):
        checked_search(Upwards(), texts, 7, items)  # type: ignore[arg-type]
    assert check_found_rows("x", [[2, 0]], (1, 2), 3).dtype == np.int64
