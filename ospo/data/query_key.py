"""The normal form of a query: two queries that a shopper would call the same have one key.

Preparation assigns queries to training, validation and test by this key, and evaluation compares
the two sides by it (``ospo.evaluation.leaks``), so that "T-shirts" is not trained on where
"t shirt" is held out.
"""

import unicodedata
from functools import lru_cache

import polars as pl

from ospo.config.languages import LANGUAGES

_APOSTROPHES = dict.fromkeys(map(ord, "'’‘‛ʼ`´′＇"))


class _Folded(dict[int, str]):
    """Character code → itself, or a space for punctuation, symbols, white space and what shows
    nothing; filled as characters are met.
    """

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        # Variation selectors only choose how the character before them is drawn.
        dropped = unicodedata.category(letter)[0] in "PSZC" or 0xFE00 <= code <= 0xFE0F
        self[code] = " " if dropped else letter
        return self[code]


_FOLDED = _Folded()


@lru_cache
def _stemmer(language: str):
    if not (name := LANGUAGES[language].snowball):
        return None
    import Stemmer

    return Stemmer.Stemmer(name)


def query_key(query: str, language: str = "other") -> str:
    """The normal form of ``query``: Unicode's NFKC and case folding, apostrophes removed, every
    word stemmed (where the language has a stemmer), punctuation, symbols and spaces left out.

    Full-width letters, ligatures, decomposed accents, ß and ss, µ and μ, the two small sigmas,
    "t-shirt", "t shirt." and "T SHIRTS", "men’s" and "mens" fall together. A query without a letter
    or digit is its own key. Never empty unless ``query`` is blank.
    """
    text = query.translate(_APOSTROPHES)
    for _ in range(2):  # case folding may leave what NFKC changes, and the other way round
        text = unicodedata.normalize("NFKC", text).casefold()
    words = unicodedata.normalize("NFKC", text).translate(_FOLDED).split()
    if stemmer := _stemmer(language):
        words = stemmer.stemWords(words)
    return "".join(words) or "".join(query.split())


def query_keys(queries: pl.Series, language: str = "other") -> pl.Series:
    """(n,) keys of (n,) queries, each distinct query normalised once."""
    distinct = queries.unique()
    keys = [query_key(query, language) for query in distinct]
    return queries.replace_strict(distinct, pl.Series(keys, dtype=pl.String)).alias("key")
