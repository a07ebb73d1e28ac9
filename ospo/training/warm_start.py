"""When a warm start ends: once what it learns is seen on validation requests, not after a number of
steps; and a draw of the weights that learns nothing is given up for another.

A small policy from scratch stays on a plateau until it has found how to copy from its prompt. When
that happens is a matter of its first weights, and by the end of the learning rate's descent it may
not have happened at all.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState

from ospo.config import Sft
from ospo.files import read_json, write_json
from ospo.reward.protocol import as_reward
from ospo.training.best import BestPolicy
from ospo.training.run import TrainingRun

LOGGER = logging.getLogger("ospo.training")
ATTEMPTS = "attempts.json"  # draws given up: [{"step": …, "ndcg": …, "raw": …}, …]
Verdict = Literal["go on", "done", "again"]


def verdict(looks: Sequence[dict[str, float]], raw: float, sft: Sft, last_draw: bool) -> Verdict:
    """What follows from the looks so far (``step``, ``ndcg``, in order).

    done: the policy has learned, its best look being at least ``sft.learned`` above ``raw`` (the
    nDCG of the raw query on the same requests), and the last ``sft.patience`` looks brought no new
    best. again: it has not learned by step ``sft.restart_after``, and there is another draw.
    """
    if not looks:
        return "go on"
    values = [look["ndcg"] for look in looks]
    best = max(values)
    if best >= raw + sft.learned:
        waited = len(values) - 1 - values.index(best)
        return "done" if sft.patience and waited >= sft.patience else "go on"
    late = sft.restart_after and looks[-1]["step"] >= sft.restart_after
    return "again" if late and not last_draw else "go on"


class WarmStart(BestPolicy):
    """Looks at the policy as it is trained, keeps the best and ends the run by :func:`verdict`.

    ``last_draw``: no other draw of the weights follows, so this one is never given up.
    """

    def __init__(self, run: TrainingRun, tokenizer: Any, seen: list[str], last_draw: bool):
        self.sft, self.last_draw = run.config.preset.sft, last_draw
        super().__init__(run, tokenizer, seen, self.sft.validate_every)
        self._raw: float | None = None

    @property
    def raw(self) -> float:
        """Mean nDCG of the raw query on the requests looked at."""
        if self._raw is None:
            queries = [self.run.data.requests[row].query for row in self.rows]
            self._raw = float(np.mean(as_reward(self.run.search_reward)(queries, self.rows)))
        return self._raw

    @property
    def verdict(self) -> Verdict:
        """What follows from the looks so far."""
        return verdict(self.looks, self.raw, self.sft, self.last_draw) if self.looks else "go on"

    @property
    def lost(self) -> bool:
        """Whether this draw was given up."""
        return self.verdict == "again"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, unless a run that was interrupted had come to its end; then end where it is due."""
        if self.verdict == "go on":
            super().on_step_end(args, state, control, **kwargs)
        if self.verdict != "go on":
            control.should_training_stop = True


def given_up(out: Path) -> list[dict[str, float]]:
    """The draws that an earlier, interrupted call gave up."""
    file = out / ATTEMPTS
    return list(read_json(file)) if file.is_file() else []


def give_up(out: Path, warm: WarmStart) -> None:
    """Record a draw that learned nothing. Its checkpoints are gone by then: a run interrupted
    before the record makes the same draw again, and after it the next.
    """
    look = warm.looks[-1]
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        LOGGER.warning(
            "warm start: nDCG %.3f on validation requests after %d steps, the raw query %.3f; "
            "begins again from other weights",
            max(look["ndcg"] for look in warm.looks),
            look["step"],
            warm.raw,
        )
        shutil.rmtree(warm.kept, ignore_errors=True)
        (out / "metrics.jsonl").unlink(missing_ok=True)
        write_json(out / ATTEMPTS, [*given_up(out), {**look, "raw": warm.raw}])
    state.wait_for_everyone()
