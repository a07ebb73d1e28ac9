"""``make demo``: the whole job for every data set, then the table and ``reports/demo.json``.

python -m flows.demo [--dataset esci] [--dataset hm] [--real DIR]
"""

import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from ospo.config import Config, load_config, own_config
from ospo.data.dataset import load_prepared
from ospo.endings import TERMINATED, Arguments, ending, exit_on_sigterm
from ospo.errors import InputError, OspoError
from ospo.files import storage_problem
from ospo.paths import DEMO_REPORT, PREPARED, RUNS, SAMPLE


def commit() -> str:
    """The checked-out commit, with "-dirty" where tracked files differ; "unknown" outside a
    repository.
    """
    done = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty"], capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def real_rows(config: Config, datasets: list[str], real: Path) -> dict[str, Path]:
    """Datasets trained on their sample shop for which ``real`` holds a folder of real rows.

    Raises:
        InputError: ``real`` holds no folder of a dataset.
    """
    shops = [name for name in datasets if is_sample(config, name)]
    found = {name: real / name for name in shops if (real / name).is_dir()}
    if shops and not found:
        raise InputError(
            real,
            "",
            f"holds no folder {' or '.join(shops)}",
            "name a folder that holds one, with raw files in the official formats",
        )
    return found


def done_before(datasets: list[str]) -> dict[str, dict[str, Any]] | None:
    """What the pipeline flow would return, where every data set's job is done and its data are up
    to date; else None. Neither Prefect nor a model is loaded for that.
    """
    if not all((RUNS / name / "evaluation/step.json").is_file() for name in datasets):
        return None
    from servers.dvc import up_to_date

    with ThreadPoolExecutor(1) as beside:  # DVC takes as long as the imports below
        data = beside.submit(up_to_date, [f"vectors@{name}" for name in datasets])
        from ospo import steps

        if not data.result():
            return None
        found = {name: steps.finished_job(load_config(dataset=name), name) for name in datasets}
    return {name: job for name, job in found.items() if job} if all(found.values()) else None


def is_sample(config: Config, dataset: str) -> bool:
    """Whether a data set is the built-in sample shop of its name."""
    return Path(config.dataset(dataset).raw) == SAMPLE / dataset


def at_once(config: Config, datasets: list[str]) -> int:
    """How many data sets train side by side: one per processor where the policy is a small network
    on processors, which has no use for several, and the shops are the built-in ones, which need
    little memory; otherwise one.
    """
    import torch

    from ospo.tracking.facts import processors

    small = config.preset.model.source == "scratch" and not torch.cuda.is_available()
    shops = all(is_sample(config, name) and name not in config.overrides for name in datasets)
    return processors() if small and shops else 1


def run_flows(
    config: Config, datasets: list[str], rows: dict[str, Path]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline flow's results, and those of evaluating the policies on real ``rows``."""
    from prefect.exceptions import TerminationSignal

    from flows.pipeline import pipeline
    from flows.real import real

    try:
        results = pipeline(datasets, at_once=at_once(config, datasets))
        return results, {f"{name}-real": real(name, str(raw)) for name, raw in rows.items()}
    except TerminationSignal as error:  # what Prefect makes of SIGTERM while a flow runs
        raise SystemExit(TERMINATED) from error


def run(chosen: list[str], folder: Path | None) -> None:
    """Run the pipeline flow for the chosen data sets (none: all), and the policies on the real rows
    of ``folder``; print and write what it measured.
    """
    config = load_config()  # wrong parameters are refused before a server starts
    datasets = [name for name in chosen if config.dataset(name)] or config.datasets
    rows = real_rows(config, datasets, folder) if folder else {}
    from ospo.reports.demo_table import demo_table, holds, policy_words, write_demo_report
    from ospo.reports.evaluation import publish_report

    started = time.monotonic()
    transferred: dict[str, Any] = {}
    results = None if rows else done_before(datasets)
    again = results is not None
    if results is None:
        results, transferred = run_flows(config, datasets, rows)
    else:
        print("Everything is up to date; nothing was run again.", file=sys.stderr)
    summaries = {dataset: result["summary"] for dataset, result in results.items()}
    registered = {dataset: result["registered"] for dataset, result in results.items()}
    seconds = time.monotonic() - started
    if not (again and holds(DEMO_REPORT, summaries, registered)):  # its seconds stay on record
        write_demo_report(
            DEMO_REPORT, summaries, registered=registered, seconds=seconds, commit=commit()
        )
    console = Console()
    console.print()
    for dataset, summary in summaries.items():
        training = own_config(config, dataset).retrievers.training
        console.print(demo_table({dataset: summary}, training))
    for dataset, version in registered.items():
        aliases = ", ".join(f"@{alias}" for alias in version["aliases"]) or "no alias"
        console.print(
            f"{dataset}: {version['name']} version {version['version']} is "
            f"{policy_words(version)}, {aliases}"
        )
        if "champion" not in version["aliases"]:
            console.print(f"{dataset}: {version['decision']}", markup=False)
        page = publish_report(RUNS / dataset / "evaluation", dataset)
        console.print(f"{dataset}: report in {page}", highlight=False)
    if transferred:
        console.print(
            "\nThe same policies on real rows, whose words they have never seen (a check that your "
            "files are read, not a result):"
        )
        for name, summary in transferred.items():
            own = own_config(config, name.removesuffix("-real"))
            console.print(demo_table({name: summary}, own.retrievers.training))
        console.print(
            f"reports in {', '.join(f'{DEMO_REPORT.parent / name}.html' for name in transferred)}",
            highlight=False,
        )
    console.print(
        "\nThese shops are made up: they show that every part works, not what an LLM gains on "
        "your shop.\nHow to train on your own rows: docs/howto/data.md\n"
        f"\n{seconds:.0f} s; figures in {DEMO_REPORT}. Next:\n"
        f"  .venv/bin/ospo rewrite --dataset {datasets[0]} {_example(datasets[0])}\n"
        "  make up      runs, registered models, flow runs and schedules in the browser",
        highlight=False,
    )


def _example(dataset: str) -> str:
    """A held-out request of a data set, quoted for a shell."""
    data = load_prepared(PREPARED / dataset)
    return shlex.quote(data.requests[int(data.rows("test")[0])].query)


def main() -> None:
    """Entry point: a problem the user can mend is one line and exit code 2."""
    parser = Arguments(
        prog="python -m flows.demo", description="Run the main job and print what it measured."
    )
    parser.add_argument("--dataset", action="append", default=[], help="default: all")
    parser.add_argument(
        "--real",
        type=Path,
        help="folder of esci/ and hm/ with real rows in the official formats: the policies are "
        "evaluated on these too",
    )
    arguments = parser.parse_args()
    exit_on_sigterm()
    try:
        run(arguments.dataset, arguments.real)
    except (SystemExit, KeyboardInterrupt) as error:
        ended = ending(error)
        if ended is None:
            raise
        print(f"ospo: {ended[1]}; `make demo` resumes where it stopped", file=sys.stderr)
        sys.exit(ended[0])
    except Exception as error:
        problem = error if isinstance(error, OspoError) else storage_problem(error)
        if problem is None:
            raise
        print(f"ospo: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)


if __name__ == "__main__":
    main()
