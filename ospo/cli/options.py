"""Arguments, options and lines that commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ospo.config import Dataset
from ospo.distributed import is_main
from ospo.errors import InputError
from ospo.paths import PARAMS

if TYPE_CHECKING:
    from ospo.steps import StepResult

__all__ = [
    "PARAMS",
    "DatasetArgument",
    "DatasetOption",
    "ParamsOption",
    "SetOption",
    "need_dataset",
    "report_step",
]

DatasetArgument = Annotated[Dataset, typer.Argument(help="esci or hm")]
DatasetOption = Annotated[Dataset, typer.Option("--dataset", help="esci or hm")]
ParamsOption = Annotated[Path, typer.Option("--params", help="the parameter file")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="override a parameter; repeatable")
]


def need_dataset(dataset: Dataset | None, other: str) -> Dataset:
    """``dataset``. InputError where it is missing; ``other``: the option that would do instead."""
    if dataset is None:
        raise InputError("ospo", "--dataset", "is missing", f"name esci or hm, or give {other}")
    return dataset


def report_step(result: "StepResult") -> None:
    """One line about a step that ran or was skipped."""
    if not is_main():
        return
    outcome = (
        "unchanged since the last run" if result.skipped else f"finished in {result.seconds:.0f} s"
    )
    typer.echo(
        f"{result.name} on {result.dataset}: {outcome}; files in {result.directory}, MLflow run "
        f"{result.run_id}"
    )
