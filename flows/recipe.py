"""``make real``: the recipe for real rows. A pretrained LLM learns to add to shoppers' requests; at
the end stand raw query, rules, SFT and every algorithm on held-out requests, over seeds.

python -m flows.recipe --format hm|esci --raw DIR [--name NAME] [--seeds 0,1,2] [--set KEY=VALUE]
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ospo.config import Config, add_dataset, load_config, set_overrides, with_dataset
from ospo.data.dataset import load_prepared
from ospo.data.formats import require_files
from ospo.data.stages import write_stages
from ospo.endings import TERMINATED, Arguments, ending, exit_on_sigterm
from ospo.errors import InputError, OspoError
from ospo.files import read_json, storage_problem
from ospo.paths import PARAMS, PREPARED, REPORTS, RUNS


@dataclass(frozen=True)
class Recipe:
    """What a format's real rows are trained with: keys of the data set's section, and values that
    replace those of params.yaml.
    """

    data: Mapping[str, Any]
    overrides: tuple[str, ...]


# Every held-out request, and unseen retrievers of every kind: lexical, linear, dense and both.
_JUDGED = ("evaluation.max_requests=0", "retrievers.unseen=[bm25, static, lsa, hybrid]")
RECIPES = {
    # docs/experiments/2026-11-26-real-rows-recipe.md says what each of these is worth.
    "hm": Recipe(
        {"history": 20, "requests_per_customer": 12, "holdout_days": 180},
        (
            "policy=smollm2-history",
            "training.only_with_history=true",
            "algorithms=[rft, grpo, ospo]",
            *_JUDGED,
        ),
    ),
    "esci": Recipe({}, ("policy=smollm2-135m", "algorithms=[rft, grpo, ospo]", *_JUDGED)),
}


def with_data(recipe: Recipe, kind: str, raw: Path, name: str, overrides: list[str]) -> Config:
    """params.yaml with the data set ``name`` and its own parameters ``overrides``, which are
    written there, and into dvc.yaml and prefect.yaml, where it is missing.

    Raises InputError where the folder lacks a file, or ``name`` is there with another folder.
    """
    config = load_config()
    if name in config.datasets:
        section = config.dataset(name)
        if Path(section.raw) != raw or section.format != kind:
            raise InputError(
                PARAMS,
                f"data.{name}",
                f"reads {section.format} files in {section.raw}, not {kind} files in {raw}",
                "choose another --name",
            )
        require_files(name, section)
        return set_overrides(name, overrides)
    values = {"format": kind, "raw": str(raw), **recipe.data}
    require_files(name, with_dataset(name, values).dataset(name))  # before anything is written
    config = add_dataset(name, values, overrides=overrides)
    write_stages(config, PARAMS.parent)
    return config


def train_seed(name: str, overrides: list[str], seed: int) -> dict[str, Path]:
    """SFT and every algorithm under ``seed``: algorithm → the policy kept for it. What is kept
    already is not trained again.
    """
    from flows.common import WAIT_SECONDS
    from flows.train import sft, train_policy
    from ospo import steps
    from ospo.steps.seeds import keep_policy, kept_policy

    config = load_config(overrides=[*overrides, f"seed={seed}"])
    same: dict[str, Any] = {"seed": seed, "overrides": overrides}
    kept: dict[str, Path] = {}
    fingerprint = ""
    for algorithm in config.policies:
        step = (
            steps.sft_step(config, name)
            if algorithm == "sft"
            else steps.algorithm_step(config, name, algorithm, fingerprint)
        )
        fingerprint = fingerprint or step.fingerprint
        found = kept_policy(step, name, seed)
        if found is None:
            if algorithm == "sft":
                sft(name, **same)
            else:
                train_policy(name, algorithm, **same)
            with steps.dataset_lock(name, patience=WAIT_SECONDS):
                keep_policy(name, algorithm, seed)
            found = kept_policy(step, name, seed)
            if found is None:
                problem = "another run has replaced what was trained"
                raise OspoError(f"{RUNS / name / algorithm}: {problem}. Fix: run again, alone")
        kept[algorithm] = found
    return kept


def run(kind: str, raw: Path, name: str, seeds: Sequence[int], changes: Sequence[str]) -> None:
    """Train and evaluate by the recipe; print the table and where its page is."""
    recipe = RECIPES[kind]
    overrides = [*recipe.overrides, *changes]  # nightly runs and every command go on with these
    shared = with_data(recipe, kind, raw, name, overrides)
    if seeds[0] != shared.seed:
        print(
            f"ospo: nightly runs and later commands train {name} with seed {shared.seed} of "
            f"params.yaml, not {seeds[0]}: `ospo config set seed={seeds[0]}` changes that, for all "
            "data sets",
            file=sys.stderr,
        )
    config = load_config(overrides=[*overrides, f"seed={seeds[0]}"])
    from prefect.exceptions import TerminationSignal

    from flows.common import WAIT_SECONDS, data_ready
    from flows.pipeline import pipeline_dataset
    from ospo import steps
    from ospo.evaluation.evaluate import evaluate
    from ospo.reports.demo_table import comparison_tables, demo_table, policy_words
    from ospo.reports.evaluation import publish_report, write_report

    started = time.monotonic()
    try:
        policies: dict[str, list[Path]] = {}
        others = [seed for seed in seeds if seed != seeds[0]]
        if others:
            data_ready(name)  # fingerprints are of data that is up to date
        for seed in others:
            for algorithm, place in train_seed(name, overrides, seed).items():
                policies.setdefault(algorithm, []).append(place)
        # The first seed last: its policies stay in runs/NAME, and the best one is registered.
        registered = pipeline_dataset(name, seed=seeds[0], overrides=overrides)["registered"]
        folder = RUNS / name / "evaluation"
        if others:
            for algorithm, place in train_seed(name, overrides, seeds[0]).items():
                policies[algorithm].insert(0, place)
            folder = RUNS / name / "seeds/evaluation"
            with steps.dataset_lock(name, patience=WAIT_SECONDS):
                evaluate(config, load_prepared(PREPARED / name), policies, folder)
    except TerminationSignal as error:  # what Prefect makes of SIGTERM while a flow runs
        raise SystemExit(TERMINATED) from error
    page = publish_report(RUNS / name / "evaluation", name)
    if others:
        page = REPORTS / f"{name}-seeds.html"
    resamples = config.evaluation.resamples
    analysis = write_report(folder, page, resamples=resamples, seed=config.seed)
    console = Console()
    console.print()
    console.print(
        demo_table({name: read_json(folder / "summary.json")}, config.retrievers.training)
    )
    console.print(comparison_tables(analysis))
    aliases = ", ".join(f"@{alias}" for alias in registered["aliases"]) or "no alias"
    console.print(
        f"{registered['name']} version {registered['version']} is {policy_words(registered)}, "
        f"{aliases}: {registered['decision']}",
        markup=False,
    )
    console.print(
        f"{time.monotonic() - started:.0f} s; report in {page}; tables in {folder}. Next:\n"
        f"  .venv/bin/ospo rewrite --dataset {name} YOUR-QUERY\n"
        "  make up      runs, registered models, flow runs and schedules in the browser",
        highlight=False,
        markup=False,
    )


def _seeds(text: str) -> list[int]:
    """Seeds that are written with commas between them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 11 for part in parts):
        problem = f"{text[:60]!r} is no list of seeds"
        raise argparse.ArgumentTypeError(f"{problem}. Fix: write whole numbers, such as 0,1,2")
    return list(dict.fromkeys(map(int, parts)))


def main() -> None:
    """Entry point: a problem the user can mend is one line and exit code 2."""
    parser = Arguments(
        prog="python -m flows.recipe", description="Train and evaluate on real rows by the recipe."
    )
    parser.add_argument("--format", choices=sorted(RECIPES), required=True, help="of the raw files")
    parser.add_argument("--raw", type=Path, required=True, help="folder of the official files")
    parser.add_argument("--name", default="", help="of the data set; default: real-FORMAT")
    parser.add_argument("--seeds", type=_seeds, default=[0], help="such as 0,1,2; default: 0")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a parameter of the recipe; repeatable",
    )
    given = parser.parse_args()
    exit_on_sigterm()
    try:
        run(given.format, given.raw, given.name or f"real-{given.format}", given.seeds, given.set)
    except (SystemExit, KeyboardInterrupt) as error:
        ended = ending(error)
        if ended is None:
            raise
        print(f"ospo: {ended[1]}; the same command resumes where it stopped", file=sys.stderr)
        sys.exit(ended[0])
    except Exception as error:
        problem = error if isinstance(error, OspoError) else storage_problem(error)
        if problem is None:
            raise
        print(f"ospo: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)


if __name__ == "__main__":
    main()
