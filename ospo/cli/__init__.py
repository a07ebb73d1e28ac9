"""The ``ospo`` command. Each command is a thin call into the library; heavy imports wait until one
runs.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

# Weights come from packages or from where the user says; nothing is fetched from a hub behind the
# user's back.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

if TYPE_CHECKING:
    from ospo import steps

from ospo.cli.data import app as data_app
from ospo.cli.options import PARAMS, DatasetArgument, DatasetOption, ParamsOption, SetOption
from ospo.cli.registry import app as registry_app
from ospo.config import Algorithm, Dataset, edit_params, load_config
from ospo.distributed import is_main
from ospo.errors import InputError, OspoError

app = typer.Typer(
    help="Train an LLM to write better searches, with credit for every phrase "
    "(OSPO, arXiv 2601.08403).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Show or edit params.yaml.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(registry_app)  # without a name: its commands stand beside the others

_INTERRUPTED = 130


@config_app.command("show")
def config_show(params: ParamsOption = PARAMS, overrides: SetOption = []) -> None:
    """Print the resolved parameters as JSON."""
    typer.echo(load_config(params, overrides).model_dump_json(indent=2))


@config_app.command("set")
def config_set(assignments: list[str], params: ParamsOption = PARAMS) -> None:
    """Write KEY=VALUE pairs into params.yaml, keeping its comments; an invalid value changes
    nothing.
    """
    edit_params(assignments, params)
    typer.echo(f"{params}: set {', '.join(assignments)}")


@app.command()
def sample(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="folder to write")],
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Write the built-in sample shop in a dataset's official raw format."""
    from ospo.data.catalogue import generate_sample

    config = load_config(params, overrides)
    generate_sample(dataset, out, config.sample, config.seed)
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
    """Turn raw ESCI or H&M files into catalogue, requests, pools and qrels."""
    from ospo.data.prepare import prepare as prepare_data

    config = load_config(params, overrides)
    section = config.data.esci if dataset == "esci" else config.data.hm
    stats = prepare_data(dataset, raw or Path(section.raw), out, config)
    kept = ", ".join(
        f"{value:,} {name}" for name, value in stats["kept"].items() if isinstance(value, int)
    )
    typer.echo(f"{out}: {kept}; what was dropped and why: {out / 'stats.json'}")


@app.command()
def vectors(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="folder to write, one file a retriever")],
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
    """Encode items with every configured retriever that works on vectors; stopped, it goes on where
    it was.
    """
    from ospo.retrieval import write_vectors

    config = load_config(params, overrides)
    out.mkdir(parents=True, exist_ok=True)  # there may be no retriever that keeps vectors
    written = write_vectors(config, prepared or Path("data/prepared") / dataset, out, full)
    typer.echo(
        "\n".join(f"wrote {path}" for path in written) or "no configured retriever keeps vectors"
    )


@app.command()
def sft(dataset: DatasetOption, params: ParamsOption = PARAMS, overrides: SetOption = []) -> None:
    """Train the SFT policy that every algorithm starts from."""
    from ospo import steps

    config = load_config(params, overrides)
    with steps.dataset_lock(dataset):
        _tell(steps.run_sft(config, dataset))


