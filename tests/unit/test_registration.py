"""When a registered version is compared with what is in use, and when it is not."""

import json
from typing import Any

import pytest

from ospo.registry import CHALLENGER, CHAMPION, Version
from ospo.steps.register import _undecided


def version(alias: str, decision: dict[str, Any] | None) -> Version:
    tags = {} if decision is None else {"decision": json.dumps({"reason": "so", **decision})}
    return Version("ospo-rewriter-esci", 1, (alias,), tags, "", "", 0)


@pytest.mark.parametrize(
    ("alias", "decision", "undecided"),
    [
        (CHALLENGER, None, True),
        (CHALLENGER, {"promoted": False, "evaluation": "now"}, False),
        # Another evaluation may say otherwise.
        (CHALLENGER, {"promoted": False, "evaluation": "before"}, True),
        (CHALLENGER, {"promoted": False}, True),
        # Cut off between decision and alias, or replaced by a later champion.
        (CHALLENGER, {"promoted": True, "evaluation": "now"}, True),
        # What a person decided stays.
        (CHALLENGER, {"promoted": False, "by": "hand"}, False),
        (CHALLENGER, {"promoted": True, "by": "hand"}, False),
        (CHAMPION, {"promoted": True, "evaluation": "before"}, False),
    ],
)
def test_what_has_to_be_compared(
    alias: str, decision: dict[str, Any] | None, undecided: bool
) -> None:
    assert _undecided(version(alias, decision), "now") == undecided
