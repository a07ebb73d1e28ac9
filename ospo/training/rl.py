"""Reinforcement learning from the search reward: one set-up for every online algorithm, so that
only the algorithm differs.
"""

import math
import shutil

import torch

from ospo.config import Config
from ospo.config.algorithms import ALGORITHMS
from ospo.credit import CreditEngine
from ospo.data.dataset import PreparedData
from ospo.distributed import by_main
from ospo.files import write_json
from ospo.policy.seen import seen_after
from ospo.policy.weights import load_policy, quiet
from ospo.retrieval.base import RetrieverError
from ospo.reward import Reward
from ospo.reward.costs import PricedReward, known_words
from ospo.reward.credit import credit_engine
from ospo.training.algorithms import load_trainer, redistribution, with_segments
from ospo.training.arguments import batch_shape, resolved_arguments, trainer_arguments
from ospo.training.best import BestPolicy
from ospo.training.callbacks import (
    CheckpointMarker,
    SampleTable,
    checkpoint_left,
    finish,
    last_checkpoint,
    standard_callbacks,
    start_metrics,
)
from ospo.training.collapse import CollapseStop
from ospo.training.completions import CompletionTable
from ospo.training.ospo import OSPOTrainer, SearchRewardFunction
from ospo.training.prompts import prompt_dataset, prompt_rows
from ospo.training.run import TrainingRun


def priced(reward: Reward, config: Config, data: PreparedData) -> Reward:
    """``reward`` less what the preset takes off for useless text; itself where that is nothing."""
    rl = config.preset.rl
    if not rl.repeat_cost and not rl.word_cost:
        return reward
    known = known_words(data) if rl.word_cost else frozenset()
    return PricedReward(reward, rl.repeat_cost, rl.word_cost, known)


def training_engine(
    config: Config, algorithm: str, reward: Reward, language: str
) -> CreditEngine | None:
    """The credit engine that ``algorithm`` trains with, for answers in ``language``; None where it
    values no segments.
    """
    if not ALGORITHMS[algorithm].credit:
        return None
    added = redistribution(config, algorithm).mode == "to-go"
    return credit_engine(with_segments(config, algorithm), reward, added=added, language=language)


def build_trainer(run: TrainingRun, algorithm: str) -> OSPOTrainer:
    """A trainer ready to run ``algorithm``; ``run.out/trainer_args.json`` is written."""
    from accelerate import PartialState

    quiet()
    config, data, out = run.config, run.data, run.out
    rl = config.preset.rl
    processes = PartialState(cpu=not torch.cuda.is_available()).num_processes
    arguments = trainer_arguments(config, algorithm, out, processes)
    batch = batch_shape(config, processes)
    network, tokenizer = load_policy(run.policy, config.preset.model, trainable=True)
    generations = math.ceil(rl.steps * batch.accumulation / batch.steps_per_generation)
    rows = prompt_rows(
        data, generations * rl.prompts_per_step, config.seed, config.training.only_with_history
    )
    reward = priced(run.scorer, config, data)
    engine = training_engine(config, algorithm, reward, data.language)
    ids = [request.request_id for request in data.requests]
    table = CompletionTable(out / "completions.parquet", ids)
    trainer: OSPOTrainer = load_trainer(algorithm)(
        model=network,
        args=arguments,
        reward_funcs=SearchRewardFunction(reward, tokenizer),
        train_dataset=prompt_dataset(
            data, rows, tokenizer, rl.max_prompt_tokens, answer=config.answer
        ),
        processing_class=tokenizer,
        engine=engine,
        redistribution=redistribution(config, algorithm),
        table=table,
    )
    trainer.share_prompts = rl.share_prompts
    callbacks = standard_callbacks(trainer, f"{algorithm} {data.name}", out, run.on_log)
    if run.on_table is not None:
        callbacks.append(SampleTable(table.sample, rl.table_every, run.on_table))
    main = trainer.is_world_process_zero()
    callbacks.append(CheckpointMarker(before=table.write if main else None))
    for callback in callbacks:
        trainer.add_callback(callback)
    if main:
        resolved = resolved_arguments(arguments, config, algorithm, engine)
        write_json(out / "trainer_args.json", resolved)
    return trainer


def train_rl(run: TrainingRun, algorithm: str) -> None:
    """Train with an online ``algorithm`` from the policy in ``run.start``.

    A killed run resumes from its last complete checkpoint: same prompts, same random numbers, same
    weights as if it had not been killed. Every sampled completion goes to
    ``run.out/completions.parquet``. A run that collapses is stopped (``run.out/collapse.json``) and
    leaves its last good policy; where the preset looks at validation requests, every run leaves
    its best policy by them. Raises RetrieverError where the reward's retriever fails for good,
    after a checkpoint of the steps done: no step is lost.
    """
    out, preset = run.out, run.config.preset
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(out / "checkpoints")
    start_metrics(out, checkpoint)
    trainer = build_trainer(run, algorithm)
    seen = seen_after(run.data, run.policy)  # what the warm start has seen, this policy has seen
    collapse = CollapseStop(preset.rl, preset.model, run.policy, out, seen)
    best = BestPolicy(run, trainer.processing_class, seen, preset.rl.validate_every)
    for callback in (best, collapse, *run.callbacks):
        trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RetrieverError as error:
        trainer.save_before_failed_step()
        last = last_checkpoint(out / "checkpoints")
        problem = f"{error.problem}; {checkpoint_left(last, 'taken')}"
        then = "; the same command then resumes from the checkpoint" if last else ""
        raise RetrieverError(error.name, problem, error.fix + then) from error
    if trainer.table is not None and trainer.is_world_process_zero():
        trainer.table.write()
    if by_main(lambda: _settle(best, collapse)):
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    else:
        manner = run.config.answer, run.guard, run.config.context
        finish(trainer, trainer.processing_class, preset.model, out, seen, *manner)


def _settle(best: BestPolicy, collapse: CollapseStop) -> bool:
    """Whether ``out/model`` is written already: an earlier policy than the last, the best by
    validation, or of a run that collapsed without a look the last good one.
    """
    stopped = collapse.settle()
    return best.settle(stopped) or stopped
