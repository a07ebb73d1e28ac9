"""``ospo register``, ``models``, ``promote``, ``rollback`` and ``rewrite``: registered policies."""

from typing import Annotated

import typer

from ospo.cli.options import PARAMS, DatasetOption, ParamsOption, SetOption, load_for
from ospo.config import load_config

app = typer.Typer()


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
    if note := registry.rule_note(used, dataset):
        typer.echo(note, err=True)
    for text in rewriter.rewrite(list(queries)):
        typer.echo(text)
