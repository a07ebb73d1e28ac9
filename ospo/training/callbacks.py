"""What is seen while training runs: a metrics file that is always written, a progress bar, complete
checkpoints.
"""

import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ospo.config import Answer, Model
from ospo.errors import InputError, OspoError
from ospo.files import MANIFEST, atomic_file, verify_manifest, write_manifest
from ospo.metrics import read_metrics
from ospo.policy.guard import Guard
from ospo.policy.sharded import whole_weights
from ospo.policy.weights import save_policy
from ospo.training.run import OnLog, OnTable

LOGGER = logging.getLogger("ospo.training")
MARKER = MANIFEST  # written into a checkpoint after everything else

# The trainer library's names for what we log, and ours. What is not listed is not logged.
_NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "reward": "reward",
    "reward_std": "reward_std",
    "ndcg": "ndcg",
    "kl": "kl",
    "entropy": "entropy",
    "frac_reward_zero_std": "zero_std_groups",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "truncated",
    "clip_ratio/region_mean": "clip_ratio",
    "cache_hit_rate": "cache_hit_rate",
    "credit/evaluations": "credit/evaluations",
    "credit/segments": "credit/segments",
    "credit/outside": "credit/outside",
    "credit/explained": "credit/explained",
    "rewards/chosen": "dpo/chosen",
    "rewards/rejected": "dpo/rejected",
    "rewards/accuracies": "dpo/accuracy",
    "empty_answers": "empty_answers",
    "seconds/generate": "seconds/generate",
    "seconds/reward": "seconds/reward",
    "seconds/credit": "seconds/credit",
}


class MetricsLog(TrainerCallback):
    """Appends one JSON line a step to ``out/metrics.jsonl`` and hands it to ``on_log``, each step
    once.

    A run that was killed after its last checkpoint repeats some steps; they are not logged again.
    """

    def __init__(self, out: Path, on_log: OnLog):
        self.file, self.forward = out / "metrics.jsonl", on_log
        rows = read_metrics(self.file)
        if (
            self.file.is_file()
        ):  # drop a torn last line, so that the file stays readable as it grows
            with atomic_file(self.file) as temporary:
                temporary.write_text(
                    "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
                )
        self.last = max((int(row["step"]) for row in rows), default=0)
        self._started = time.perf_counter()
        self._seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the step's clock."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the step's clock: checkpoints and logging are not part of a step."""
        self._seconds = time.perf_counter() - self._started

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write and forward one step's metrics."""
        if (
            not state.is_world_process_zero
            or not logs
            or "loss" not in logs
            or state.global_step <= self.last
        ):
            return
        metrics = {
            _NAMES[key]: float(value)
            for key, value in logs.items()
            if key in _NAMES and value is not None
        }
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        phases = sum(value for key, value in metrics.items() if key.startswith("seconds/"))
        metrics["seconds/step"] = self._seconds
        metrics["seconds/update"] = max(0.0, self._seconds - phases)
        self.last = state.global_step
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": state.global_step} | metrics) + "\n")
        self.forward(state.global_step, metrics)


class ProgressBar(TrainerCallback):
    """A progress bar on stderr with the loss, or the reward where there is one."""

    def __init__(self, title: str):
        self.title = title
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar at the step the run starts from."""
        if state.is_world_process_zero:
            # Away from a terminal a line every few seconds is enough.
            interval = 0.1 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.title,
                unit="step",
                mininterval=interval,
            )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Move the bar to the logged step."""
        if self._bar is not None and logs and "loss" in logs:
            key = "reward" if logs.get("reward") is not None else "loss"
            self._bar.set_postfix({key: f"{logs[key]:.3f}"}, refresh=False)
            self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class FiniteGuard(TrainerCallback):
    """Ends the run before a gradient that is not finite reaches the weights.

    The checkpoints taken so far stay; nothing of the step is logged or saved.
    """

    def __init__(self, out: Path):
        self.out = out

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the gradients. Raises OspoError."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return
        kept = checkpoint_left(last_checkpoint(self.out / "checkpoints"), "kept")
        raise OspoError(
            f"{self.out}: the gradient of step {state.global_step + 1} is not finite; {kept}. Fix: "
            "lower the preset's learning_rate, or set model.dtype and model.autocast for float32"
        )


