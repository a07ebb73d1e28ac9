"""The guard: a policy's answer is used only where the policy is sure of it and has something to go
on; elsewhere the request stays as it is.

Chosen on validation requests (``ospo.evaluation.guard``) and written beside the weights, so that
whoever loads the policy keeps to it. It is of greedy answers: a drawn one is as unlikely as the
temperature makes it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from ospo.data.request import Request
from ospo.errors import InputError
from ospo.files import json_or_none, write_json
from ospo.policy.text import SearchText

FILE = "guard.json"


@dataclass(frozen=True)
class Guard:
    """When an answer is used.

    - ``min_logprob``: the least mean log-probability (natural logarithm, at temperature 1) of the
      completion's tokens, its end token among them; None: any.
    - ``needs_history``: only where the request comes with earlier purchases.
    """

    min_logprob: float | None = None
    needs_history: bool = False

    def uses(self, has_history: bool, logprob: float) -> bool:
        """Whether the answer of that ``logprob`` to a request with or without history is used."""
        if self.needs_history and not has_history:
            return False
        return self.min_logprob is None or logprob >= self.min_logprob


def unanswered(rule: SearchText, request: Request) -> str:
    """The answer whose search text is the raw query's."""
    return "" if rule.keeps_request else request.query


def write_guard(directory: Path, guard: Guard) -> None:
    """Write a guard into a policy's directory."""
    write_json(directory / FILE, asdict(guard))


def read_guard(directory: str | Path) -> Guard | None:
    """The guard in a policy's directory, None where there is none. Raises InputError for a damaged
    file.
    """
    file = Path(directory) / FILE
    if not file.is_file():
        return None
    found = json_or_none(file)
    fix = "restore the policy from its origin"
    if not isinstance(found, dict) or set(found) != {"min_logprob", "needs_history"}:
        raise InputError(file, "", "is not {min_logprob, needs_history}", fix)
    least, needs = found["min_logprob"], found["needs_history"]
    number = isinstance(least, int | float) and not isinstance(least, bool)
    if not (least is None or number) or not isinstance(needs, bool):
        raise InputError(file, "min_logprob", f"is {least!r:.40}, no log-probability", fix)
    return Guard(None if least is None else float(least), needs)
