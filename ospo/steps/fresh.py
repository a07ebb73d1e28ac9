"""Is the champion still good? It is scored on fresh data, beside the raw query, under every
retriever.

Fresh means: for the built-in sample shops a shop of another seed, a new one each week, with
products and shoppers that no policy was trained on; for your own data the raw files as they are
now, prepared again, of which the held-out requests count (the split goes by a hash of the id, so
what was trained on stays on its side).
"""

import shutil
import time
from pathlib import Path
from typing import Any

from ospo import registry, tracking
from ospo.config import Config
from ospo.data.catalogue import generate_sample
from ospo.data.dataset import PreparedData, load_prepared
from ospo.data.prepare import prepare
from ospo.files import read_json
from ospo.paths import PREPARED, SAMPLE
from ospo.steps.evaluate import log_evaluation
from ospo.steps.inputs import evaluation_inputs, file_md5
from ospo.steps.notes import about
from ospo.steps.parameters import FRESH, parameters
from ospo.steps.step import NO_PARENTS, ParentRuns, Step, run_step

RAW, CHAMPION = "raw", "champion"
KIND = "champion-check"


def week_seed(seed: int, now: time.struct_time) -> int:
    """A seed that is another one each ISO week and never the training shop's own."""
    return seed + 1 + int(time.strftime("%G%V", now))


def fresh_data(config: Config, dataset: str, folder: Path) -> PreparedData:
    """Make and prepare fresh data in ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    options = config.dataset(dataset)
    raw = Path(options.raw)
    if raw == SAMPLE / dataset:
        raw = folder / SAMPLE / dataset
        generate_sample(options.format, raw, config.sample, week_seed(config.seed, time.gmtime()))
    prepared = folder / PREPARED / dataset
    prepare(dataset, raw, prepared, config)
    return load_prepared(prepared)


def fresh_step(config: Config, dataset: str, version: registry.Version) -> Step:
    """What the check of the champion is made from. It is never skipped: the data are new each
    time.
    """
    what = f"Champion (version {version.version}) on fresh data, made like"
    return Step(
        name=FRESH,
        kind=KIND,
        inputs={"champion": version.tags["policy_sha256"], **evaluation_inputs()},
        params=parameters(config, FRESH, dataset) | {"champion": version.version},
        tags={"ospo.model_version": str(version.version)},
        about=about(what, dataset, config),
        resumable=False,
    )


def run_fresh(config: Config, dataset: str, parents: ParentRuns = NO_PARENTS) -> dict[str, Any]:
    """Score the champion on fresh data; the figures become an MLflow run and the version's tag
    ``fresh``.

    Returns ``{"version", "figures": {policy: {retriever: nDCG@k}}, "worse": [retrievers],
    "run_id"}``. Raises RegistryError where there is no champion, InputError for raw files that
    cannot be prepared.
    """
    version, model = registry.whole_champion(config, dataset)

    def work(directory: Path, run: tracking.Recorder) -> None:
        from ospo.evaluation.evaluate import evaluate

        data = fresh_data(config, dataset, directory / "input")
        files = sorted(data.directory.glob("*.parquet"))
        digests = {file.name: file_md5(file) for file in files}
        run.log_dataset(f"{dataset}-fresh", data.directory, digests, "test")
        limits = {CHAMPION: version.limits}
        figures = evaluate(config, data, {CHAMPION: model}, directory, cache=None, limits=limits)[
            "test"
        ]
        log_evaluation(run, config, directory, figures, step.about)

    step = fresh_step(config, dataset, version)
    result = run_step(config, dataset, step, work, parents)
    figures = read_json(result.directory / "summary.json")["test"]
    worse = [name for name, value in figures[CHAMPION].items() if value < figures[RAW][name]]
    outcome = {
        "version": version.version,
        "figures": figures,
        "worse": worse,
        "run_id": result.run_id,
    }
    dated = outcome | {"at": time.strftime("%Y-%m-%d", time.gmtime())}
    registry.tag(config, dataset, version.version, "fresh", dated)
    return outcome


def markdown(outcome: dict[str, Any], dataset: str) -> str:
    """The figures as a table, with what is to be done where the champion lost."""
    retrievers = list(outcome["figures"][CHAMPION])
    figures = outcome["figures"].items()
    lines = [
        f"Champion of {dataset} (version {outcome['version']}) on fresh data, nDCG@10:",
        "",
        f"| | {' | '.join(retrievers)} |",
        "|---" * (len(retrievers) + 1) + "|",
        *(
            f"| {policy} | {' | '.join(f'{row[r]:.4f}' for r in retrievers)} |"
            for policy, row in figures
        ),
        "",
    ]
    if outcome["worse"]:
        lines.append(
            f"**Worse than the raw query under {', '.join(outcome['worse'])}.** Train again on "
            "data of today, or give the place back to the champion before: "
            f"`ospo rollback --dataset {dataset}`."
        )
    return "\n".join(lines)
