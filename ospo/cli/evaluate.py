"""``ospo evaluate``, ``real``, ``report``, ``compare``, ``explain``: what policies are worth."""

from pathlib import Path
from typing import Annotated

import typer

from ospo.cli.options import (
    PARAMS,
    DatasetOption,
    OptionalDataset,
    ParamsOption,
    SetOption,
    load_for,
    need_dataset,
    prepared_folder,
    report_step,
)
from ospo.errors import InputError
from ospo.paths import REPORTS, RUNS

app = typer.Typer()


@app.command()
def evaluate(
    dataset: OptionalDataset = None,
    policy: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=PATH",
            help="instead of the trained ones; a NAME given again is its next seed",
        ),
    ] = [],
    data: Annotated[
        Path | None, typer.Option(help="with --policy: prepared data; default: the dataset's")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="with --policy: folder to write; default: reports/evaluation"),
    ] = None,
    trec: Annotated[
        Path | None,
        typer.Option(help="also write qrels and run files in TREC format into this folder"),
    ] = None,
    force: Annotated[bool, typer.Option(help="with --trec: replace the folder")] = False,
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Score policies under the training retriever and those never seen in training: the trained
    ones, or any.
    """
    from rich.console import Console

    from ospo import api
    from ospo.evaluation.policies import parse_policies
    from ospo.reports.demo_table import demo_table

    if policy and data is None:
        need_dataset(dataset, "--data")
    if policy and data is not None:
        prepared_folder(dataset or data.name, data)
    if not policy:
        if data or out:
            fix = "name the policies to evaluate there"
            raise InputError("--data, --out", "", "need --policy", fix)
        need_dataset(dataset, "--policy")
    policies = parse_policies(policy) or None
    done = api.evaluate(
        dataset, policies, data=data, out=out, trec=trec, force=force, params=params,
        overrides=overrides,
    )  # fmt: skip
    training = load_for(dataset, params, overrides).retrievers.training
    name = data.name if policy and data is not None else str(dataset)
    Console().print(demo_table({name: done.summary}, training))
    if trec is not None:
        typer.echo(f"qrels and runs in {trec}")
    if done.step is not None:
        report_step(done.step)
        return
    typer.echo(
        f"tables in {done.directory}; ospo report --evaluation {done.directory} makes the page"
    )


@app.command()
def real(
    dataset: DatasetOption,
    raw: Annotated[Path, typer.Option(help="folder of raw files in the dataset's official format")],
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Evaluate the trained policies on raw files they never saw, and write
    reports/DATASET-real.html.
    """
    from ospo import steps
    from ospo.reports.evaluation import publish_report
    from ospo.steps.real import run_transfer

    config = load_for(dataset, params, overrides)
    with steps.dataset_lock(dataset):
        result = run_transfer(config, dataset, raw)
    report_step(result)
    typer.echo(f"wrote {publish_report(result.directory, f'{dataset}-real')}")


@app.command()
def report(
    dataset: OptionalDataset = None,
    evaluation: Annotated[
        list[Path],
        typer.Option(
            help="folders of `ospo evaluate` (several: one per seed); default: the dataset's"
        ),
    ] = [],
    out: Annotated[Path | None, typer.Option(help="default: reports/DATASET.html")] = None,
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Write an evaluation's report as one self-contained HTML page."""
    from ospo.files import read_json
    from ospo.reports.evaluation import write_report

    config = load_for(dataset, params, overrides)
    directories = evaluation or [RUNS / need_dataset(dataset, "--evaluation") / "evaluation"]
    page = out or REPORTS / f"{directories[0].name if evaluation else dataset}.html"
    state = directories[0] / "step.json"
    facts = {"MLflow run": read_json(state).get("run_id", "")} if state.is_file() else {}
    write_report(
        directories, page, resamples=config.evaluation.resamples, seed=config.seed, facts=facts
    )
    typer.echo(f"wrote {page}")


@app.command()
def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="raw, a registered version, an MLflow run, a policy's folder or answers"
        ),
    ],
    b: Annotated[str, typer.Argument(help="likewise")],
    dataset: DatasetOption,
    data: Annotated[
        Path | None, typer.Option(help="prepared data; default: data/prepared/DATASET")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to write; default: reports/compare-DATASET")
    ] = None,
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Compare two policies on the same held-out requests under every retriever, with paired
    tests.
    """
    from rich.console import Console

    from ospo.data.dataset import load_prepared
    from ospo.reports.compare import compare as compare_policies
    from ospo.reports.compare import comparison_table, resolve

    config = load_for(dataset, params, overrides)
    first, second = resolve(a, config), resolve(b, config)
    folder = out or REPORTS / f"compare-{dataset}"
    analysis = compare_policies(
        config, load_prepared(prepared_folder(dataset, data)), first, second, folder
    )
    Console().print(comparison_table(analysis, first, second, dataset))
    typer.echo(f"tables in {folder}")


@app.command()
def explain(
    dataset: DatasetOption,
    request: Annotated[str, typer.Option(help="a request's id, or its query")],
    text: Annotated[
        str | None, typer.Option(help="search text; default: the champion's, or else the query")
    ] = None,
    retriever: Annotated[str | None, typer.Option(help="default: the training retriever")] = None,
    html: Annotated[Path | None, typer.Option(help="also write a self-contained page")] = None,
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Show what each phrase of a search text contributed, and the ranking with and without it."""
    from rich.console import Console

    from ospo import api
    from ospo.reports import explain_page

    found = api.explain(
        dataset, request, text, retriever=retriever, params=params, overrides=overrides
    )
    Console().print(explain_page.render(found))
    if html:
        explain_page.write_html(found, html)
        typer.echo(f"wrote {html}")
