"""Which requests are trained on, in which order, and their prompts."""

import math
from typing import Any

import numpy as np

from ospo.config import Answer
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.policy.prompts import fit_messages


def prompt_rows(data: PreparedData, count: int, seed: int) -> np.ndarray:
    """(count,) request rows of the training split in the order they are trained on: seeded
    shuffles, end to end.
    """
    rows = data.rows("train")
    if not len(rows):
        raise InputError(
            data.directory / "requests.parquet",
            "split",
            "holds no training request",
            "give the dataset more requests",
        )
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
