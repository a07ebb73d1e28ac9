"""A wrong command, option or argument as one line: what is wrong with which, and the fix."""

import re
from typing import Any

from typer.exceptions import TyperException

from ospo.errors import printable


def only_help(error: TyperException) -> bool:
    """Whether typer has shown the help of a command that was called without arguments."""
    return type(error).__name__ == "NoArgsIsHelpError"  # typer keeps the class to itself


def usage_line(error: TyperException) -> str:
    """``--algorithm: 'x' is not one of … Fix: …``."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    program = context.command_path if context is not None else "ospo"
    where = _written(parameter) if parameter is not None else getattr(error, "option_name", "")
    fix = f"`{program} --help` says what it takes"
    problem = " ".join(error.message.split()).rstrip(".")
    if ". Fix: " in problem:  # our own
        problem, _, fix = problem.partition(". Fix: ")
    elif parameter is not None and not problem:
        problem, fix = "is missing", f"add {_example(parameter)}"
    elif known := getattr(error, "possibilities", None):
        problem, fix = "no such option", f"did you mean {' or '.join(sorted(known))}?"
    elif where:
        # "Option '--to' requires an argument", "No such option: --too", and words of pydantic's.
        problem = problem.removeprefix(f"Option {where!r} ").removesuffix(f": {where}")
        problem = problem.removeprefix("Value error, ").replace("Input should be", "must be")
        problem = problem.partition(", unable to parse")[0]
        fix = f"write one after {where}" if problem == "requires an argument" else fix
    elif "?" in problem:  # No such command 'x'. Did you mean 'y'?
        problem, _, fix = problem.partition(". ")
    if re.match(r"'.*' is not one of ", problem):
        fix = "choose one of these"
    return printable(f"{f'{where}: ' if where else ''}{_small(problem)}. Fix: {_small(fix)}")


def _written(parameter: Any) -> str:
    """How an option or argument is written: ``--to``, ``NAME``."""
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return str(parameter.metavar or parameter.name.upper())


def _example(parameter: Any) -> str:
    """What is missing, with what it is: ``--to DIR (the folder to write)``."""
    words = [_written(parameter)]
    if parameter.param_type_name == "option":
        words.append(parameter.metavar or parameter.name.upper())
    return " ".join(words) + (f" ({parameter.help})" if parameter.help else "")


def _small(text: str) -> str:
    """``text`` as the rest of a line: its first letter small, unless more capitals follow."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
