"""The head noun of a product's title, by a language's rules: a guess at its category where data
have none.
"""

import re

import polars as pl

from ospo.config.languages import LANGUAGES, Language
from ospo.data.text import elementwise, where

_TITLE_LIMIT = 160
_AFTER_HEAD = r"(?s)(?:[,|(\[{:;/–—0-9]| - | (?:for|with|by|in|from|of|and|that|para|con|de|y) ).*$"
# Of other languages: full-width forms too, and what stands in brackets before the title.
_LEADING_BRACKETS = r"^\s*(?:[\[【（(［《][^\]】）)］》]*[\]】）)］》]\s*)+"
_MARKS = r",|(\[{:;/–—（【［《、，｜：；／"
_SPACED_WORD = r"\p{L}[\p{L}'’-]*"
# One script at a time: 防水スニーカー is 防水 and スニーカー.
_SCRIPT_WORD = (
    r"[\p{Katakana}ー]+|[\p{Han}々]+\p{Hiragana}*|\p{Hangul}+|\p{Hiragana}+|[\p{Latin}'’-]+"
)


def _english(title: pl.Series) -> pl.Series:
    title = title.str.slice(0, _TITLE_LIMIT).str.to_lowercase()
    lead = title.str.replace(_AFTER_HEAD, "")
    lead = lead.zip_with(lead.str.contains(r"\p{L}"), title)
    word = (
        lead.str.replace(r"[^\p{L}]+$", "")
        .str.extract(r"([\p{L}'’-]+)$", 1)
        .fill_null("")
        .str.strip_chars("'’-")
    )
    plural = word.str.ends_with("s") & ~word.str.ends_with("ss") & (word.str.len_bytes() > 3)
    return where(word, plural, lambda part: part.str.strip_suffix("s"))


def _unless_none(words: pl.Series, condition: pl.Expr) -> pl.Series:
    """The words of each list that meet ``condition``; all of them where none does."""
    chosen = words.list.eval(pl.element().filter(condition))
    return chosen.zip_with(chosen.list.len() > 0, words)


def _of_language(title: pl.Series, language: Language, code: str) -> pl.Series:
    title = title.str.slice(0, _TITLE_LIMIT).str.replace(_LEADING_BRACKETS, "")
    separators = "|".join(map(re.escape, language.separators.split()))
    words = f"| (?:{separators}) " if separators else ""
    # A number ends the part with the noun; a noun that comes first stands before it or, in "pack 3
    # camisetas", behind it.
    digits = "" if language.head == "first" else "0-9０-９"
    lead = title.str.replace(f"(?is)(?:[{_MARKS}{digits}]| - {words}).*$", "")
    lead = lead.zip_with(lead.str.contains(r"\p{L}"), title)
    pattern = _SCRIPT_WORD if language.bigrams else _SPACED_WORD
    word = pl.element()
    skipped = word.str.to_lowercase().is_in(language.skipped.split())
    # Sizes and units ("XL", "cm") name no kind, unless nothing else is there.
    short = ~word.str.contains(r"[\p{Han}\p{Katakana}\p{Hangul}]|...")
    found = _unless_none(_unless_none(lead.str.extract_all(pattern), ~skipped), ~short)
    if code == "de":  # its nouns are written with a capital letter
        found = _unless_none(found, word.str.contains(r"^\p{Lu}"))
    head = found.list.first() if language.head == "first" else found.list.last()
    return head.fill_null("").str.to_lowercase().str.strip_chars("'’-")


def head_noun(title: pl.Expr, language: str = "en", brand: pl.Expr | None = None) -> pl.Expr:
    """Head noun of a product title in lower case, roughly; "" where the title holds no word.

    English: the last word before the first comma, bracket, digit, "for", "with" …, without a plural
    "s": "Acme Linen Shirt for Men, Blue" → "shirt". Other languages: the last or (Spanish, French,
    Italian, Portuguese) the first word of that part, words such as "Damen" and "pack" left out, and
    ``brand`` where the title begins with it; ``one_form`` joins singular and plural afterwards.
    """
    if language == "en":
        return elementwise(_english)(title)
    rules = LANGUAGES[language]
    if brand is not None:
        begins = (brand != "") & title.str.to_lowercase().str.starts_with(brand.str.to_lowercase())
        title = pl.when(begins).then(title.str.slice(brand.str.len_chars())).otherwise(title)
    return elementwise(lambda part: _of_language(part, rules, language))(title)


def one_form(words: pl.Series, language: str) -> pl.Series:
    """``words`` with those of one stem written alike: as most of them are, the first of the
    alphabet among equals. English head nouns, which have lost their plural, stay as they are.
    """
    name = LANGUAGES[language].snowball
    if not name or language == "en":
        return words
    import Stemmer

    counts = words.value_counts(name="times")
    forms = counts[words.name].to_list()
    counts = counts.with_columns(stem=pl.Series(Stemmer.Stemmer(name).stemWords(forms)))
    counts = counts.sort(["times", words.name], descending=[True, False])
    counts = counts.with_columns(form=pl.col(words.name).first().over("stem"))
    return words.replace_strict(counts[words.name], counts["form"])
