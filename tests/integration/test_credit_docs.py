"""The numbers of docs/credit.md's worked example."""

import re

import numpy as np
import pytest
import torch
from conftest import ROOT

from ospo.credit import get_estimator, owen_values, redistribute, shapley_values

# ∅, a, b, ab, c, ac, bc, abc
VALUES = np.array([0, 0.40, 0.10, 0.70, 0, 0.40, 0.10, 0.60])
REWARDS = torch.tensor([0.60, 0.20, 0.40, 0.0], dtype=torch.float64)
PAGE = (ROOT / "docs" / "credit.md").read_text(encoding="utf-8")


def _numbers(line: str) -> list[float]:
    return [float(x.replace("−", "-")) for x in re.findall(r"[−-]?(?:\d+)?\.?\d+", line)]


def test_shapley_owen_and_contiguous() -> None:
    phi = shapley_values(VALUES)
    assert phi == pytest.approx([0.467, 0.167, -0.033], abs=5e-4)
    owen = owen_values(VALUES, [[0], [1, 2]])
    assert owen == pytest.approx([0.450, 0.175, -0.025], abs=1e-12)
    masks = get_estimator("contiguous").plan(3, (), 32, np.random.default_rng(0))
    paper = get_estimator("contiguous").fit(3, (), masks, VALUES[masks @ np.array([1, 2, 4])])
    assert paper == pytest.approx([0.400, 0.100, -0.033], abs=5e-4)
    for name, shapley, of_owen in zip("abc", phi, owen, strict=True):
        printed = [
            _numbers(m)[0] for m in re.findall(rf"φ_{name} = \(.*?\) / \d\s+=\s+(\S+)", PAGE)
        ]
        assert printed == pytest.approx([shapley, of_owen], abs=5e-4)


@pytest.mark.parametrize(
    ("row", "mode", "clip"),
    [
        ("GRPO", "none", 2.0),
        ("`paper-prop`", "paper-prop", 99),
        ("`paper-rank`", "paper-rank", 99),
        ("`additive`:", "additive", 99),
        ("clipped", "additive", 2.0),
    ],
)
def test_advantages(row: str, mode: str, clip: float) -> None:
    advantages = (REWARDS - REWARDS.mean()) / (REWARDS.std() + 1e-4)
    a, b, c = shapley_values(VALUES)
    credit = torch.zeros(4, 8, dtype=torch.float64)
    credit[0] = torch.tensor([0, a, a, b, b, c, c, 0])
    inside = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 0]], dtype=torch.float64).expand(4, 8)
    result = redistribute(
        mode,  # type: ignore[arg-type]
        advantages,
        credit,
        torch.ones(4, 8),
        inside,
        REWARDS.std().expand(4),
        segments_B=torch.tensor([3, 1, 1, 1]),
        clip=clip,
    )[0]
    line = next(line for line in PAGE.splitlines() if line.startswith("|") and row in line)
    printed = [_numbers(cell)[0] for cell in line.split("|")[2:6]]
    assert [result[1], result[3], result[5], result[0]] == pytest.approx(printed, abs=6e-3)
