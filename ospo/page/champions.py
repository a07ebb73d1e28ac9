"""Why the champion is the champion: the decisions that the registry keeps, with their figures."""

import math
from dataclasses import dataclass
from typing import Any

from ospo import registry
from ospo.evaluation.selection import label
from ospo.page.policies import Choice, decision_of


@dataclass(frozen=True)
class Row:
    """A retriever's line of a decision: the difference of nDCG@10, its interval and p."""

    retriever: str
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Judged:
    """A version with the decision on it. ``against``: what it was compared with, in words;
    ``rule``: the same for the best rule, where it was compared with a champion too. ``figures``:
    nDCG@10 by retriever.
    """

    choice: Choice
    version: registry.Version
    decided: bool
    promoted: bool
    reason: str
    at: str
    requests: int
    against: str
    rows: tuple[Row, ...]
    rule: str
    rule_rows: tuple[Row, ...]
    figures: dict[str, float]
    note: str


def judged(choice: Choice, dataset: str) -> Judged:
    """The decision on a registered version."""
    version = choice.version
    assert version is not None
    found = decision_of(version)
    rule: Any = found.get("rule")
    rule = rule if isinstance(rule, dict) else {}
    against = found.get("against", "")
    named = f"version {against}" if isinstance(against, int) else label(str(against))
    compared = isinstance(against, int) and bool(rule)
    return Judged(
        choice=choice,
        version=version,
        decided=bool(found),
        promoted=bool(found.get("promoted")),
        reason=str(found.get("reason", "")),
        at=str(found.get("at", "")),
        requests=int(found["requests"]) if isinstance(found.get("requests"), int) else 0,
        against=named if against != "" else "",
        rows=_rows(found.get("figures")),
        rule=label(str(rule["name"])) if compared and "name" in rule else "",
        rule_rows=_rows(rule.get("figures")) if compared else (),
        figures={
            key.partition(".")[2]: float(value)
            for key, value in version.tags.items()
            if key.startswith("ndcg_at_10.") and _number(value)
        },
        note=registry.rule_note(version, dataset),
    )


def _number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _rows(figures: Any) -> tuple[Row, ...]:
    """A decision's figures; those of another form are left out."""
    if not isinstance(figures, dict):
        return ()
    fields = ("difference", "low", "high", "p")
    return tuple(
        Row(str(name), *(float(one[field]) for field in fields))
        for name, one in figures.items()
        if isinstance(one, dict) and all(_number(one.get(field)) for field in fields)
    )
