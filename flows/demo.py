"""``make demo``: the whole job for both datasets, then the table and ``reports/demo.json``.

python -m flows.demo [--dataset esci] [--dataset hm]
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from ospo.config import DATASETS, Dataset, load_config
from ospo.errors import OspoError

REPORT = Path("reports/demo.json")


def commit() -> str:
    """The checked-out commit, with "-dirty" where tracked files differ; "unknown" outside a repository."""
    done = subprocess.run(["git", "describe", "--always", "--abbrev=40", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def run(datasets: list[Dataset]) -> None:
    """Run the pipeline flow and print and write what it measured."""
    config = load_config()  # wrong parameters are told before a server starts
    from flows.pipeline import pipeline
    from ospo.evaluation.demo_table import demo_table, write_demo_report
    from ospo.files import atomic_file
    from ospo.steps import RUNS

    started = time.monotonic()
    results = pipeline(datasets)
    summaries = {dataset: result["summary"] for dataset, result in results.items()}
    registered = {dataset: result["registered"] for dataset, result in results.items()}
    seconds = time.monotonic() - started
    write_demo_report(REPORT, summaries, registered=registered, seconds=seconds, commit=commit())
    console = Console()
    console.print()
    console.print(demo_table(summaries, config.retrievers.training))
    for dataset, version in registered.items():
        aliases = ", ".join(f"@{alias}" for alias in version["aliases"]) or "no alias"
        console.print(f"{dataset}: {version['name']} version {version['version']} is {version['policy']}, {aliases}")
        with atomic_file(REPORT.parent / f"{dataset}.html") as temporary:
            shutil.copyfile(RUNS / dataset / "evaluation" / "report.html", temporary)
        console.print(f"{dataset}: report in {REPORT.parent / f'{dataset}.html'}", highlight=False)
    console.print(
        f"\n{seconds:.0f} s; figures in {REPORT}. Next:\n"
        '  .venv/bin/ospo rewrite --dataset esci "shoes for the rain"\n'
        "  make up      runs, registered models, flow runs and schedules in the browser",
        highlight=False,
    )


def main() -> None:
    """Entry point: a problem the user can mend is one line and exit code 2."""
    parser = argparse.ArgumentParser(description="Run the main job and print what it measured.")
    parser.add_argument("--dataset", action="append", choices=DATASETS, help="default: both")
    arguments = parser.parse_args()
    try:
        run(arguments.dataset or list(DATASETS))
    except OspoError as error:
        print(f"ospo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("ospo: interrupted; `make demo` goes on where it was", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
