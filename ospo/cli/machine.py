"""``ospo doctor`` and ``ospo sync``: this installation and its servers."""

import typer

from ospo.cli.options import PARAMS, ParamsOption, SetOption
from ospo.config import load_config
from ospo.paths import RUNS

app = typer.Typer()


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
    from ospo import tracking

    typer.echo(f"{tracking.sync(load_config(params, overrides), RUNS)} run(s) completed in MLflow")
