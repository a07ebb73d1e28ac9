"""The steps of the main job: each one call that trains or evaluates, tracks itself, and skips what
has not changed.

A step's result lies in ``runs/<dataset>/<name>/``. Its ``step.json`` holds the fingerprint of
everything that went in (data, parameters, source code, library versions, earlier steps), the MLflow
run and whether it finished:

* same fingerprint, finished: nothing to do, unless the policy's files are damaged: then it is done
  again;
* otherwise a new result is built beside it, in ``runs/<dataset>/.<name>.next/``, and takes its
  place when it is complete. Until then, and if it fails, the old one stays;
* an attempt of the same fingerprint that was interrupted resumes from its checkpoint in the same
  MLflow run; one of another fingerprint is started afresh.

:mod:`ospo.steps.parameters` says which parameters each step reads.
"""

from ospo.config import ALGORITHMS
from ospo.paths import PREPARED, RUNS
from ospo.steps.done import finished_job
from ospo.steps.evaluate import evaluation_step, log_evaluation, run_evaluation
from ospo.steps.inputs import data_md5, file_md5
from ospo.steps.lock import dataset_lock
from ospo.steps.pipeline import pipeline_run
from ospo.steps.register import run_registration
from ospo.steps.step import (
    NO_PARENTS,
    ParentRuns,
    Step,
    StepResult,
    policy_directory,
    read_state,
)
from ospo.steps.train import algorithm_step, run_rl, run_sft, sft_step

__all__ = [
    "ALGORITHMS",
    "NO_PARENTS",
    "PREPARED",
    "RUNS",
    "ParentRuns",
    "Step",
    "StepResult",
    "algorithm_step",
    "data_md5",
    "dataset_lock",
    "evaluation_step",
    "file_md5",
    "finished_job",
    "log_evaluation",
    "pipeline_run",
    "policy_directory",
    "read_state",
    "run_evaluation",
    "run_registration",
    "run_rl",
    "run_sft",
    "sft_step",
]
