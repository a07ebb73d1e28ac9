"""Which look a run's result is, and that the SFT policy is not called by another name."""

from pathlib import Path
from typing import Any

import pytest

from ospo.files import write_json
from ospo.reports.demo_table import policy_words
from ospo.training.looks import LOOKS, best_step, kept_start


def looks(*values: float) -> list[dict[str, float]]:
    return [{"step": 20.0 * n, "ndcg": value} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "step"),
    [((), -1), ((0.4,), 0), ((0.4, 0.5, 0.3), 20), ((0.5, 0.5, 0.4), 0), ((0.4, 0.5, 0.5), 20)],
)
def test_the_best_look_is_the_first_of_equal_ones(
    values: tuple[float, ...], step: int, tmp_path: Path
) -> None:
    assert best_step(looks(*values)) == step
    assert not kept_start(tmp_path)
    write_json(tmp_path / LOOKS, looks(*values))
    assert kept_start(tmp_path) == (step == 0)


def test_a_version_that_is_the_sft_policy_says_so() -> None:
    registered: dict[str, Any] = {"policy": "grpo", "same_as_sft": False}
    assert policy_words(registered) == "grpo"
    registered["same_as_sft"] = True
    assert policy_words(registered) == (
        "grpo (the SFT policy as it was: training found no better one)"
    )
