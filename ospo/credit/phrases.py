"""Which words begin a phrase: spaCy's tags and noun chunks, read for the clipped English of search
texts.
"""

import importlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from ospo.credit.words import Word

LONGEST = 5  # words in a phrase
LONGEST_UNTAGGED = (
    3  # words in a phrase of a language without a tagger: a noun and what describes it
)
# Of other languages: spaCy's module of stop words, where its name is not the language's code.
_STOP_WORDS_OF = {"no": "nb"}
LANGUAGES = (
    "en",
    "da",
    "de",
    "es",
    "fr",
    "it",
    "ja",
    "ko",
    "nl",
    "no",
    "pt",
    "ru",
    "sv",
    "tr",
    "zh",
)
"""Languages whose connecting words are known; English has a tagger too."""

# Words of closed classes. The tagger is asked only about the others: on texts such as "bottle 32
# oz" it calls "oz" a preposition, and a word it has never seen in that place must not be glued to
# its neighbour for that.
_CONNECTING = (
    "a an the this that these those some any each every my your his her its our their i you he she "
    "it we they me "
    "him us them who whom whose which what when where why how for with without in on of to by from "
    "at as into onto "
    "over under about than per near via if because so up off out around between during after "
    "before through across "
    "and or but nor yet plus while although though unless except not no is am are was were be been "
    "being have has "
    "had having do does did doing will would can could should shall may might must there here then "
    "also just please "
    "i'm it's that's i'd i've"
)
CONNECTING = frozenset(_CONNECTING.split())
_PREFERENCE = (
    "look looking looks want wants wanted wanting need needs needed needing prefer prefers "
    "preferred preferring "
    "like likes love loves loving search searching seek seeking find finding buy buying wear "
    "wearing get getting "
    "shop shopping match matching go going suit suiting show showing give use using"
)
PREFERENCE = frozenset(_PREFERENCE.split())
NOUN, ADJECTIVE, VERB, ADVERB, FUNCTION, GLUED = "NAVRFG"
_PART_OF_SPEECH = {
    "NN": "NOUN",
    "NNS": "NOUN",
    "NNP": "PROPN",
    "NNPS": "PROPN",
    "PRP": "PRON",
    "WP": "PRON",
}
_TAG_CLASS = {"N": NOUN, "F": NOUN, "J": ADJECTIVE, "C": ADJECTIVE, "V": VERB, "R": ADVERB}


def is_connecting(word: str, connecting: frozenset[str] = CONNECTING) -> bool:
    """Whether a word says nothing alone: of a closed class, or without a letter or digit."""
    form = word.lower().strip("\"'()[]{}*")
    return form in connecting or not any(map(str.isalnum, form))


@lru_cache
def connecting_words(language: str) -> frozenset[str]:
    """Words of ``language`` that join a neighbour: CONNECTING in English, else spaCy's stop words;
    none for a language that is not among ``LANGUAGES``.
    """
    if language == "en":
        return CONNECTING
    if language not in LANGUAGES:
        return frozenset()
    module = f"spacy.lang.{_STOP_WORDS_OF.get(language, language)}.stop_words"
    return frozenset(word.lower() for word in importlib.import_module(module).STOP_WORDS)


def untagged_starts(text: str, words: Sequence[Word], language: str) -> tuple[int, ...]:
    """Numbers of the words of a clause that begin a phrase, without a tagger: 0 first, or none
    where all are connecting words.

    Connecting words join the phrase that they introduce, those at the end of the clause and those
    that touch it the one before; what stands between two of them is cut into phrases of at most
    ``LONGEST_UNTAGGED`` words, as even as can be. A word that touches its neighbour without a
    space, as in Japanese, is a phrase of its own.
    """
    known = connecting_words(language)
    joins = [is_connecting(text[word.start : word.end], known) for word in words]
    touching = [False, *(a.end == b.start for a, b in pairwise(words)), False]
    runs: list[tuple[int, int]] = []
    i = 0
    while i < len(words):
        if joins[i]:
            i += 1
            continue
        end = i + 1
        alone = touching[i] or touching[i + 1]
        while not alone and end < len(words) and not joins[end] and not touching[end + 1]:
            end += 1
        pieces = _balanced(i, end, LONGEST_UNTAGGED)
        while end < len(words) and joins[end] and touching[end]:  # a Japanese particle
            end += 1
        runs += [*pieces[:-1], (pieces[-1][0], end)]
        i = end
    return (0, *(last for _, last in runs[:-1])) if runs else ()


