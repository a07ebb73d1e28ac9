"""The search text: what a retriever sees of a request and of a policy's answer to it.

Two kinds of answers (``answer`` in params.yaml). A ``rewrite`` replaces the request: its text is
the answer's. An ``expand`` adds to it: its text is the request's, then what the answer adds. No
other module decides how a search text is formed: training, credit, evaluation, explanations and
serving take a :class:`SearchText` and ask it.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from itertools import groupby
from typing import ClassVar

from ospo.config import Answer

# Where a search text breaks into segments: , ; . ! ? and line ends, their full-width forms, bars
# and bullets. A comma inside a number ("1,000") and a point inside a number or a word ("5.5",
# "u.s") is none.
_BREAK = re.compile(r"[;!?\n\r|•·…，、。；！？]|,(?!\d)|(?<!\d),|\.(?!\w)|(?<!\w)\.")
# A word said again without a space: "silk/silk", "silk.silk.silk". Two with a hyphen are a word
# ("yo-yo", "pom-pom").
_AGAIN = re.compile(r"\b([^\W\d_]{2,})(?:(?:[./&+:*=~]+\1\b)+|(?:-\1\b){2,})", re.IGNORECASE)
_RUN = re.compile(r"([^\w\s+])(?:\s*\1)+")  # "!!" or "- - -"; "c++" stays
_EDGE = " ,.:~*=<>/\\-"
_RUN_OF_LETTERS = re.compile(r"[^\W_]+")
# Around a word, beyond what edges of segments lose: quotes and brackets are no part of it.
_AROUND = _EDGE + "\"'`´‘’‚“”„«»()[]{}"


@lru_cache(maxsize=1 << 14)  # a step asks for a text's value, price and scores
def search_text(answer: str) -> str:
    """What the retriever sees of an answer: segments joined by ", ", without the tricks that earn
    from form alone.

    White space and runs of punctuation collapse; a word that follows itself counts once; segments
    without a letter or digit, and those that came before (whatever their case), are dropped:
    "fit,,,, Fit ,fit fit", "fit,fit" and "fit/fit" become "fit". Idempotent:
    ``search_text(search_text(x)) == search_text(x)``. The set of words is that
    of the answer, so what a linear retriever sees of "a b" is what it sees of "a" and of "b".
    """
    kept: dict[str, str] = {}
    for part in _BREAK.split(_AGAIN.sub(r"\1", answer.replace("_", " "))):
        words: list[str] = []
        for word in _RUN.sub(r"\1", part).split():
            if not words or words[-1].lower() != word.lower():
                words.append(word)
        segment = " ".join(words).strip(_EDGE)
        if any(map(str.isalnum, segment)):
            kept.setdefault(segment.lower(), segment)
    return ", ".join(kept.values())


class SearchText(ABC):
    """How the search text of an answer is formed: the one rule of its kind.

    ``text(query, answer)`` is ``base(query)``, then ``added(query, answer)``. It is a search text
    already (``search_text`` leaves it as it is), and given again as an answer to the same request
    it gives itself.
    """

    kind: ClassVar[Answer]
    keeps_request: ClassVar[bool]  # whether the request stands in every text

    @abstractmethod
    def base(self, query: str) -> str:
        """The text of an answer that says nothing."""

    @abstractmethod
    def added(self, query: str, part: str) -> str:
        """What an answer, or a piece of one, brings to the text; "" where it brings nothing.

        The words that two pieces side by side bring are those that each brings.
        """

    def text(self, query: str, answer: str) -> str:
        """What the retriever sees of ``answer`` to ``query``."""
        return ", ".join(filter(None, (self.base(query), self.added(query, answer))))


class Rewrite(SearchText):
    """The answer is the search text; one that says nothing is no text, and earns nothing."""

    kind, keeps_request = "rewrite", False

    def base(self, query: str) -> str:
        """Nothing: the request is replaced."""
        return ""

    def added(self, query: str, part: str) -> str:
        """The answer's search text."""
        return search_text(part)


class Expand(SearchText):
    """The request as it stands, then what the answer adds; one that adds nothing is the raw query.

    Decided word by word, after ``search_text``: a word of the answer counts where it does not stand
    in the request, whatever its case and the punctuation around it. Words of the request are left
    out of the answer, and what stood around such a word becomes phrases of its own: to "red dress",
    the answer "dress, summer dress for work" adds "summer, for work". A compound of the request
    ("t-shirt", "women's") stands there whole and in its parts, so that "shirt" adds nothing to it;
    "t-shirt" adds to "shirt".
    """

    kind, keeps_request = "expand", True

    def base(self, query: str) -> str:
        """The raw query's search text."""
        return search_text(query)

    def added(self, query: str, part: str) -> str:
        """The phrases of ``part`` without the request's words, joined by ", "."""
        return _added(query, part)


@lru_cache(maxsize=1 << 12)
def _request_words(query: str) -> frozenset[str]:
    """The request's words and, of compounds, their runs of letters and digits."""
    words = [_word_key(word) for word in search_text(query).split()]
    runs = [run for word in words for run in _RUN_OF_LETTERS.findall(word)]
    return frozenset([*words, *runs])


def _word_key(word: str) -> str:
    """A word as it is compared: no case, no punctuation around it. A word of punctuation alone is
    itself.
    """
    folded = word.lower().casefold()
    return folded.strip(_AROUND) or folded


@lru_cache(maxsize=1 << 14)
def _added(query: str, part: str) -> str:
    asked = _request_words(query)
    phrases: list[str] = []
    for segment in search_text(part).split(", "):
        for old, words in groupby(segment.split(), lambda word: _word_key(word) in asked):
            if not old:
                phrases.append(" ".join(words))
    return search_text(", ".join(phrases))


REWRITE, EXPAND = Rewrite(), Expand()
SEARCH_TEXTS: Mapping[str, SearchText] = {rule.kind: rule for rule in (REWRITE, EXPAND)}
"""Every kind of answer, by its name in params.yaml."""
