"""Trained policies on raw files they never saw: a check of what they learned, and a report on real
rows in a minute.

The demo trains on sample shops. Where real rows in the same official format are at hand, its
policies are evaluated on those too, beside the raw query: prepared, scored and reported like any
other evaluation, under ``runs/DATASET/real``.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from ospo import tracking
from ospo.config import Config, HmData
from ospo.errors import InputError
from ospo.files import sha256_file, sha256_json
from ospo.paths import RUNS
from ospo.steps.evaluate import log_evaluation
from ospo.steps.inputs import DATA_SOURCES, evaluation_inputs, source_hash
from ospo.steps.parameters import REAL, parameters
from ospo.steps.step import (
    NO_PARENTS,
    ParentRuns,
    Step,
    StepResult,
    policy_directory,
    run_step,
)

NAME = REAL
_SUFFIXES = (".csv", ".parquet", ".jsonl", ".ndjson", ".tsv", ".txt")
_NOTE = (
    "The policies were trained on other data ({dataset}'s sample shop) and have never seen this "
    "catalogue or requests like these. This measures what carries over to real data, not what "
    "training on it would bring."
)


def _raw_files(config: Config, dataset: str, raw: Path) -> dict[str, str]:
    """Name → sha256 of every file that preparing ``raw`` reads. InputError where it holds none."""
    files = (
        sorted(file for file in raw.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        if raw.is_dir()
        else []
    )
    if not files:
        raise InputError(
            raw, "", "holds no raw files", f"name a folder of files in {dataset}'s format"
        )
    digests = {file.relative_to(raw).as_posix(): sha256_file(file) for file in files}
    options = config.dataset(dataset)
    if isinstance(options, HmData) and Path(options.queries_file).is_file():
        digests["queries_file"] = sha256_file(options.queries_file)
    return digests


def real_step(
    config: Config, dataset: str, files: Mapping[str, str], policies: Mapping[str, str]
) -> Step:
    """What the evaluation on real rows depends on; ``files``: name → sha256 of the raw files;
    ``policies``: name → hash of the policy's content.
    """
    name = f"{dataset}-{NAME}"
    return Step(
        name=NAME,
        kind="evaluation",
        inputs={
            "files": dict(files),
            "policies": dict(policies),
            "preparation": source_hash(DATA_SOURCES),
            **evaluation_inputs(),
        },
        params=parameters(config, REAL, dataset),
        data_md5={name: sha256_json(files)[:32]},
        tags={"ospo.dataset": name},
        about=f"**Trained policies of {dataset} on real rows** ({name}), which they never saw.",
    )


def run_transfer(
    config: Config, dataset: str, raw: str | Path, parents: ParentRuns = NO_PARENTS
) -> StepResult:
    """Prepare the raw files in ``raw`` and evaluate the trained policies of ``dataset`` on their
    held-out requests.

    Skipped where files, policies, parameters and code are those of the last time. Raises InputError
    where the folder or a policy is missing.
    """
    from ospo.evaluation.completions import policy_hash

    raw = Path(raw)
    files = _raw_files(config, dataset, raw)
    models = {name: policy_directory(dataset, name) for name in config.policies}
    policies = {name: policy_hash(model) for name, model in models.items()}

    def work(directory: Path, run: tracking.Recorder) -> None:
        _evaluate(config, dataset, raw, models, directory, run, step.about)

    step = real_step(config, dataset, files, policies)
    return run_step(config, dataset, step, work, parents)


def _evaluate(
    config: Config,
    dataset: str,
    raw: Path,
    models: Mapping[str, Path],
    directory: Path,
    run: tracking.Recorder,
    beginning: str,
) -> None:
    from ospo.data.dataset import load_prepared
    from ospo.data.prepare import prepare
    from ospo.evaluation.evaluate import evaluate
    from ospo.retrieval import write_vectors

    # A sample's catalogue is what its requests' pools are made of: a search of the whole of it
    # would say little more.
    config = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"catalogue": False})}
    )
    prepared = directory / "prepared" / f"{dataset}-{NAME}"
    prepare(dataset, raw, prepared, config, evaluation_only=True)
    vectors = directory / "vectors" / prepared.name
    before = RUNS / dataset / NAME / "vectors" / prepared.name
    if before.is_dir() and not vectors.exists():  # those that are still right are not made again
        shutil.copytree(before, vectors)
    vectors.mkdir(parents=True, exist_ok=True)
    write_vectors(config, prepared, vectors)
    commands = [
        "make demo",
        f"ospo real --dataset {dataset} --raw DIR   # the folder of raw files; sha256 of what it "
        "gave is above",
    ]
    data = load_prepared(prepared)
    figures = evaluate(
        config, data, models, directory, note=_NOTE.format(dataset=dataset), commands=commands
    )["test"]
    log_evaluation(run, config, directory, figures, beginning, title=data.name)
