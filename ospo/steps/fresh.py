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

from ospo import registry, steps, tracking
from ospo.config import Config
from ospo.data.catalogue import generate_sample
from ospo.data.dataset import PreparedData, load_prepared
from ospo.data.prepare import prepare
from ospo.steps import NOBODY, RUNS, Lineage

RAW, CHAMPION = "raw", "champion"


def week_seed(seed: int, now: time.struct_time) -> int:
    """A seed that is another one each ISO week and never the training shop's own."""
    return seed + 1 + int(time.strftime("%G%V", now))


def fresh_data(config: Config, dataset: str, folder: Path) -> PreparedData:
    """Make and prepare fresh data in ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    raw = Path(config.data.esci.raw if dataset == "esci" else config.data.hm.raw)
    if raw.as_posix() == f"data/sample/{dataset}":
        raw = folder / "data" / "sample" / dataset
        generate_sample(dataset, raw, config.sample, week_seed(config.seed, time.gmtime()))
    prepared = folder / "data" / "prepared" / dataset
    prepare(dataset, raw, prepared, config)
    return load_prepared(prepared)


def run_fresh(config: Config, dataset: str, lineage: Lineage = NOBODY) -> dict[str, Any]:
    """Score the champion on fresh data; the figures become an MLflow run and the version's tag
    ``fresh``.

    Returns ``{"version", "figures": {policy: {retriever: nDCG@k}}, "worse": [retrievers]}``. Raises
    RegistryError where there is no champion, InputError for raw files that cannot be prepared.
    """
    from ospo.evaluation.evaluate import evaluate

    version, model = registry.usable_champion(config, dataset)
    directory = RUNS / dataset / "fresh"
    directory.mkdir(parents=True, exist_ok=True)
    params = {
        "seed": config.seed,
        "champion": version.version,
        "evaluation": config.evaluation.model_dump(),
        "retrievers": config.retrievers.model_dump(),
        "reward": config.reward.model_dump(),
    }
    with tracking.run(
        config,
        f"robustness-{dataset}",
        kind="robustness",
        directory=directory,
        parent_id=lineage.parent_run_id,
        params=params,
        tags={"ospo.dataset": dataset, "ospo.model_version": str(version.version)},
        prefect_flow_run_id=lineage.prefect_run_id or None,
    ) as run:
        data = fresh_data(config, dataset, directory / "input")
        files = sorted(data.directory.glob("*.parquet"))
        run.log_dataset(
            f"{dataset}-fresh",
            data.directory,
            {file.name: steps.file_md5(file) for file in files},
            "test",
        )
        figures = evaluate(config, data, {CHAMPION: model}, directory, cache=None)["test"]
        steps.log_evaluation(run, config, directory, figures)
        run_id = run.id
    worse = [name for name, value in figures[CHAMPION].items() if value < figures[RAW][name]]
    found = {"version": version.version, "figures": figures, "worse": worse, "run_id": run_id}
    registry.tag(
        config,
        dataset,
        version.version,
        "fresh",
        found | {"at": time.strftime("%Y-%m-%d", time.gmtime())},
    )
    return found


def markdown(found: dict[str, Any], dataset: str) -> str:
    """The figures as a table, with what is to be done where the champion lost."""
    retrievers = list(found["figures"][CHAMPION])
    figures = found["figures"].items()
    lines = [
        f"Champion of {dataset} (version {found['version']}) on fresh data, nDCG@10:",
        "",
        f"| | {' | '.join(retrievers)} |",
        "|---" * (len(retrievers) + 1) + "|",
        *(
            f"| {policy} | {' | '.join(f'{row[r]:.4f}' for r in retrievers)} |"
            for policy, row in figures
        ),
        "",
    ]
    if found["worse"]:
        lines.append(
            f"**Worse than the raw query under {', '.join(found['worse'])}.** Train again on data "
            "of today, or give "
            f"the place back to the champion before: `ospo rollback --dataset {dataset}`."
        )
    return "\n".join(lines)
