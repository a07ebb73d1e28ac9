"""What answers requests: a trained policy, or a rule where no policy is better than it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ospo.errors import InputError
from ospo.files import verify_manifest
from ospo.policy.rules import FILE, Rule, read_rule
from ospo.policy.text import REWRITE, SearchText
from ospo.serving.requests import parse_options, parse_requests
from ospo.serving.rewriter import Rewriter, printable

LOGGER = logging.getLogger("ospo.serving")


class Answering(Protocol):
    """Requests in, search texts out."""

    @property
    def answer(self) -> SearchText:
        """How its search texts are formed."""
        ...

    @property
    def hits(self) -> int:
        """How many titles of a request's first hits it reads."""
        ...

    def rewrite(self, inputs: Sequence[Any], params: Mapping[str, Any] | None = None) -> list[str]:
        """One search text for each input; see :meth:`Rewriter.rewrite`."""
        ...


class RuleRewriter:
    """A rule (``ospo.policy.rules``) in a policy's place: the texts are those that evaluation
    scored. Inputs and parameters are held to the same limits; no parameter changes anything.

    Raises ValueError for a rule that cannot answer from the request alone.
    """

    answer: SearchText = REWRITE
    hits = 0

    def __init__(self, rule: Rule, max_new_tokens: int = 32):
        if not rule.standalone:
            raise ValueError(f"the rule {rule.name!r} needs a search of the catalogue")
        self.rule, self.max_new_tokens = rule, max_new_tokens

    def rewrite(self, inputs: Sequence[Any], params: Mapping[str, Any] | None = None) -> list[str]:
        """One search text for each input. Raises RequestError for inputs or parameters that are not
        accepted.
        """
        requests = parse_requests(inputs)
        parse_options(params, self.max_new_tokens)
        return [self.answer.text(r.query, printable(self.rule.text(r))) for r in requests]


def load_rewriter(
    directory: str | Path, *, max_prompt_tokens: int, max_new_tokens: int, verify: bool = True
) -> Answering:
    """The policy in ``directory``, or the rule that stands there in its place, which is logged.

    Raises InputError where a file is missing, damaged or altered (``verify``: see
    :meth:`Rewriter.load`), or the rule cannot answer by itself.
    """
    rule = read_rule(directory)
    if rule is None:
        return Rewriter.load(
            directory,
            verify=verify,
            max_prompt_tokens=max_prompt_tokens,
            max_new_tokens=max_new_tokens,
        )
    if verify:
        verify_manifest(directory)
    if not rule.standalone:
        problem = f"{rule.name} needs a search of the catalogue"
        raise InputError(Path(directory) / FILE, "rule", problem, "name raw or history")
    LOGGER.warning("no trained policy is in use; answering by the rule %r", rule.name)
    return RuleRewriter(rule, max_new_tokens)
