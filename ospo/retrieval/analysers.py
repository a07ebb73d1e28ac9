"""How texts of a language become words and terms for lexical retrievers.

A word is a run of letters and digits in lower case. Of Japanese, Chinese and Korean every pair of
neighbouring characters is a word, as in Lucene's CJK analyser: no dictionary decides where a word
ends.
"""

import re
import unicodedata
from collections.abc import Callable

from ospo.config.languages import LANGUAGES

WORD = re.compile(r"[^\W_]+")
# bm25s' own default for spaced languages: words of two characters or more.
LONG_WORD = re.compile(r"(?u)\b\w\w+\b")
# Hiragana, katakana with its length mark, Han, Hangul; NFKC has made half-width forms full.
_UNSPACED = re.compile(
    r"[\u3005\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff"
    r"\U00020000-\U000323af\u1100-\u11ff\uac00-\ud7a3]+"
)


def bigram_words(text: str) -> list[str]:
    """The words of a text whose script has no spaces: pairs of neighbouring characters of each run
    of that script (a run of one is itself), and words of other scripts whole.
    """
    found = []
    for word in WORD.findall(unicodedata.normalize("NFKC", text).lower()):
        start = 0
        for run in _UNSPACED.finditer(word):
            if word[start : run.start()]:
                found.append(word[start : run.start()])
            letters = run.group()
            found += [letters[i : i + 2] for i in range(max(1, len(letters) - 1))]
            start = run.end()
        if word[start:]:
            found.append(word[start:])
    return found


def words_of(language: str, pattern: re.Pattern[str] = WORD) -> Callable[[str], list[str]]:
    """The function from a text to its words, in order, repeats included; ``pattern`` finds those of
    spaced languages. Raises ValueError for an unknown code.
    """
    if _known(language).bigrams:
        return bigram_words
    return lambda text: pattern.findall(text.lower())


def stop_words(language: str) -> frozenset[str]:
    """bm25s' stop words of a language; none where it has no stemmer."""
    from bm25s import stopwords

    name = _known(language).snowball
    if not name:
        return frozenset()
    listed = stopwords.STOPWORDS_EN if name == "english" else None
    return frozenset(listed or getattr(stopwords, f"STOPWORDS_{name.upper()}"))


def stem_of(language: str) -> Callable[[str], str]:
    """Snowball's stemmer of a language; words stay as they are where it has none."""
    name = _known(language).snowball
    if not name:
        return lambda word: word
    import Stemmer

    stem: Callable[[str], str] = Stemmer.Stemmer(name).stemWord
    return stem


def _known(language: str):
    if language not in LANGUAGES:
        raise ValueError(f"language: unknown code {language!r}, use one of {', '.join(LANGUAGES)}")
    return LANGUAGES[language]
