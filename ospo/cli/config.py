"""``ospo config …``: look at parameters, and edit them."""

from typing import Annotated

import typer

from ospo.cli.options import PARAMS, ParamsOption, SetOption
from ospo.config import edit_params, load_config

app = typer.Typer(help="Show or edit params.yaml.", no_args_is_help=True)


@app.command("show")
def show(params: ParamsOption = PARAMS, overrides: SetOption = []) -> None:
    """Print the resolved parameters as JSON."""
    typer.echo(load_config(params, overrides).model_dump_json(indent=2))


@app.command("set")
def set_values(
    assignments: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="such as reward.k=20")
    ],
    params: ParamsOption = PARAMS,
) -> None:
    """Write KEY=VALUE pairs into params.yaml, keeping its comments; an invalid value changes
    nothing.
    """
    edit_params(assignments, params)
    typer.echo(f"{params}: set {', '.join(assignments)}")
