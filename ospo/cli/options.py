"""Arguments and options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

from ospo.config import Dataset

DatasetArgument = Annotated[Dataset, typer.Argument(help="esci or hm")]
DatasetOption = Annotated[Dataset, typer.Option("--dataset", help="esci or hm")]
ParamsOption = Annotated[Path, typer.Option("--params", help="the parameter file")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="override a parameter; repeatable")
]
PARAMS = Path("params.yaml")
