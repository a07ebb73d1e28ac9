"""Which requests are trained on, in which order, and their prompts."""

import math
from typing import Any

import numpy as np

from ospo.config import Answer
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.policy.guard import grounds
from ospo.policy.prompts import fit_messages


def training_rows(data: PreparedData, only_with_history: bool) -> np.ndarray:
    """(R,) int rows of the requests that are trained on, in the data's order: the training split,
    or of it those whose shopper's earlier purchases of the requested type name something that the
    request does not say.

    Raises InputError where none is left.
    """
    rows = data.rows("train")
    if not len(rows):
        raise InputError(
            data.directory / "requests.parquet",
            "split",
            "holds no training request",
            "give the dataset more requests",
        )
    if not only_with_history:
        return rows
    kept = with_grounds(data, rows)
    if not len(kept):
        raise InputError(
            data.directory / "requests.parquet",
            "history",
            "no training request follows a purchase of the type that it asks for",
            "set training.only_with_history to false",
        )
    return kept


def with_grounds(data: PreparedData, rows: np.ndarray) -> np.ndarray:
    """Those of ``rows`` whose shopper's earlier purchases of the requested type name something that
    the request does not say.
    """
    own = [grounds(data.requests[row]) == "own" for row in rows.tolist()]
    return rows[np.array(own, dtype=bool)]


def prompt_rows(
    data: PreparedData, count: int, seed: int, only_with_history: bool = False
) -> np.ndarray:
    """(count,) request rows in the order they are trained on: seeded shuffles of ``training_rows``,
    end to end.
    """
    rows = training_rows(data, only_with_history)
    rng = np.random.default_rng([seed, 3])
    return np.concatenate([rng.permutation(rows) for _ in range(math.ceil(count / len(rows)))])[
        :count
    ]


def prompt_dataset(
    data: PreparedData,
    rows: np.ndarray,
    tokenizer: Any,
    max_tokens: int,
    answer: Answer = "rewrite",
) -> Any:
    """Dataset of ``prompt`` (conversation, which asks for that kind of ``answer``) and ``row``
    (request row), histories cut to fit ``max_tokens``.
    """
    from datasets import Dataset

    known: dict[int, list[dict[str, str]]] = {}
    for row in np.unique(rows).tolist():
        known[row], _ = fit_messages(data.requests[row], tokenizer, max_tokens, answer=answer)
    return Dataset.from_dict(
        {"prompt": [known[row] for row in rows.tolist()], "row": rows.tolist()}
    )
