"""The command line as a whole: its groups of commands, and how a command ends."""

import gc
import sys

import typer
from typer.exceptions import TyperException

from ospo.cli.config import app as config_app
from ospo.cli.data import app as data_app
from ospo.cli.evaluate import app as evaluate_app
from ospo.cli.machine import app as machine_app
from ospo.cli.page import app as page_app
from ospo.cli.prepare import app as prepare_app
from ospo.cli.registry import app as registry_app
from ospo.cli.train import app as train_app
from ospo.cli.usage import only_help, usage_line
from ospo.endings import ending, exit_on_sigterm
from ospo.errors import OspoError
from ospo.files import storage_problem

app = typer.Typer(
    help="Train an LLM to write better searches, with credit for every phrase "
    "(OSPO, arXiv 2601.08403).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
for _group in (prepare_app, train_app, evaluate_app, registry_app, page_app, machine_app):
    app.add_typer(_group)  # without a name: its commands stand beside the others


def main() -> None:
    """Run the command line: a problem the user can mend, a wrong option among them, is one line on
    stderr and exit code 2.
    """
    exit_on_sigterm()
    try:
        sys.exit(app(prog_name="ospo", standalone_mode=False) or 0)
    except TyperException as error:
        if not only_help(error):
            typer.echo(f"ospo: {usage_line(error)}", err=True)
        sys.exit(error.exit_code)
    except (SystemExit, KeyboardInterrupt) as error:
        ended = ending(error)
        if ended is None:
            raise
    except Exception as error:
        problem = error if isinstance(error, OspoError) else storage_problem(error)
        if problem is None:
            raise
        typer.echo(f"ospo: {problem}", err=True)
        sys.exit(problem.exit_code)
    gc.collect()  # a progress bar that was open ends its line when it goes
    typer.echo(f"ospo: {ended[1]}; run the same command again to resume", err=True)
    sys.exit(ended[0])
