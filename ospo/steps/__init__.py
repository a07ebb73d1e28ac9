"""The steps of the main job: each one call that trains or evaluates, tracks itself, and skips what
has not changed.

A step lives in ``runs/<dataset>/<name>/``. Its ``step.json`` holds the fingerprint of everything
that went in (data, parameters, source code, library versions, earlier steps), the MLflow run and
whether it finished:

* same fingerprint, finished: nothing to do, unless the policy's files are damaged: then it is done
  again;
* same fingerprint, not finished: the run was interrupted, so it goes on from its checkpoint in the
  same MLflow run;
* another fingerprint: the old files are removed and the step starts afresh.
"""

from ospo.config import ALGORITHMS
from ospo.steps.evaluate import log_evaluation, run_evaluation
from ospo.steps.inputs import PREPARED, data_md5, evaluation_source, file_md5
from ospo.steps.pipeline import pipeline_run
from ospo.steps.register import run_registration
from ospo.steps.step import (
    NOBODY,
    RUNS,
    Lineage,
    StepResult,
    dataset_lock,
    policy_directory,
    read_state,
)
from ospo.steps.train import run_rl, run_sft

__all__ = [
    "ALGORITHMS",
    "NOBODY",
    "PREPARED",
    "RUNS",
    "Lineage",
    "StepResult",
    "data_md5",
    "dataset_lock",
    "evaluation_source",
    "file_md5",
    "log_evaluation",
    "pipeline_run",
    "policy_directory",
    "read_state",
    "run_evaluation",
    "run_registration",
    "run_rl",
    "run_sft",
]
