"""Which kind of answers a policy was trained to give: written into its directory, so that whoever
loads it forms its search texts as in its training, whatever params.yaml says by then.
"""

from pathlib import Path

from ospo.config import Answer
from ospo.errors import InputError
from ospo.files import json_or_none, write_json
from ospo.policy.text import REWRITE, SEARCH_TEXTS, SearchText

FILE = "answer.json"


def write_answer_kind(directory: Path, answer: Answer, context: int = 0) -> None:
    """Write the kind of answers into a policy's directory, and how many hits its prompts show."""
    write_json(directory / FILE, {"answer": answer} | ({"context": context} if context else {}))


def read_answer_kind(directory: str | Path) -> SearchText:
    """The rule for the answers of a policy's directory; of one without the file, which was made
    by other tools or before there was a choice, they are rewrites.

    Raises InputError for a damaged file or a kind that is not known.
    """
    file = Path(directory) / FILE
    if not file.is_file():
        return REWRITE
    found = json_or_none(file)
    kind = found.get("answer") if isinstance(found, dict) else None
    if not isinstance(kind, str) or kind not in SEARCH_TEXTS:
        raise InputError(
            file,
            "answer",
            f"is {kind!r:.40}, no kind of answers" if found else "is missing",
            f"restore the policy from its origin; known: {', '.join(SEARCH_TEXTS)}",
        )
    return SEARCH_TEXTS[kind]


def read_context(directory: str | Path) -> int:
    """How many of a request's first hits the prompts of a policy's directory show: 0 where its file
    says nothing. Raises InputError for anything but a number of hits.
    """
    file = Path(directory) / FILE
    found = json_or_none(file) if file.is_file() else {}
    hits = found.get("context", 0) if isinstance(found, dict) else 0
    if not isinstance(hits, int) or isinstance(hits, bool) or hits < 0:
        raise InputError(
            file,
            "context",
            f"is {hits!r:.40}, no number of hits",
            "restore the policy from its origin",
        )
    return hits
