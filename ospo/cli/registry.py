"""``ospo register``, ``models``, ``promote``, ``rollback``, ``rewrite`` and ``export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ospo.cli.options import PARAMS, DatasetOption, ParamsOption, SetOption, load_for
from ospo.config import load_config

app = typer.Typer()
Dtype = Literal["float32", "bfloat16"]


@app.command()
def register(
    dataset: DatasetOption, params: ParamsOption = PARAMS, overrides: SetOption = []
) -> None:
    """Register the better trained policy of a dataset, chosen on validation requests."""
    from ospo import steps

    version = steps.run_registration(load_for(dataset, params, overrides), dataset)
    typer.echo(
        f"{version['name']} version {version['version']}: {version['policy']} "
        f"{' '.join(version['aliases'])}"
    )


@app.command()
def models(params: ParamsOption = PARAMS, overrides: SetOption = []) -> None:
    """List the registered policies."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ospo import registry

    table = Table(
        "model", "version", "aliases", "algorithm", "preset", "nDCG@10", title_justify="left"
    )
    for version in registry.models(load_config(params, overrides)):
        figures = {
            k.partition(".")[2]: v for k, v in version.tags.items() if k.startswith("ndcg_at_10.")
        }
        row = [
            version.name,
            str(version.version),
            " ".join(f"@{alias}" for alias in version.aliases),
        ]
        row += [version.tags.get("algorithm", ""), version.tags.get("preset", "")]
        table.add_row(
            *map(escape, row), escape(", ".join(f"{k} {float(v):.3f}" for k, v in figures.items()))
        )
    Console().print(table)


@app.command()
def promote(
    dataset: DatasetOption,
    version: Annotated[int | None, typer.Option(help="default: the challenger")] = None,
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Make a registered version the champion, which `ospo rewrite` and serving use."""
    from ospo import registry

    made = registry.promote(load_for(dataset, params, overrides), dataset, version)
    typer.echo(f"{made.name}: version {made.version} is the champion")


@app.command()
def rollback(
    dataset: DatasetOption, params: ParamsOption = PARAMS, overrides: SetOption = []
) -> None:
    """Give the champion's place back to the version that held it before."""
    from ospo import registry

    made = registry.rollback(load_for(dataset, params, overrides), dataset)
    typer.echo(f"{made.name}: version {made.version} is the champion again")


@app.command()
def rewrite(
    dataset: DatasetOption,
    queries: Annotated[
        list[str], typer.Argument(help='queries, or JSON objects with "query" and "history"')
    ],
    version: Annotated[int | None, typer.Option(help="default: the champion")] = None,
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Rewrite shopping requests with the registered champion, or with the best rule where no
    policy is better; one search text per line.
    """
    from ospo import registry

    config = load_for(dataset, params, overrides)
    used, rewriter = registry.open_rewriter(config, dataset, version)
    if note := registry.answer_note(used, dataset):
        typer.echo(note, err=True)
    for text in rewriter.rewrite(list(queries)):
        typer.echo(text)


@app.command()
def export(
    name: Annotated[
        str, typer.Argument(help="a data set or model, NAME@alias or NAME@version; the champion")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="the folder to write")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="the adapter alone, without its base")
    ] = False,
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", help="of the weights; default: as trained")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier export")] = False,
    push: Annotated[
        str, typer.Option("--push", metavar="ORG/NAME", help="also upload it, with HF_TOKEN")
    ] = "",
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Write a registered policy as a folder of plain weights, with model card and recipe."""
    from ospo.registry import hub
    from ospo.registry.export import export as write

    token = hub.hub_token(push) if push else ""
    done = write(
        load_config(params, overrides), name, to, adapter=adapter, dtype=dtype or "", force=force
    )
    merged = f", merged (log-probabilities move by {done.drift:.4f})" if done.drift else ""
    typer.echo(f"{done.version.name} version {done.version.version}{merged}: {done.folder}")
    if push:
        typer.echo(f"pushed to {hub.push(done.folder, push, token)}")
