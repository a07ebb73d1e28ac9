"""Words, clause ends and sentence ends of a search text, by characters alone: no model, any
script.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

ENDS_SENTENCE = frozenset(".!?…。！？\n\r")
ENDS_CLAUSE = ENDS_SENTENCE | frozenset(",;:|，、；：")
# Chinese and Japanese have no spaces; most words have 1–2 Han characters, so pieces of up to 4 make
# short phrases.
LONGEST_RUN = {"han": 4, "hiragana": 8}


@dataclass(frozen=True, slots=True)
class Word:
    """Characters [start, end) of the text, and what follows them before the next word."""

    start: int
    end: int
    ends_clause: bool = False
    ends_sentence: bool = False


def _script(character: str) -> str:
    code = ord(character)
    if 0x3041 <= code <= 0x309F:
        return "hiragana"
    if 0x30A0 <= code <= 0x30FF or 0x31F0 <= code <= 0x31FF or 0xFF66 <= code <= 0xFF9F:
        return "katakana"
    if 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x323AF:
        return "han"
    return ""


def is_break(text: str, position: int) -> bool:
    """Whether the character there ends a clause: not the comma of 1,000, the point of 3.5, the
    colon of 12:30.
    """
    character = text[position]
    if character not in ENDS_CLAUSE:
        return False
    if character not in ",.:":
        return True
    before = text[position - 1] if position else " "
    after = text[position + 1] if position + 1 < len(text) else " "
    if character == ".":
        return not after.isalnum() or not before.isalnum()
    return not (before.isdigit() and after.isdigit())


def _pieces(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut a run without spaces where the script changes and where Chinese or Japanese would grow
    too long.
    """
    if text.isascii():
        return [(start, end)]
    scripts = [_script(text[i]) for i in range(start, end)]
    if not any(scripts):
        return [(start, end)]
    cuts = [start]
    for i in range(start + 1, end):
        left, right = scripts[i - 1 - start], scripts[i - start]
        # Hiragana after Han is an ending of the same word (okurigana, particles); anything else
        # begins a new one.
        if (left != right and not (left == "han" and right == "hiragana")) or (
            left == right and i - cuts[-1] >= LONGEST_RUN.get(left, end)
        ):
            cuts.append(i)
    return list(pairwise([*cuts, end]))


def split_words(text: str) -> list[Word]:
    """The words of ``text`` in order: runs between spaces, cut at clause ends and, in CJK text, by
    script.

    Punctuation that ends a clause belongs to no word; it marks the word before it. A text of
    punctuation alone has no words.
    """
    words: list[tuple[int, int]] = []
    ends: list[tuple[bool, bool]] = []

    def mark(sentence: bool) -> None:
        if ends:
            ends[-1] = (True, ends[-1][1] or sentence)

    def add(start: int, end: int) -> None:
        for piece in _pieces(text, start, end):
            words.append(piece)
            ends.append((False, False))

    position = 0
    for match in re.finditer(r"\S+", text):
        if "\n" in text[position : match.start()] or "\r" in text[position : match.start()]:
            mark(True)
        position = match.end()
        run = match.group()
        if run in (
            "-",
            "–",
            "—",
            "•",
            "·",
        ):  # a dash between spaces separates; a hyphen inside a word does not
            mark(False)
            continue
        start = match.start()
        for i in range(match.start(), match.end()):
            if is_break(text, i):
                if i > start:
                    add(start, i)
                mark(text[i] in ENDS_SENTENCE)
                start = i + 1
        if start < match.end():
            add(start, match.end())
    return [Word(*word, *end) for word, end in zip(words, ends, strict=True)]
