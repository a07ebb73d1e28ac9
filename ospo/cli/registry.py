"""``ospo register``, ``models``, ``promote``, ``rollback``, ``rewrite`` and ``export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ospo.cli.options import PARAMS, DatasetOption, ParamsOption, SetOption, load_for
from ospo.config import load_config

if TYPE_CHECKING:
    from ospo.serving.answering import Answering

app = typer.Typer()
Dtype = Literal["float32", "bfloat16"]


@app.command()
def register(
    dataset: DatasetOption, params: ParamsOption = PARAMS, overrides: SetOption = []
) -> None:
    """Register the better trained policy of a dataset, chosen on validation requests."""
    from ospo import steps

    config = load_for(dataset, params, overrides)
    with steps.dataset_lock(dataset):
        version = steps.run_registration(config, dataset)
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
        list[str],
        typer.Argument(
            help='queries, or JSON objects with "query" and "history"; -: standard input'
        ),
    ] = [],
    version: Annotated[int | None, typer.Option(help="default: the champion")] = None,
    source: Annotated[
        str, typer.Option("--input", help="a txt, csv, jsonl or parquet file of requests; -: stdin")
    ] = "",
    out: Annotated[
        str, typer.Option(help="with --input: the file to write; default: standard output")
    ] = "-",
    column: Annotated[str, typer.Option(help="of the query, in --input")] = "query",
    history_column: Annotated[
        str, typer.Option(help="of earlier purchases, in --input: a list, or JSON text")
    ] = "history",
    id_column: Annotated[str, typer.Option(help="of --input, carried along as `id`")] = "",
    read_as: Annotated[
        str, typer.Option("--format", help="of --input; default: its suffix's")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="replace --out and its parts")] = False,
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Rewrite shopping requests with the registered champion, or with the best rule where no
    policy is better; one search text per line, or a file of any size.
    """
    from ospo.errors import InputError
    from ospo.serving.requests import MAX_INPUTS

    if queries == ["-"]:
        queries, source = [], source or "-"
    if bool(queries) == bool(source):
        raise InputError("--input", "", "takes the place of queries", "give one of the two")
    from ospo import registry

    config = load_for(dataset, params, overrides)
    used, rewriter = registry.open_rewriter(config, dataset, version)
    if note := registry.answer_note(used, dataset):
        typer.echo(note, err=True)
    if source:
        _rewrite_file(
            f"{used.name} {used.version} {used.tags.get('policy_sha256', '')}",
            rewriter, source, out, read_as, (column, history_column, id_column), force,
        )  # fmt: skip
    for start in range(0, len(queries), MAX_INPUTS):
        for text in rewriter.rewrite(list(queries[start : start + MAX_INPUTS])):
            typer.echo(text)


def _rewrite_file(
    policy: str,
    rewriter: "Answering",
    source: str,
    out: str,
    read_as: str,
    columns: tuple[str, str, str],
    force: bool,
) -> None:
    import sys

    from ospo.serving.bulk import Job, rewrite_file
    from ospo.serving.bulk_files import STANDARD, Columns, format_of

    reads = format_of(source, read_as)
    writes = format_of(out, "" if out != STANDARD else {"parquet": "csv"}.get(reads, reads))
    job = Job(source, out, reads, writes, Columns(*columns), policy, force)
    done = rewrite_file(job, rewriter, sys.stdin, sys.stdout)
    if out != STANDARD:
        typer.echo(
            f"{out}: {done.rows:,} requests, {done.changed:,} changed, {done.answered:,} distinct "
            f"ones answered in {done.seconds:.0f} s"
            + (f", {done.resumed} parts taken over" if done.resumed else "")
        )


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
    from ospo import api
    from ospo.registry import hub

    token = hub.hub_token(push) if push else ""
    done = api.export(
        name, to, adapter=adapter, dtype=dtype or "", force=force, params=params,
        overrides=overrides,
    )  # fmt: skip
    merged = f", merged (log-probabilities move by {done.drift:.4f})" if done.drift else ""
    typer.echo(f"{done.version.name} version {done.version.version}{merged}: {done.folder}")
    if push:
        typer.echo(f"pushed to {hub.push(done.folder, push, token)}")
