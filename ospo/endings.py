"""How a command ends when it is told to, or called wrongly: one line and the exit code that shells
expect.
"""

import argparse
import signal
from types import FrameType
from typing import NoReturn

INTERRUPTED, TERMINATED = 130, 143  # 128 + the number of SIGINT, of SIGTERM


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process by SystemExit(143), so that ``finally`` blocks run and something
    can be printed; unless a handler is installed already.
    """
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def ending(error: BaseException) -> tuple[int, str] | None:
    """(exit code, word) where ``error`` says that someone ended the command; None otherwise."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, SystemExit) and error.code == INTERRUPTED:  # what typer makes of Ctrl-C
        return INTERRUPTED, "interrupted"
    if isinstance(error, SystemExit) and error.code == TERMINATED:
        return TERMINATED, "terminated"
    return None


class Arguments(argparse.ArgumentParser):
    """A parser of arguments that says what is wrong with them in one line."""

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 2: ``ospo: --seeds: what is wrong. Fix: …``."""
        line = " ".join(message.removeprefix("argument ").split())
        fix = "" if " Fix: " in line else f". Fix: `{self.prog} --help` says what it takes"
        self.exit(2, f"ospo: {line}{fix}\n")