def _classes(text: str, words: Sequence[Word], doc: Any) -> list[str]:
    """One letter a word: noun, adjective (numbers and participles before a noun too), verb, adverb
    or function.

    GLUED: a word that touches its neighbour without a space, as in Chinese and Japanese; a phrase
    of its own.
    """
    tag_at: dict[int, str] = {}
    for token in doc:
        tag_at[token.idx] = token.tag_
    ordered = sorted(tag_at)
    classes = []
    cursor = 0
    for word in words:
        tags = []
        while cursor < len(ordered) and ordered[cursor] < word.end:
            if ordered[cursor] >= word.start:
                tags.append(tag_at[ordered[cursor]])
            cursor += 1
        form = text[word.start : word.end].lower().strip("\"'()[]{}*")
        content = [
            tag for tag in tags if tag[:1].isalpha() and tag not in ("POS", "HYPH", "SP", "NFP")
        ]
        if is_connecting(form):
            classes.append(FUNCTION)
        elif form in PREFERENCE and content and content[-1][0] in "VI":
            classes.append(VERB)
        elif content and content[-1] != "CC" and content[-1] != "RP":
            classes.append(_TAG_CLASS.get(content[-1][0], NOUN))
        else:
            classes.append(NOUN)
    for i, kind in enumerate(classes[:-1]):
        joined = classes[i + 1] in (NOUN, ADJECTIVE)
        form = text[words[i].start : words[i].end].lower()
        # "running shoes", "very soft": what stands before a noun or adjective describes it, unless
        # it asks for it.
        if joined and (
            kind == ADVERB
            or (kind == VERB and form.endswith(("ing", "ed")) and form not in PREFERENCE)
        ):
            classes[i] = ADJECTIVE
    for i in range(len(words) - 1):
        if words[i].end == words[i + 1].start:
            classes[i] = classes[i + 1] = GLUED
    return classes


