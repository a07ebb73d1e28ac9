"""Early stop on collapse: a policy whose reward falls away or whose entropy is gone does not come
back.

The last good policy is kept beside the checkpoints while training runs and becomes the result if
the run is stopped.
"""

import shutil
from collections import deque
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ospo.config import Model, Rl
from ospo.files import atomic_directory, write_json
from ospo.policy.guard import read_guard
from ospo.policy.kind import read_answer_kind, read_context
from ospo.policy.sharded import whole_weights
from ospo.policy.weights import save_policy
from ospo.training.callbacks import LOGGER, read_metrics

WINDOW = 10  # steps that a mean is taken over: one bad batch is no collapse
REPORT = "collapse.json"


class CollapseStop(TrainerCallback):
    """Stops training where the mean reward of the last 10 steps falls below ``collapse_reward``
    times the best such mean, or their mean entropy below ``collapse_entropy`` (nats a token). 0
    switches either off.

    At each checkpoint the policy is kept in ``out/good`` if its mean reward is the best so far;
    before the first there is the policy that training began with.
    """

    def __init__(self, rl: Rl, model: Model, start: Path, out: Path, seen: list[str]):
        self.rl, self.model, self.start, self.out, self.seen = rl, model, start, out, seen
        self.rewards: deque[float] = deque(maxlen=WINDOW)
        self.entropies: deque[float] = deque(maxlen=WINDOW)
        self.best = self.kept = float("-inf")
        self.kept_step = 0
        self.reason = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read again what an interrupted run had seen up to its checkpoint."""
        for row in read_metrics(self.out / "metrics.jsonl"):
            if row["step"] <= state.global_step:
                self._see(row.get("reward"), row.get("entropy"))
                if (
                    row["step"] % args.save_steps == 0
                    and len(self.rewards) == WINDOW
                    and self._mean() > self.kept
                ):
                    self.kept, self.kept_step = self._mean(), int(row["step"])

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Look at one step's reward and entropy."""
        if not logs or "loss" not in logs:
            return
        self._see(logs.get("reward"), logs.get("entropy"))
        if len(self.rewards) < WINDOW:
            return
        mean = self._mean()
        if self.rl.collapse_reward and self.best > 0 and mean < self.rl.collapse_reward * self.best:
            self.reason = f"mean reward of {WINDOW} steps fell to {mean:.3f} from {self.best:.3f}"
        elif (
            self.entropies and sum(self.entropies) / len(self.entropies) < self.rl.collapse_entropy
        ):
            entropy = sum(self.entropies) / len(self.entropies)
            self.reason = f"mean entropy of {WINDOW} steps fell to {entropy:.4f}"
        if self.reason:
            control.should_training_stop = True
            if state.is_world_process_zero:
                write_json(
                    self.out / REPORT,
                    {"step": state.global_step, "reason": self.reason, "kept_step": self.kept_step},
                )
                LOGGER.warning(
                    "training stopped at step %d: %s; the policy of step %d is kept",
                    state.global_step,
                    self.reason,
                    self.kept_step,
                )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep this checkpoint's policy if it is the best so far."""
        if len(self.rewards) == WINDOW and self._mean() > self.kept and not self.reason:
            self.kept, self.kept_step = self._mean(), state.global_step
            weights = whole_weights(kwargs["model"])
            if state.is_world_process_zero:
                shutil.rmtree(self.out / "good", ignore_errors=True)
                save_policy(
                    kwargs["model"],
                    kwargs["processing_class"],
                    self.model,
                    self.out / "good",
                    trained_on=self.seen,
                    answer=read_answer_kind(self.start).kind,
                    guard=read_guard(self.start),
                    context=read_context(self.start),
                    weights=weights,
                )

    def settle(self) -> bool:
        """After training: whether the run was stopped; then ``out/model`` is the last good
        policy.
        """
        good = self.out / "good"
        if self.reason:
            with atomic_directory(self.out / "model") as temporary:
                shutil.copytree(
                    good if good.is_dir() else self.start, temporary, dirs_exist_ok=True
                )
        shutil.rmtree(good, ignore_errors=True)
        return bool(self.reason)

    def _see(self, reward: float | None, entropy: float | None) -> None:
        if reward is not None:
            self.rewards.append(float(reward))
        if entropy is not None:
            self.entropies.append(float(entropy))
        if len(self.rewards) == WINDOW:
            self.best = max(self.best, self._mean())

    def _mean(self) -> float:
        return sum(self.rewards) / len(self.rewards)
