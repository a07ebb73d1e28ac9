"""``ospo sample``, ``prepare`` and ``vectors``: the stages of dvc.yaml."""

from pathlib import Path
from typing import Annotated

import typer

from ospo.cli.options import (
    PARAMS,
    DatasetArgument,
    ParamsOption,
    SetOption,
    load_shared,
    prepared_folder,
)

app = typer.Typer()


@app.command()
def sample(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="folder to write")],
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Write the built-in sample shop in a data set's raw format, ESCI's or H&M's."""
    from ospo.data.catalogue import generate_sample

    config = load_shared(dataset, params, overrides)
    generate_sample(config.dataset(dataset).format, out, config.sample, config.seed)
    typer.echo(f"wrote {out}")


@app.command()
def prepare(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="folder to write")],
    raw: Annotated[
        Path | None, typer.Option(help="folder of the raw files; default: the one in params.yaml")
    ] = None,
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Turn the raw files of a data set into catalogue, requests, pools and qrels."""
    from ospo import api

    stats = api.prepare(dataset, out, raw=raw, params=params, overrides=overrides)
    kept = ", ".join(
        f"{value:,} {name}" for name, value in stats["kept"].items() if isinstance(value, int)
    )
    typer.echo(f"{out}: {kept}; what was dropped and why: {out / 'stats.json'}")


@app.command()
def vectors(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="folder to write, one file per retriever")],
    prepared: Annotated[
        Path | None, typer.Option(help="prepared data; default: data/prepared/DATASET")
    ] = None,
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--pools", help="all items, or those in pools; default: evaluation.catalogue"
        ),
    ] = None,
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Encode items with every configured retriever that works on vectors; an interrupted one
    resumes where it stopped.
    """
    from ospo.retrieval import write_vectors

    config = load_shared(dataset, params, overrides)
    source = prepared_folder(dataset, prepared, "prepare")
    out.mkdir(parents=True, exist_ok=True)  # there may be no retriever that keeps vectors
    written = write_vectors(config, source, out, full)
    typer.echo(
        "\n".join(f"wrote {path}" for path in written) or "no configured retriever keeps vectors"
    )
