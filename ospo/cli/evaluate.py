"""``ospo evaluate``, ``real``, ``report``, ``compare``, ``explain``: what policies are worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ospo.cli.options import (
    PARAMS,
    DatasetOption,
    OptionalDataset,
    ParamsOption,
    SetOption,
    load_for,
    need_dataset,
    report_step,
)
from ospo.config import Config
from ospo.errors import InputError
from ospo.paths import EVALUATION_REPORT, PREPARED, REPORTS, RUNS

if TYPE_CHECKING:
    from ospo.data.dataset import PreparedData

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

    from ospo import steps
    from ospo.files import read_json
    from ospo.reports.demo_table import demo_table

    config = load_for(dataset, params, overrides)
    console = Console()
    if trec is not None and trec.exists() and not force:  # said before minutes of work
        raise InputError(trec, "", "exists", "name another folder, or add --force")
    if policy:
        from ospo.data.dataset import load_prepared
        from ospo.evaluation.evaluate import evaluate as evaluate_policies
        from ospo.evaluation.policies import parse_policies

        folder = out or EVALUATION_REPORT
        prepared = load_prepared(data or PREPARED / need_dataset(dataset, "--data"))
        summary = evaluate_policies(config, prepared, parse_policies(policy), folder)
        console.print(demo_table({prepared.name: summary}, config.retrievers.training))
        typer.echo(f"tables in {folder}; ospo report --evaluation {folder} makes the page")
        _trec(config, prepared, folder, trec, force)
        return
    if data or out:
        raise InputError(
            "ospo evaluate", "--data, --out", "need --policy", "name the policies to evaluate there"
        )
    dataset = need_dataset(dataset, "--policy")
    with steps.dataset_lock(dataset):
        result = steps.run_evaluation(config, dataset)
    console.print(
        demo_table(
            {dataset: read_json(result.directory / "summary.json")}, config.retrievers.training
        )
    )
    report_step(result)
    if trec is not None:
        from ospo.data.dataset import load_prepared

        _trec(config, load_prepared(PREPARED / dataset), result.directory, trec, force)


def _trec(
    config: Config, data: "PreparedData", evaluation: Path, out: Path | None, force: bool
) -> None:
    if out is None:
        return
    from ospo.evaluation.trec import write_trec

    runs = write_trec(config, data, evaluation, out, force=force)
    typer.echo(f"qrels and {len(runs)} runs in {out}")


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
        config, load_prepared(data or PREPARED / dataset), first, second, folder
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

    from ospo import registry
    from ospo.data.dataset import load_prepared
    from ospo.policy.text import SEARCH_TEXTS
    from ospo.reports import explain as explanation
    from ospo.reports import explain_page
    from ospo.retrieval import build_retriever

    config = load_for(dataset, params, overrides)
    data = load_prepared(PREPARED / dataset)
    asked = data.requests[explanation.find_request(data, request)]
    rule = SEARCH_TEXTS[config.answer]
    if text is None:
        try:
            history = [{"name": p.name, "type": p.type, "colour": p.colour} for p in asked.history]
            champion = registry.champion_rewriter(config, dataset)
            rule = champion.answer
            [text] = champion.rewrite([{"query": asked.query, "history": history}])
        except registry.RegistryError as error:
            typer.echo(f"explaining the query itself ({error})", err=True)
    built = build_retriever(retriever or config.retrievers.training, config, data)
    found = explanation.explain(config, data, built, request, text, rule)
    Console().print(explain_page.render(found))
    if html:
        explain_page.write_html(found, html)
        typer.echo(f"wrote {html}")
