"""The result of a run is its best policy by held-out reward, not its last: reward on the training
requests goes on rising where reward on others has begun to fall.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from ospo.data.request import Request
from ospo.files import atomic_directory, read_json, write_json
from ospo.policy.decoding import Decoding
from ospo.policy.generate import Generator
from ospo.policy.prompts import extract_answer, opens_thinking
from ospo.policy.sharded import whole_weights
from ospo.policy.weights import save_policy
from ospo.training.looks import LOOKS, best_step
from ospo.training.prompts import with_grounds
from ospo.training.run import TrainingRun

METRIC = "validation/ndcg"
_BATCH = 64  # requests answered per call


class BestPolicy(TrainerCallback):
    """Looks at the policy before the first step (where training begins with a policy), every
    ``every`` steps and after the last, and keeps the best so far in ``out/best``. ``every`` 0:
    never looks.

    A look is the mean nDCG of greedy answers to ``rl.validation_requests`` requests of the
    validation split (a seeded choice; never training or test requests; with
    ``training.only_with_history`` of those that are like the training requests) under the training
    retriever, without prices. Of equal looks the earliest stands. A run that resumes takes over the
    looks that were made and repeats none.
    """

    def __init__(self, run: TrainingRun, tokenizer: Any, seen: list[str], every: int):
        rl = run.config.preset.rl
        self.run, self.tokenizer, self.seen, self.every = run, tokenizer, seen, every
        rows = run.data.rows("validation") if self.every else np.empty(0, dtype=np.int64)
        if run.config.training.only_with_history:
            rows = with_grounds(run.data, rows)
        order = np.random.default_rng([run.config.seed, 3]).permutation(len(rows))
        self.rows = np.sort(rows[order[: rl.validation_requests]]).tolist()
        self.file, self.kept = run.out / LOOKS, run.out / "best"
        self.looks: list[dict[str, float]] = []

    @property
    def lost(self) -> bool:
        """Whether the run has no result."""
        return False

    @property
    def best(self) -> int:
        """The step of the best look; -1 where there is none."""
        return best_step(self.looks)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over the looks of an interrupted run; look at the policy that training begins
        with.
        """
        if not self.rows:
            return
        if state.global_step and self.file.is_file():
            self.looks = list(read_json(self.file))
        elif state.is_world_process_zero:
            self.file.unlink(missing_ok=True)
            shutil.rmtree(self.kept, ignore_errors=True)
        # A policy drawn from scratch has nothing to show yet. A run that resumes looks again only
        # where an unbroken one does: where the retriever failed in the look after that step.
        if self.run.start is not None and self._due(state):
            self._look(kwargs["model"], state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look on every ``every``-th step and on the last."""
        if self.rows and self._due(state):
            self._look(kwargs["model"], state)

    def _due(self, state: Any) -> bool:
        step = state.global_step
        return bool(step % self.every == 0 or step == state.max_steps)

    def settle(self, stopped: bool = False) -> bool:
        """After training: whether another policy than the last was the best; then it is
        ``out/model``. ``stopped``: training ended before its last step, so the last policy, which
        no look saw, is not asked for.
        """
        earlier = bool(self.looks) and (stopped or self.best != self.looks[-1]["step"])
        if earlier:
            with atomic_directory(self.run.out / "model") as temporary:
                shutil.copytree(self._policy(), temporary, dirs_exist_ok=True)
        shutil.rmtree(self.kept, ignore_errors=True)
        return earlier

    def _policy(self) -> Path:
        return self.kept if self.best else self.run.policy

    def _look(self, model: Any, state: Any) -> None:
        step = state.global_step
        if any(look["step"] == step for look in self.looks):
            return  # made before the run was interrupted
        before = self.best
        scores = [self._score(model)]
        broadcast_object_list(scores)  # every process goes by the main one's
        self.looks.append({"step": step, "ndcg": scores[0]})
        better = self.best != before and bool(step)
        weights = whole_weights(model) if better else None
        if not state.is_world_process_zero:
            return
        if better:
            save_policy(
                model,
                self.tokenizer,
                self.run.config.preset.model,
                self.kept,
                trained_on=self.seen,
                answer=self.run.config.answer,
                guard=self.run.guard,
                context=self.run.config.context,
                weights=weights,
            )
        write_json(self.file, self.looks)
        self.run.on_log(step, {METRIC: scores[0]})

    def _score(self, model: Any) -> float:
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                answers = self._answers(self._generator(model))
        finally:
            model.train(training)
        return float(np.mean(self.run.scorer(answers, self.rows)))

    def _generator(self, model: Any) -> Generator:
        return Generator(model, self.tokenizer, self.run.rule, self.run.config.context)

    def _answers(self, generator: Generator) -> list[str]:
        rl = self.run.config.preset.rl
        thinking = opens_thinking(self.tokenizer)
        requests: list[Request] = [self.run.data.requests[row] for row in self.rows]
        prompts = [generator.render(request, rl.max_prompt_tokens) for request in requests]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
        answers = [""] * len(prompts)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            written = generator([prompts[i] for i in batch], Decoding(rl.max_completion_tokens))
            for i, ids in zip(batch, written, strict=True):
                answers[i] = extract_answer(generator.decode(ids), thinking)[0]
        return answers