class SampleTable(TrainerCallback):
    """Hands ``rows(step)``, some of the step's completions with the credit of each phrase, on every
    ``every`` steps.
    """

    def __init__(self, rows: Callable[[int], list[dict[str, Any]]], every: int, on_table: OnTable):
        self.rows, self.every, self.on_table = rows, every, on_table

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand on the first step's table, and then every so many."""
        step = state.global_step
        if (
            state.is_world_process_zero
            and (step == 1 or step % self.every == 0)
            and (rows := self.rows(step))
        ):
            self.on_table(step, rows)


class CheckpointMarker(TrainerCallback):
    """Marks a checkpoint as complete: the checksums of its files, written after everything else.
    ``before`` goes first.

    Every process has written its part by then. Only after that are older checkpoints removed, all
    but the last ``keep``, by their step: the library would go by the files' times, and after a
    change of the clock remove the new.
    """

    def __init__(self, before: Callable[[], None] | None = None, keep: int = 2):
        self.before, self.keep = before, keep

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint of this step."""
        if self.before:
            self.before()
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            write_manifest(folder / f"checkpoint-{state.global_step}")
            for old in _checkpoints(folder)[: -self.keep]:
                shutil.rmtree(old)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in ``folder``, by their step."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint in ``folder``; None where there is none.

    Later ones that were half written or are damaged (their checksums differ) are removed, each with
    one line that says so: training then goes on from the one before.
    """
    found = _checkpoints(folder)
    while found:
        latest = found.pop()
        try:
            verify_manifest(latest)
        except InputError as error:
            if (latest / MARKER).is_file():
                before = f"{found[-1].name} is taken instead" if found else "training starts again"
                LOGGER.warning(
                    "%s is damaged (%s); %s", latest, str(error).partition(" Fix: ")[0], before
                )
            shutil.rmtree(latest)
        else:
            return latest
    return None


def checkpoint_left(last: Path | None, state: str) -> str:
    """What a run that ends early says of its last checkpoint: that it is ``state``, or that there
    is none.
    """
    return f"{last.name} is {state}" if last else "there is no checkpoint yet"


def standard_callbacks(trainer: Any, title: str, out: Path, on_log: OnLog) -> list[TrainerCallback]:
    """The metrics log and the progress bar, in place of the library's own printing, and the guard
    against gradients that are not finite.
    """
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return [MetricsLog(out, on_log), ProgressBar(title), FiniteGuard(out)]


def start_metrics(out: Path, checkpoint: Path | None) -> None:
    """Without a checkpoint to go on from, what an earlier attempt left in ``out`` is removed."""
    if checkpoint is None:
        for name in ("metrics.jsonl", "completions.parquet", "collapse.json"):
            (out / name).unlink(missing_ok=True)


def finish(
    trainer: Any,
    tokenizer: Any,
    model: Model,
    out: Path,
    seen: Iterable[str],
    answer: Answer,
    guard: Guard | None = None,
    context: int = 0,
) -> None:
    """Write the trained policy to ``out/model``, then drop the checkpoints; once, by the main
    process. Every process calls it: where weights are sharded they are put together first.

    ``seen``: keys of the requests it was trained on (``ospo.policy.seen``). ``answer``: the kind of
    answers it was trained to give (``ospo.policy.kind``). ``guard``: where they are used.
    ``context``: how many hits its prompts show.
    """
    network = trainer.accelerator.unwrap_model(trainer.model)
    weights = whole_weights(network)
    if not trainer.is_world_process_zero():
        return
    network.eval()
    save_policy(
        network,
        tokenizer,
        model,
        out / "model",
        trained_on=seen,
        answer=answer,
        guard=guard,
        context=context,
        weights=weights,
    )
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
