"""Whether a data set's whole job is done: then no server and no model has to start."""

from typing import Any

from ospo.config import Config
from ospo.files import read_json
from ospo.paths import RUNS
from ospo.steps.evaluate import evaluation_step
from ospo.steps.register import registered_policy
from ospo.steps.replace import attempt
from ospo.steps.step import Step, usable
from ospo.steps.train import algorithm_step, sft_step


def finished_job(config: Config, dataset: str) -> dict[str, Any] | None:
    """What the pipeline flow returns, where it would change nothing: ``summary`` of the evaluation
    and ``registered``. None where a step has not finished, its data, parameters, source code or
    libraries are others now, its policy's files are damaged, or the better policy is not
    registered. That the prepared data are up to date is for DVC to say. Nothing is written.
    """
    fingerprints: dict[str, str] = {}
    for name in config.policies:
        step = (
            sft_step(config, dataset)
            if name == "sft"
            else algorithm_step(config, dataset, name, fingerprints["sft"])
        )
        if not _done(dataset, step):
            return None
        fingerprints[name] = step.fingerprint
    evaluation = evaluation_step(config, dataset, fingerprints)
    if not _done(dataset, evaluation):
        return None
    summary = read_json(RUNS / dataset / "evaluation" / "summary.json")
    registered = registered_policy(config, dataset, summary, fingerprints, evaluation.fingerprint)
    return None if registered is None else {"summary": summary, "registered": registered}


def _done(dataset: str, step: Step) -> bool:
    directory = RUNS / dataset / step.name
    return bool(usable(directory, step)) and not attempt(directory).exists()
