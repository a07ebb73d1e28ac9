"""Text clean-up as Polars expressions: HTML removed, entities decoded, white space collapsed.

Rust's regex engine has no backtracking, so no input can make these patterns slow.
"""

from collections.abc import Callable
from functools import cache, wraps
from html import unescape
from html.entities import html5

import numpy as np
import polars as pl

TEXT_LIMIT = 4000
"""Longest item text in characters; what is beyond is cut. Dense encoders read about 1,000."""

# What a browser never shows. An unclosed <script> hides everything after it, as in a browser.
_HIDDEN = r"(?is)<!--.*?(?:-->|$)|<script\b.*?(?:</script\s*>|$)|<style\b.*?(?:</style\s*>|$)"
# A tag starts with a letter, "/" or "!" right after "<": "a < b" and "<3" are text. Quoted
# attributes may hold ">".
_TAG = r"""(?s)<[/!]?[a-zA-Z](?:[^<>"']|"[^"]*"|'[^']*')*>"""
_BROKEN_TAG = r"(?s)<[/!]?[a-zA-Z][^<>]*(?:>|$)"
# White space other than the plain space, and characters that show nothing.
_ODD_SPACE = r"[\s\p{Cc}\p{Cf}\p{Co}\p{Cn}&&[^ ]]"


@cache
def _entities() -> tuple[list[str], list[str]]:
    """Entities and the text each stands for: HTML 5's names, and numbers for Latin and general
    punctuation.
    """
    names = [f"&{name}" for name in html5 if name.endswith(";")]
    codes = [
        *range(32, 592),
        *range(0x2000, 0x2070),
        *range(0x20A0, 0x20C0),
        *range(0x2100, 0x2150),
        0x2605,
        0xFEFF,
    ]
    numbers = [
        form
        for code in codes
        for form in (f"&#{code};", f"&#x{code:x};", f"&#x{code:X};", f"&#0{code};")
    ]
    forms = sorted({*names, *numbers})
    return forms, [unescape(form) for form in forms]


def elementwise(function: Callable[[pl.Series], pl.Series]) -> Callable[[pl.Expr], pl.Expr]:
    """A function of text columns as a function of expressions, which the streaming engine may call
    on parts.

    Written over columns, each step is computed once: in one expression, a part that stands in both
    the condition and the branches of a ``when`` is computed for each (four times the work for head
    nouns).
    """

    @wraps(function)
    def of_expression(text: pl.Expr) -> pl.Expr:
        return text.map_batches(function, return_dtype=pl.String, is_elementwise=True)

    return of_expression


def where(
    text: pl.Series, chosen: pl.Series, function: Callable[[pl.Series], pl.Series]
) -> pl.Series:
    """``function`` of the chosen rows, the others as they are: most texts need no clean-up, and
    looking is cheap.
    """
    rows = chosen.arg_true()
    if rows.is_empty():
        return text
    if len(rows) == len(text):
        return function(text)
    source = np.arange(len(text))
    source[rows.to_numpy()] = len(text) + np.arange(len(rows))
    return pl.concat([text, function(text.gather(rows)).rename(text.name)], rechunk=False).gather(
        source
    )


def _clean_space(text: pl.Series) -> pl.Series:
    text = text.str.replace_all(
        "\n", " ", literal=True
    )  # by far the commonest, and quicker than by the pattern
    text = where(
        text, text.str.contains(_ODD_SPACE), lambda part: part.str.replace_all(_ODD_SPACE, " ")
    )
    text = where(
        text, text.str.contains("  ", literal=True), lambda part: part.str.replace_all(" {2,}", " ")
    )
    return text.str.strip_chars(" ")


def _strip_tags(text: pl.Series) -> pl.Series:
    def strip(part: pl.Series) -> pl.Series:
        return (
            part.str.replace_all(_HIDDEN, " ")
            .str.replace_all(_TAG, " ")
            .str.replace_all(_BROKEN_TAG, " ")
        )

    return where(text, text.str.contains("<", literal=True), strip)


def _decode(text: pl.Series) -> pl.Series:
    def decode(part: pl.Series) -> pl.Series:
        part = part.str.replace_many(*_entities(), leftmost=True)
        return part.str.replace_all(r"&#[xX]?[0-9a-fA-F]+;", " ")

    return where(text, text.str.contains("&", literal=True), decode)


def _strip_html(text: pl.Series) -> pl.Series:
    return _clean_space(_strip_tags(_decode(_strip_tags(text.fill_null("")))))


def _known(text: pl.Series) -> pl.Series:
    text = text.fill_null("").str.strip_chars()
    return where(
        text,
        text.is_in(["None", "nan", "NaN", "null"]),
        lambda part: part.clear(len(part)).fill_null(""),
    )


def clean_space(text: pl.Expr) -> pl.Expr:
    """Runs of white space and control characters become one space; ends are trimmed."""
    return elementwise(_clean_space)(text)


def strip_html(text: pl.Expr) -> pl.Expr:
    """Visible text of an HTML fragment; plain text comes back as it was. Null becomes "".

    Tags are removed again after the entities are decoded: shops store doubly escaped markup
    (``&lt;br&gt;``).
    """
    return elementwise(_strip_html)(text)


def known(text: pl.Expr) -> pl.Expr:
    """Null, "None" and "nan" become "" (exports of the official files write missing text in these
    ways).
    """
    return elementwise(_known)(text)


def join_parts(parts: list[pl.Expr], separator: str = ". ") -> pl.Expr:
    """Join the non-empty parts, cut at TEXT_LIMIT characters."""
    filled = [pl.when(part != "").then(part) for part in parts]
    return pl.concat_str(filled, separator=separator, ignore_nulls=True).str.slice(0, TEXT_LIMIT)


def text_codes(texts: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """(n,) uint32 code of each text, and the distinct texts that the codes number, sorted."""
    names = texts.unique().sort()
    return texts.cast(pl.Enum(names)).to_physical().to_numpy().astype(np.uint32), names
