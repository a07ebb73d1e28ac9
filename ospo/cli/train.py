"""``ospo sft`` and ``ospo train``: training steps."""

from typing import Annotated

import typer

from ospo.cli.options import PARAMS, DatasetOption, ParamsOption, SetOption, report_step
from ospo.config import Algorithm

app = typer.Typer()


@app.command()
def sft(dataset: DatasetOption, params: ParamsOption = PARAMS, overrides: SetOption = []) -> None:
    """Train the SFT policy that every algorithm starts from."""
    from ospo import api

    report_step(api.train(dataset, None, params=params, overrides=overrides))


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
    from ospo import api

    report_step(api.train(dataset, algorithm, params=params, overrides=overrides))
