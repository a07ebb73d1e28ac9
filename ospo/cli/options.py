"""Arguments, options and lines that commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ospo.config import NAME, Config, Dataset, load_config
from ospo.distributed import is_main
from ospo.errors import InputError
from ospo.paths import PARAMS, PREPARED

if TYPE_CHECKING:
    from ospo.steps import StepResult

__all__ = [
    "PARAMS",
    "DatasetArgument",
    "DatasetOption",
    "OptionalDataset",
    "ParamsOption",
    "SetOption",
    "load_for",
    "need_dataset",
    "prepared_folder",
    "report_step",
]


def _name(value: str | None) -> str | None:
    """A name that may become a folder; ``usage_line`` takes the fix from typer's error."""
    if value is not None and not NAME.fullmatch(value):
        problem, fix = f"{value[:60]!r} cannot name a data set", "use a-z, 0-9, - and _, at most 40"
        raise typer.BadParameter(f"{problem}. Fix: {fix}")
    return value


DatasetArgument = Annotated[
    Dataset, typer.Argument(help="a data set of params.yaml", callback=_name)
]
DatasetOption = Annotated[
    Dataset, typer.Option("--dataset", help="a data set of params.yaml", callback=_name)
]
OptionalDataset = Annotated[
    Dataset | None, typer.Option("--dataset", help="a data set of params.yaml", callback=_name)
]
ParamsOption = Annotated[Path, typer.Option("--params", help="the parameter file")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="override a parameter; repeatable")
]


def load_for(dataset: Dataset | None, params: Path, overrides: list[str]) -> Config:
    """The parameters, with the data set's own. ConfigError where they are wrong or know no such
    data set.
    """
    config = load_config(params, overrides, dataset)
    if dataset is not None:
        config.dataset(dataset)
    return config


def load_shared(dataset: Dataset, params: Path, overrides: list[str]) -> Config:
    """The parameters as DVC's stages read them, the same for all data sets. ConfigError as in
    ``load_for``.
    """
    config = load_config(params, overrides)
    config.dataset(dataset)
    return config


def need_dataset(dataset: Dataset | None, other: str) -> Dataset:
    """``dataset``. InputError where it is missing; ``other``: the option that would do instead."""
    if dataset is None:
        raise InputError(
            "--dataset", "", "is missing", f"name one of params.yaml's, or give {other}"
        )
    return dataset


def prepared_folder(dataset: Dataset, folder: Path | None, stage: str = "vectors") -> Path:
    """The folder of a data set's prepared data: ``folder`` where the user names one, else
    data/prepared/DATASET, which ``stage`` of dvc.yaml brings. InputError where a table is missing.
    """
    from ospo.data.schemas import PREPARED as TABLES

    own = PREPARED / dataset
    place = own if folder is None else folder
    fix = f"run `dvc repro {stage}@{dataset}`"
    if folder is not None and folder != own:
        fix = "name a folder that `ospo prepare` wrote"
    if not place.is_dir():
        problem = "is a file, not a folder" if place.exists() else "folder not found"
        raise InputError(place, "", problem, fix)
    for table in TABLES:
        if not (place / f"{table}.parquet").is_file():
            raise InputError(place / f"{table}.parquet", "", "file not found", fix)
    return place


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
