"""The errors a user can cause and mend. The command line prints them as one line and exits with
code 2.
"""

from pathlib import Path


def printable(text: str) -> str:
    """Text with a space for each character that cannot be shown: text from data must not steer a
    terminal, nor go out to other systems as it is.
    """
    return "".join(c if c.isprintable() else " " for c in text)


class OspoError(Exception):
    """A problem the user can mend. ``str(error)`` is one line that says what is wrong and what to
    do.
    """

    exit_code = 2


class InputError(OspoError):
    """Bad input in a file: names the file, the field (a column, a key, a row) and the fix."""

    def __init__(self, file: str | Path, field: str, problem: str, fix: str):
        self.file, self.field, self.problem, self.fix = str(file), field, problem, fix
        where = f"{file}: {field}" if field else f"{file}"
        # One line, whatever the data holds: control characters in names never reach the terminal
        # raw.
        line = f"{where}: {problem}. Fix: {fix}"
        super().__init__(printable(line))

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        return type(self), (self.file, self.field, self.problem, self.fix)


class ConfigError(InputError):
    """A bad key or value in params.yaml (or in a ``--set`` override)."""
