"""``ospo data …``: look at data, and fetch the official files."""

from pathlib import Path
from typing import Annotated

import typer

from ospo.cli.options import PARAMS, DatasetArgument, ParamsOption, load_for, prepared_folder
from ospo.config import FORMATS, add_dataset, load_config, parse_override, with_dataset
from ospo.paths import PREPARED, REPORTS

app = typer.Typer(help="Check, describe and fetch data.", no_args_is_help=True)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="a folder of raw files, prepared data or vectors")],
    params: ParamsOption = PARAMS,
) -> None:
    """Say what a folder holds, what preparing it would keep and drop, and what is wrong; exit code
    1 for problems.
    """
    from ospo.reports.data_check import check_folder

    found = check_folder(folder, load_config(params))
    typer.echo(f"{folder}: {found.kind}")
    for line in found.lines:
        typer.echo(f"  {line}")
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for problem in found.problems:
        typer.echo(f"problem: {problem}", err=True)
    raise typer.Exit(int(bool(found.problems)))


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="a name of your own: a-z, 0-9, - and _")],
    kind: Annotated[str, typer.Option("--format", help=f"one of {', '.join(FORMATS)}")],
    raw: Annotated[Path, typer.Option(help="folder of the raw files")],
    assignments: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="another key of its section; repeatable"),
    ] = [],
    params: ParamsOption = PARAMS,
) -> None:
    """Write a data set into params.yaml, keeping its comments, and its stages into dvc.yaml and
    prefect.yaml.
    """
    from ospo.data.formats import require_files
    from ospo.data.stages import write_stages

    values = {"format": kind, "raw": str(raw)}
    values |= dict(parse_override(text, params) for text in assignments)
    require_files(name, with_dataset(name, values, params).dataset(name))
    config = add_dataset(name, values, params)
    written = [params, *write_stages(config, params.parent)]
    typer.echo(f"{name}: written into {', '.join(map(str, written))}")
    typer.echo(f"Next: dvc repro vectors@{name}, then ospo sft --dataset {name}")


@app.command()
def stages(params: ParamsOption = PARAMS) -> None:
    """Write the data sets of params.yaml into dvc.yaml and prefect.yaml, after editing by hand."""
    from ospo.data.stages import write_stages

    written = write_stages(load_config(params), params.parent)
    names = " and ".join(map(str, written))
    typer.echo(f"wrote {names}" if written else "dvc.yaml and prefect.yaml list these data sets")


@app.command()
def describe(
    dataset: DatasetArgument,
    data: Annotated[
        Path | None, typer.Option(help="prepared data; default: data/prepared/DATASET")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="default: reports/data-DATASET.html")] = None,
    plots: Annotated[
        Path | None, typer.Option(help="also write each chart as a CSV file here, for dvc plots")
    ] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Print a short profile of prepared data and write it as a page with charts."""
    from ospo.data.dataset import load_prepared
    from ospo.reports.data_profile import describe as describe_data
    from ospo.reports.data_profile import write_page, write_plots

    if data is None and not (PREPARED / dataset).is_dir():  # the name itself may be wrong
        load_for(dataset, params, [])
    profile = describe_data(load_prepared(prepared_folder(dataset, data)))
    page = html or REPORTS / f"data-{dataset}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_page(profile, page)
    if plots:
        write_plots(profile, plots)
    typer.echo("\n".join(f"{name}: {value}" for name, value in profile.figures.items()))
    typer.echo(f"wrote {page}")


@app.command()
def fetch(
    dataset: Annotated[str, typer.Argument(help="esci or hm, whose official files are fetched")],
    out: Annotated[Path, typer.Option(help="folder for the raw files")],
    mirror: Annotated[
        str | None, typer.Option(help="another base address with the same file names")
    ] = None,
) -> None:
    """Download the official raw files, resuming where a download stopped. H&M wants KAGGLE_USERNAME
    and KAGGLE_KEY.
    """
    from tqdm import tqdm

    from ospo.data.fetch import fetch as fetch_data

    bars: dict[str, tqdm] = {}

    def progress(file: str, done: int, total: int | None) -> None:
        bar = bars.setdefault(file, tqdm(total=total, desc=file, unit="B", unit_scale=True))
        bar.update(done - bar.n)

    try:
        paths = fetch_data(dataset, out, mirror=mirror, progress=progress)
    finally:
        for bar in bars.values():
            bar.close()
    for path in paths:
        typer.echo(f"have {path}")
    typer.echo(f"Next: ospo config set data.{dataset}.raw={out}")
