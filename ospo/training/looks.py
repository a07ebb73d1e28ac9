"""The looks at validation requests that a run took, and which policy they made its result."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ospo.files import read_json

LOOKS = "validation.json"  # in a run's folder: [{"step": …, "ndcg": …}, …], in order


def best_step(looks: Sequence[Mapping[str, float]]) -> int:
    """The step of the best look, of equal ones the earliest; -1 where there is none."""
    if not looks:
        return -1
    return int(max(looks, key=lambda look: (look["ndcg"], -look["step"]))["step"])


def kept_start(run: Path) -> bool:
    """Whether the result of the run in ``run`` is the policy that it began from: no look at it was
    better than the first.
    """
    file = run / LOOKS
    return file.is_file() and best_step(read_json(file)) == 0
