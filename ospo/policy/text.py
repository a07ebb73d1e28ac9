"""The search text: what a retriever sees of an answer."""

import re
from functools import lru_cache

# Where a search text breaks into segments: , ; . ! ? and line ends, their full-width forms, bars
# and bullets. A comma or point inside a number or a word ("1,000", "5.5", "u.s") is none.
_BREAK = re.compile(r"[;!?\n\r|•·…，、。；！？]|[.,](?!\w)|(?<!\w)[.,]")
_RUN = re.compile(r"([^\w\s+])(?:\s*\1)+")  # "!!" or "- - -"; "c++" stays
_EDGE = " ,.:~*=<>/\\-"


@lru_cache(maxsize=1 << 14)  # a step asks for a text's value, price and scores
def search_text(answer: str) -> str:
    """What the retriever sees of an answer: segments joined by ", ", without the tricks that earn
    from form alone.

    White space and runs of punctuation collapse; a word that follows itself counts once; segments
    without a letter or digit, and those that came before (whatever their case), are dropped:
    "fit,,,, Fit ,fit fit" becomes "fit". Idempotent: ``search_text(search_text(x)) ==
    search_text(x)``. The set of words is that of the answer, so what a linear retriever sees of "a
    b" is what it sees of "a" and of "b".
    """
    kept: dict[str, str] = {}
    for part in _BREAK.split(answer.replace("_", " ")):
        words: list[str] = []
        for word in _RUN.sub(r"\1", part).split():
            if not words or words[-1].lower() != word.lower():
                words.append(word)
        segment = " ".join(words).strip(_EDGE)
        if any(map(str.isalnum, segment)):
            kept.setdefault(segment.lower(), segment)
    return ", ".join(kept.values())
