"""The guard: a policy's answer is used only where the policy is sure of it and has something to go
on; elsewhere the request stays as it is.

Chosen on validation requests (``ospo.evaluation.guard``) and written beside the weights, so that
whoever loads the policy keeps to it. It is of greedy answers: a drawn one is as unlikely as the
temperature makes it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from ospo.data.request import Request
from ospo.errors import InputError
from ospo.files import json_or_none, write_json
from ospo.policy.rules import latest_name
from ospo.policy.text import EXPAND, SearchText

FILE = "guard.json"
Grounds = Literal["none", "history", "own"]
GROUNDS: tuple[Grounds, ...] = get_args(Grounds)  # each holds what the one before it holds


def grounds(request: Request) -> Grounds:
    """What a policy has to go on: the request alone, earlier purchases, or among them one of the
    requested type whose name says something that the request does not.
    """
    if EXPAND.added(request.query, latest_name(request)):
        return "own"
    return "history" if request.history else "none"


@dataclass(frozen=True)
class Guard:
    """When an answer is used.

    - ``min_logprob``: the least mean log-probability (natural logarithm, at temperature 1) of the
      completion's tokens, its end token among them; None: any.
    - ``needs``: the least that the request must come with (:func:`grounds`).
    """

    min_logprob: float | None = None
    needs: Grounds = "none"

    def uses(self, given: Grounds, logprob: float) -> bool:
        """Whether the answer of that ``logprob`` to a request that comes with ``given`` is used."""
        if not self.lets_answer(given):
            return False
        return self.min_logprob is None or logprob >= self.min_logprob

    def lets_answer(self, given: Grounds) -> bool:
        """Whether the policy need be asked at all about a request that comes with ``given``."""
        return GROUNDS.index(given) >= GROUNDS.index(self.needs)

    def also(self, other: "Guard") -> "Guard":
        """The guard that uses an answer where both do."""
        given = [least for least in (self.min_logprob, other.min_logprob) if least is not None]
        needs = GROUNDS[max(GROUNDS.index(self.needs), GROUNDS.index(other.needs))]
        return Guard(max(given, default=None), needs)


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
    if isinstance(found, dict) and isinstance(old := found.pop("needs_history", None), bool):
        found["needs"] = "history" if old else "none"  # as it was written before there was more
    if not isinstance(found, dict) or set(found) != {"min_logprob", "needs"}:
        raise InputError(file, "", "is not {min_logprob, needs}", fix)
    least, needs = found["min_logprob"], found["needs"]
    number = isinstance(least, int | float) and not isinstance(least, bool)
    if not (least is None or number):
        raise InputError(file, "min_logprob", f"is {least!r:.40}, no log-probability", fix)
    if needs not in GROUNDS:
        raise InputError(file, "needs", f"is {needs!r:.40}, not one of {', '.join(GROUNDS)}", fix)
    return Guard(None if least is None else float(least), needs)