def _balanced(start: int, end: int, longest: int = LONGEST) -> list[tuple[int, int]]:
    """Cut [start, end) into the fewest parts of at most ``longest`` words, as even as can be."""
    parts = -(-(end - start) // longest)
    cuts = [start + (end - start) * p // parts for p in range(parts + 1)]
    return list(pairwise(cuts))


def _content_runs(classes: list[str]) -> list[tuple[int, int]]:
    """Runs of nouns and adjectives, cut where a noun is followed by the adjective of the
    next pair.
    """
    runs: list[tuple[int, int]] = []
    i, end = 0, len(classes)
    while i < end:
        if classes[i] not in (NOUN, ADJECTIVE):
            i += 1
            continue
        j = first = i
        while j < end and classes[j] in (NOUN, ADJECTIVE):
            j += 1
        i = j
        for cut in range(first + 2, j - 1):
            if classes[cut - 1] == NOUN and classes[cut] == ADJECTIVE and cut - first >= 2:
                runs.append((first, cut))
                first = cut
        runs.append((first, j))
    return [part for run in runs for part in _balanced(*run)]


def _noun_chunks(words: Sequence[Word], doc: Any, classes: list[str]) -> list[tuple[int, int]]:
    """spaCy's noun chunks as word ranges of 2–5 words, without connecting words at either end."""
    word_at = {}
    for number, word in enumerate(words):
        for position in range(word.start, word.end):
            word_at[position] = number
    chunks = []
    for token in doc:  # noun chunks ask for parts of speech, which follow from the tags
        token.pos_ = _PART_OF_SPEECH.get(token.tag_, "X")
    for chunk in doc.noun_chunks:
        inside = [word_at[p] for p in range(chunk.start_char, chunk.end_char) if p in word_at]
        if not inside:
            continue
        first, last = inside[0], inside[-1]
        while first <= last and classes[first] == FUNCTION:
            first += 1
        while last >= first and classes[last] == FUNCTION:
            last -= 1
        # "black and white coat" is one phrase, "slim fit and cheap price" two: a connecting word
        # may stand in a phrase only where it leaves a single word on one side.
        joins = [i for i in range(first, last) if classes[i] == FUNCTION]
        if any(i - first >= 2 and last - i >= 2 for i in joins):
            continue
        if 2 <= last + 1 - first <= LONGEST:
            chunks.append((first, last + 1))
    return chunks


def _verb_phrases(classes: list[str], runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """A verb, its connecting words and the phrase they lead to, where that makes at most 5
    words.
    """
    run_end, end = dict(runs), len(classes)
    phrases = []
    for i in range(end):
        if classes[i] != VERB:
            continue
        j = i + 1
        while j < end and classes[j] == FUNCTION:
            j += 1
        stop = run_end.get(j, j)
        if stop - i <= LONGEST and stop > i + 1 and stop > j:
            phrases.append((i, stop))
    return phrases


def _clause_pieces(classes: list[str], chunks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Non-overlapping phrases of a clause, in order, before connecting words are joined to them."""
    end = len(classes)
    runs = _content_runs(classes)
    candidates = sorted(
        {*runs, *chunks, *_verb_phrases(classes, runs)},
        key=lambda span: (span[0] - span[1], span[0]),
    )
    owner = [-1] * end
    for number, (first, last) in enumerate(candidates):
        if all(owner[i] < 0 for i in range(first, last)):
            for i in range(first, last):
                owner[i] = number
    pieces: list[tuple[int, int]] = []
    i = 0
    while i < end:
        j = i + 1
        if owner[i] >= 0:
            while j < end and owner[j] == owner[i]:
                j += 1
            pieces.append((i, j))
        elif (
            classes[i] != FUNCTION
        ):  # content that no phrase took: what is left of a run, a lone verb or adverb
            while j < end and owner[j] < 0 and classes[j] != FUNCTION and j - i < LONGEST:
                if GLUED in (classes[i], classes[j]):
                    break
                j += 1
            pieces.append((i, j))
        i = j
    return pieces


def clause_starts(text: str, words: Sequence[Word], doc: Any) -> tuple[int, ...]:
    """Numbers of the words of a clause that begin a phrase: 0 first, or none where all are
    connecting words.

    ``doc`` is the spaCy document of the clause's ``text``.
    """
    classes = _classes(text, words, doc)
    pieces = _clause_pieces(classes, _noun_chunks(words, doc, classes))
    if not pieces:
        return ()
    # Connecting words join the phrase they introduce; those at the end of a clause stay with the
    # one before.
    return tuple(_join_single([0, *(last for _, last in pieces[:-1])], len(words), classes))


def _join_single(begins: list[int], end: int, classes: list[str]) -> list[int]:
    """Join one-word phrases to the shorter neighbour in their clause while the two make at most 5
    words.
    """
    cuts = [*begins, end]
    while True:
        best: tuple[int, int] | None = None
        for i in range(1, len(cuts) - 1):
            left, right = cuts[i] - cuts[i - 1], cuts[i + 1] - cuts[i]
            glued = GLUED in classes[cuts[i - 1] : cuts[i + 1]]
            if not glued and min(left, right) == 1 and left + right <= LONGEST:
                best = min(best or (left + right, i), (left + right, i))
        if best is None:
            return cuts[:-1]
        del cuts[best[1]]
