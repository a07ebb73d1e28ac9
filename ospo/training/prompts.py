"""Which requests are trained on, in which order, and their prompts."""

import math
from typing import Any

import numpy as np

from ospo.config import Answer
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.policy.prompts import fit_messages
from ospo.policy.rules import latest_name
from ospo.policy.text import EXPAND


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
    requests = ((row, data.requests[row]) for row in rows.tolist())
    kept = [row for row, asked in requests if EXPAND.added(asked.query, latest_name(asked))]
    if not kept:
        raise InputError(
            data.directory / "requests.parquet",
            "history",
            "no training request follows a purchase of the type that it asks for",
            "set training.only_with_history to false",
        )
    return np.array(kept, dtype=rows.dtype)


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
