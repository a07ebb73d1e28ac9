"""Trained policies on raw files they never saw: a check of what they learned, and a report on real
rows in a minute.

The demo trains on sample shops. Where real rows in the same official format are at hand, its
policies are evaluated on those too, beside the raw query: prepared, scored and reported like any
other evaluation, under ``runs/DATASET/real``.
"""

import time
from pathlib import Path

from ospo import tracking
from ospo.config import Config
from ospo.errors import InputError
from ospo.files import sha256_file, sha256_json, write_json
from ospo.steps import (
    NOBODY,
    RUNS,
    Lineage,
    StepResult,
    evaluation_source,
    log_evaluation,
    policy_directory,
    read_state,
)

NAME = "real"


def run_transfer(
    config: Config, dataset: str, raw: str | Path, lineage: Lineage = NOBODY
) -> StepResult:
    """Prepare the raw files in ``raw`` and evaluate the trained policies of ``dataset`` on their
    held-out requests.

    Skipped where files, policies, parameters and code are those of the last time. Raises InputError
    where the folder or a policy is missing.
    """
    from ospo.evaluation.completions import policy_hash

    raw, directory = Path(raw), RUNS / dataset / NAME
    files = (
        sorted(file for file in raw.glob("*") if file.suffix in (".csv", ".parquet"))
        if raw.is_dir()
        else []
    )
    if not files:
        raise InputError(
            raw, "", "holds no raw files", f"name a folder of {dataset}'s official files"
        )
    models = {name: policy_directory(dataset, name) for name in config.policies}
    params = {
        "seed": config.seed,
        "evaluation": config.evaluation.model_dump(),
        "retrievers": config.retrievers.model_dump(),
        "data": config.data.model_dump(exclude={"esci": {"raw"}, "hm": {"raw"}}),
    }
    digests = {file.name: sha256_file(file) for file in files}
    policies = {name: policy_hash(model) for name, model in models.items()}
    fingerprint = sha256_json(
        {"files": digests, "policies": policies, "params": params, "source": evaluation_source()}
    )
    state_file = directory / "step.json"
    state = read_state(directory, fingerprint)
    if state.get("finished"):
        return StepResult(
            NAME, dataset, directory, fingerprint, state["run_id"], True, state["seconds"]
        )
    started = time.monotonic()
    write_json(state_file, {"fingerprint": fingerprint, "finished": False})
    with tracking.run(
        config,
        f"{NAME}-{dataset}",
        kind="evaluation",
        directory=directory,
        parent_id=lineage.parent_run_id,
        params=params,
        tags={"ospo.dataset": f"{dataset}-{NAME}", "ospo.fingerprint": fingerprint},
        data_md5={f"{dataset}-{NAME}": sha256_json(digests)[:32]},
        prefect_flow_run_id=lineage.prefect_run_id or None,
    ) as run:
        _evaluate(config, dataset, raw, models, directory, run)
    seconds = round(time.monotonic() - started, 1)
    write_json(
        state_file,
        {"fingerprint": fingerprint, "run_id": run.id, "finished": True, "seconds": seconds},
    )
    return StepResult(NAME, dataset, directory, fingerprint, run.id, False, seconds)


def _evaluate(
    config: Config,
    dataset: str,
    raw: Path,
    models: dict[str, Path],
    directory: Path,
    run: tracking.Run,
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
    vectors.mkdir(parents=True, exist_ok=True)
    write_vectors(config, prepared, vectors)  # kept: other policies meet the same items
    data = load_prepared(prepared)
    note = (
        f"The policies were trained on other data ({dataset}'s sample shop) and have never seen "
        "this catalogue or "
        "requests like these. This measures what carries over to real data, not what training on "
        "it would bring."
    )
    commands = [
        "make demo",
        f"ospo real --dataset {dataset} --raw DIR   # the folder of raw files; sha256 of what it "
        "gave is above",
    ]
    figures = evaluate(config, data, models, directory, note=note, commands=commands)["test"]
    log_evaluation(run, config, directory, figures, title=data.name)
