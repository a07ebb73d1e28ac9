"""``ospo page``: the local page where a query is tried."""

from typing import Annotated

import typer

from ospo.cli.options import PARAMS, ParamsOption, SetOption

app = typer.Typer()


@app.command()
def page(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="of 127.0.0.1; 0: any that is free")
    ] = 5050,
    params: ParamsOption = PARAMS,
    overrides: SetOption = [],
) -> None:
    """Serve a page on 127.0.0.1 where a query is tried: rewrite, credit, results side by side."""
    from ospo.page.serve import serve

    serve(params, overrides, port, typer.echo)