@app.command()
def train(
    dataset: DatasetOption,
    algorithm: Annotated[
        Algorithm, typer.Option(help="what learns from the reward; README lists them")
    ] = "ospo",
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Train with one algorithm from the SFT policy. Several GPUs: `accelerate launch … -m ospo.cli
    train …`.
    """
    from ospo import steps

    config = load_config(params, overrides)
    with steps.dataset_lock(dataset):
        _tell(steps.run_rl(config, dataset, algorithm))


@app.command()
def evaluate(
    dataset: Annotated[Dataset | None, typer.Option("--dataset", help="esci or hm")] = None,
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

    config = load_config(params, overrides)
    console = Console()
    if policy:
        from ospo.data.dataset import load_prepared
        from ospo.evaluation.evaluate import evaluate as evaluate_policies
        from ospo.evaluation.policies import parse_policies

        folder = out or Path("reports/evaluation")
        prepared = load_prepared(data or steps.PREPARED / _named(dataset, "--data"))
        summary = evaluate_policies(config, prepared, parse_policies(policy), folder)
        console.print(demo_table({prepared.name: summary}, config.retrievers.training))
        typer.echo(f"tables in {folder}; ospo report --evaluation {folder} makes the page")
        return
    if data or out:
        raise InputError(
            "ospo evaluate", "--data, --out", "need --policy", "name the policies to evaluate there"
        )
    dataset = _named(dataset, "--policy")
    with steps.dataset_lock(dataset):
        result = steps.run_evaluation(config, dataset)
    console.print(
        demo_table(
            {dataset: read_json(result.directory / "summary.json")}, config.retrievers.training
        )
    )
    _tell(result)


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

    with steps.dataset_lock(dataset):
        result = run_transfer(load_config(params, overrides), dataset, raw)
    _tell(result)
    typer.echo(f"wrote {publish_report(result.directory, f'{dataset}-real')}")


@app.command()
def report(
    dataset: Annotated[Dataset | None, typer.Option("--dataset", help="esci or hm")] = None,
    evaluation: Annotated[
        list[Path],
        typer.Option(
            help="folders that `ospo evaluate` wrote (several: one a seed); default: the dataset's"
        ),
    ] = [],
    out: Annotated[Path | None, typer.Option(help="default: reports/DATASET.html")] = None,
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Write an evaluation's report as one self-contained HTML page."""
    from ospo import steps
    from ospo.files import read_json
    from ospo.reports.evaluation import write_report

    config = load_config(params, overrides)
    directories = evaluation or [steps.RUNS / _named(dataset, "--evaluation") / "evaluation"]
    page = out or Path("reports") / f"{directories[0].name if evaluation else dataset}.html"
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

    from ospo import steps
    from ospo.data.dataset import load_prepared
    from ospo.reports.compare import compare as compare_policies
    from ospo.reports.compare import comparison_table, resolve

    config = load_config(params, overrides)
    first, second = resolve(a, config), resolve(b, config)
    folder = out or Path("reports") / f"compare-{dataset}"
    analysis = compare_policies(
        config, load_prepared(data or steps.PREPARED / dataset), first, second, folder
    )
    Console().print(comparison_table(analysis, first, second, dataset))
    typer.echo(f"tables in {folder}")


@app.command()
def doctor(params: ParamsOption = PARAMS) -> None:
    """Look at versions, disk, ports, data and servers, and say what to do; exit code 1 where
    something is broken.
    """
    from ospo.doctor import examine
    from ospo.doctor import report as doctor_report

    findings = examine(params)
    typer.echo(doctor_report(findings))
    raise typer.Exit(int(any(finding.level == "fail" for finding in findings)))


@app.command()
def sync(params: ParamsOption = PARAMS, overrides: SetOption = []) -> None:
    """Send to MLflow what was recorded while it was away, and close the runs that died."""
    from ospo import steps, tracking

    typer.echo(
        f"{tracking.sync(load_config(params, overrides), steps.RUNS)} run(s) completed in MLflow"
    )


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

    from ospo import registry, steps
    from ospo.data.dataset import load_prepared
    from ospo.reports import explain as explanation
    from ospo.reports import explain_page
    from ospo.retrieval import build_retriever

    config = load_config(params, overrides)
    data = load_prepared(steps.PREPARED / dataset)
    asked = data.requests[explanation.find_request(data, request)]
    if text is None:
        try:
            history = [{"name": p.name, "type": p.type, "colour": p.colour} for p in asked.history]
            [text] = registry.rewrite(config, dataset, [{"query": asked.query, "history": history}])
        except registry.RegistryError as error:
            typer.echo(f"explaining the query itself ({error})", err=True)
    built = build_retriever(retriever or config.retrievers.training, config, data)
    found = explanation.explain(config, data, built, request, text)
    Console().print(explain_page.render(found))
    if html:
        explain_page.write_html(found, html)
        typer.echo(f"wrote {html}")


def _named(dataset: Dataset | None, other: str) -> Dataset:
    if dataset is None:
        raise InputError("ospo", "--dataset", "is missing", f"name esci or hm, or give {other}")
    return dataset


def _tell(result: "steps.StepResult") -> None:
    if not is_main():
        return
    what = (
        "unchanged since the last run" if result.skipped else f"finished in {result.seconds:.0f} s"
    )
    typer.echo(
        f"{result.name} on {result.dataset}: {what}; files in {result.directory}, MLflow run "
        f"{result.run_id}"
    )


def main() -> None:
    """Run the command line: a problem the user can mend is one line on stderr and exit code 2."""
    try:
        app()
    except OspoError as error:
        typer.echo(f"ospo: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as error:
        if error.code == _INTERRUPTED:  # what typer makes of Ctrl-C, without a word
            typer.echo("ospo: interrupted; run the same command again to go on", err=True)
        raise


if __name__ == "__main__":
    main()
