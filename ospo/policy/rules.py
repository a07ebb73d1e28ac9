"""Rules as policies: search texts that cost nothing to train, which a trained policy has to beat.

Each is described once, in ``RULES``; evaluation, reports, the promotion rule and serving take them
from there. A rule reads the request and, at most, the titles that the search engine shows for it:
never a judgement, a target, or what the shopper bought later.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ospo.data.request import Request
from ospo.errors import InputError
from ospo.files import read_json, write_json
from ospo.policy.prompts import asked_for, clean

FILE = "rule.json"  # what a directory holds in place of weights where its policy is a rule
RAW = "raw"
HITS = 10  # titles that a rule which reads hits is shown
_WORD = re.compile(r"[^\W\d_][^\W_]*")  # begins with a letter: sizes and counts describe no kind
STOP_WORDS = frozenset(
    "a about after all also an and any are as at be because been before but by can could did do "
    "does each for from had has have he her here him his how i if in into is it its just like me "
    "more most my no nor not of off on only or other our out over own per she should so some such "
    "than that the their them then there these they this those through to too under up us very "
    "was we were what when where which while who why will with without would you your".split()
)


@dataclass(frozen=True)
class Rule:
    """A policy without weights.

    - ``name``: as in tables' data; ``label``: as people read it; ``words``: what it does.
    - ``addition``: (request, titles of the first hits, stop words of the language) → what follows
      the request, "" for nothing.
    - ``reads_history``: it says nothing about requests without earlier purchases.
    - ``reads_hits``: it needs a search of the whole catalogue, so it cannot answer by itself.
    """

    name: str
    label: str
    words: str
    addition: Callable[[Request, Sequence[str], frozenset[str]], str]
    reads_history: bool = False
    reads_hits: bool = False

    @property
    def standalone(self) -> bool:
        """Whether the rule answers from the request alone, as a served model must."""
        return not self.reads_hits

    def text(
        self, request: Request, titles: Sequence[str] = (), stop: frozenset[str] = STOP_WORDS
    ) -> str:
        """The request's query followed by what the rule adds; the query as it is where that is
        nothing. ``titles``: of the first hits, best first. ``stop``: words that describe nothing,
        of the language of the titles.
        """
        added = self.addition(request, titles, stop)
        return f"{request.query} {added}" if added else request.query


def _nothing(request: Request, titles: Sequence[str], stop: frozenset[str]) -> str:
    return ""


def latest_name(
    request: Request, titles: Sequence[str] = (), stop: frozenset[str] = STOP_WORDS
) -> str:
    """The name of the latest earlier purchase of the requested type (``history`` is oldest
    first), "" where there is none.
    """
    names = [clean(purchase.name) for purchase in asked_for(request.query, request.history)]
    return next((name for name in reversed(names) if name), "")


def _frequent_word(request: Request, titles: Sequence[str], stop: frozenset[str]) -> str:
    """The most frequent word of the first titles that is no stop word and not in the request; of
    equally frequent ones the one that comes first.
    """
    asked = set(_WORD.findall(clean(request.query)))
    counts = Counter(word for title in titles[:HITS] for word in _WORD.findall(clean(title)))
    known = [w for w in counts if len(w) > 1 and w not in asked and w not in stop]
    return max(known, key=lambda word: counts[word], default="")  # the first of equal ones


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(RAW, "raw query", "the request as it is", _nothing),
        Rule(
            "history",
            "rule: history",
            "the request, followed by the name of the latest earlier purchase of the requested "
            "type where there is one",
            latest_name,
            reads_history=True,
        ),
        Rule(
            "feedback",
            "rule: feedback",
            f"the request, followed by the most frequent new word of the first {HITS} titles that "
            "the training retriever finds in the whole catalogue",
            _frequent_word,
            reads_hits=True,
        ),
    )
}


def write_rule(rule: Rule, directory: Path) -> None:
    """Make ``directory`` a policy that is this rule."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / FILE, {"rule": rule.name})


def read_rule(directory: str | Path) -> Rule | None:
    """The rule that a policy's directory stands for, None where it holds another policy.

    Raises InputError for a damaged file or a rule that is not known here.
    """
    file = Path(directory) / FILE
    if not file.is_file():
        return None
    try:
        name = read_json(file)["rule"]
    except (ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or name not in RULES:
        raise InputError(file, "rule", f"names no rule: {name!r:.40}", f"one of {', '.join(RULES)}")
    return RULES[name]
