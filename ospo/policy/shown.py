"""What goes out for a request: the search text of a policy's answer, safe for other systems."""

from ospo.errors import printable
from ospo.policy.prompts import clean
from ospo.policy.text import SearchText, search_text

MAX_ANSWER = 1000  # characters; no preset's answers come near


def shown_text(rule: SearchText, query: str, answer: str) -> str:
    """The search text of ``answer`` to ``query``; where the policy answers nothing usable, the
    query itself.
    """
    text = rule.text(printable(query), printable(answer[:MAX_ANSWER]))
    return text or search_text(clean(query))
