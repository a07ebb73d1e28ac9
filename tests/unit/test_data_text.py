"""Clean-up of shop texts: HTML, entities, white space, head nouns."""

import time

import polars as pl
import pytest

from ospo.data.head_noun import head_noun
from ospo.data.text import TEXT_LIMIT, join_parts, known, strip_html


def _apply(function, *values: str | None) -> list[str]:
    return (
        pl.DataFrame({"t": pl.Series(values, dtype=pl.String)})
        .select(t=function(pl.col("t")))["t"]
        .to_list()
    )


@pytest.mark.parametrize(
    ("html", "text"),
    [
        (None, ""),
        ("plain text", "plain text"),
        ("<p>One</p><p>Two</p>", "One Two"),
        ("bold<b>er</b>", "bold er"),
        ("soap &amp; water &lt;3", "soap & water <3"),
        ("size 3 < 5 and 7 > 6", "size 3 < 5 and 7 > 6"),
        ("I <3 it", "I <3 it"),
        ('<a title="a > b" href=x>link</a>', "link"),
        ("<script>alert('x')</script>shirt", "shirt"),
        ("<SCRIPT type=x>alert(1)</ScRiPt >shirt", "shirt"),
        ("shirt<script>never closed", "shirt"),
        ("<style>p{}</style><!-- hidden -->shirt", "shirt"),
        ("&lt;br&gt;twice escaped&lt;script&gt;x&lt;/script&gt;", "twice escaped"),
        ("caf&eacute; &#233; &#xE9; &#x1F600;", "café é é"),
        ("a&nbsp;b\u00a0c\t\nd\x00e\u200bf", "a b c d e f"),
        ("cut <img src='", "cut"),
        ("<p it's>ok</p>", "ok"),
        ("AT&T &unknown; &amp", "AT&T &unknown; &amp"),
    ],
)
def test_strip_html(html, text):
    assert _apply(strip_html, html) == [text]


def test_hostile_html_takes_no_time():
    hostile = [
        "<" * 200_000,
        "<a " * 100_000,
        "<!--" * 50_000,
        "&lt;" * 100_000,
        '<a "' * 80_000,
        "a" * 1_000_000,
    ]
    start = time.perf_counter()
    _apply(strip_html, *hostile)
    assert time.perf_counter() - start < 10


def test_known_and_join():
    assert _apply(known, None, "None", " nan ", "Noneville", "") == ["", "", "", "Noneville", ""]
    frame = pl.DataFrame({"a": ["x", "", "y" * (TEXT_LIMIT + 9)], "b": ["z", "z", ""]})
    joined = frame.select(t=join_parts([pl.col("a"), pl.col("b")]))["t"].to_list()
    assert joined == ["x. z", "z", "y" * TEXT_LIMIT]


@pytest.mark.parametrize(
    ("title", "noun"),
    [
        ("Acme Linen Shirt for Men, Blue", "shirt"),
        ("Power Steering Hoses", "hose"),
        ("Glass (2 pack)", "glass"),
        ("Samsonite Leather Attache, Black", "attache"),
        ("for rent", "rent"),
        ("12345", ""),
        ("", ""),
    ],
)
def test_head_noun(title, noun):
    assert _apply(head_noun, title) == [noun]
