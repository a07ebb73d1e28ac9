"""Text clean-up as Polars expressions: HTML removed, entities decoded, white space collapsed.

Rust's regex engine has no backtracking, so no input can make these patterns slow.
"""

from functools import cache
from html import unescape
from html.entities import html5

import polars as pl

TEXT_LIMIT = 4000
"""Longest item text in characters; what is beyond is cut. Dense encoders read about 1,000."""

# What a browser never shows. An unclosed <script> hides everything after it, as in a browser.
_HIDDEN = r"(?is)<!--.*?(?:-->|$)|<script\b.*?(?:</script\s*>|$)|<style\b.*?(?:</style\s*>|$)"
# A tag starts with a letter, "/" or "!" right after "<": "a < b" and "<3" are text. Quoted attributes may hold ">".
_TAG = r"""(?s)<[/!]?[a-zA-Z](?:[^<>"']|"[^"]*"|'[^']*')*>"""
_BROKEN_TAG = r"(?s)<[/!]?[a-zA-Z][^<>]*(?:>|$)"
_TITLE_LIMIT = 160
_AFTER_HEAD = r"(?s)(?:[,|(\[{:;/–—0-9]| - | (?:for|with|by|in|from|of|and|that|para|con|de|y) ).*$"
# White space other than the plain space, and characters that show nothing.
_ODD_SPACE = r"[\s\p{Cc}\p{Cf}\p{Co}\p{Cn}&&[^ ]]"


@cache
def _entities() -> tuple[list[str], list[str]]:
    """Entities and the text each stands for: HTML 5's names, and numbers for Latin and general punctuation."""
    names = [f"&{name}" for name in html5 if name.endswith(";")]
    codes = [*range(32, 592), *range(0x2000, 0x2070), *range(0x20A0, 0x20C0), *range(0x2100, 0x2150), 0x2605, 0xFEFF]
    numbers = [form for code in codes for form in (f"&#{code};", f"&#x{code:x};", f"&#x{code:X};", f"&#0{code};")]
    forms = sorted({*names, *numbers})
    return forms, [unescape(form) for form in forms]


def clean_space(text: pl.Expr) -> pl.Expr:
    """Runs of white space and control characters become one space; ends are trimmed."""
    return text.str.replace_all(_ODD_SPACE, " ").str.replace_all(" {2,}", " ").str.strip_chars(" ")


def _strip_tags(text: pl.Expr) -> pl.Expr:
    return text.str.replace_all(_HIDDEN, " ").str.replace_all(_TAG, " ").str.replace_all(_BROKEN_TAG, " ")


def strip_html(text: pl.Expr) -> pl.Expr:
    """Visible text of an HTML fragment; plain text comes back as it was. Null becomes "".

    Tags are removed again after the entities are decoded: shops store doubly escaped markup (``&lt;br&gt;``).
    """
    text = _strip_tags(text.fill_null(""))
    forms, replacements = _entities()
    text = text.str.replace_many(forms, replacements, leftmost=True).str.replace_all(r"&#[xX]?[0-9a-fA-F]+;", " ")
    return clean_space(_strip_tags(text))


def known(text: pl.Expr) -> pl.Expr:
    """Null, "None" and "nan" become "" (exports of the official files write missing text in these ways)."""
    text = text.fill_null("").str.strip_chars()
    return pl.when(text.is_in(["None", "nan", "NaN", "null"])).then(pl.lit("")).otherwise(text)


def join_parts(parts: list[pl.Expr], separator: str = ". ") -> pl.Expr:
    """Join the non-empty parts, cut at TEXT_LIMIT characters."""
    filled = [pl.when(part != "").then(part) for part in parts]
    return pl.concat_str(filled, separator=separator, ignore_nulls=True).str.slice(0, TEXT_LIMIT)


def head_noun(title: pl.Expr) -> pl.Expr:
    """Head noun of a product title, roughly: the last word before the first comma, bracket, digit, "for", "with" …

    "Acme Linen Shirt for Men, Blue" → "shirt". Plurals lose their "s". "" where the title holds no word.
    """
    title = title.str.slice(0, _TITLE_LIMIT).str.to_lowercase()
    lead = title.str.replace(_AFTER_HEAD, "")
    lead = pl.when(lead.str.contains(r"\p{L}")).then(lead).otherwise(title)
    word = lead.str.replace(r"[^\p{L}]+$", "").str.extract(r"([\p{L}'’-]+)$", 1).fill_null("").str.strip_chars("'’-")
    plural = word.str.ends_with("s") & ~word.str.ends_with("ss") & (word.str.len_bytes() > 3)
    return pl.when(plural).then(word.str.strip_suffix("s")).otherwise(word)
