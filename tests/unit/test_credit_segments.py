"""Segments cover any text; phrases are what a reader would call phrases."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ospo.credit import Segmentation, merge_segments, segment, segment_many, segments
from ospo.credit.segments import load_tagger

KINDS = ["phrases", "delimiters", "sentences", "tokens"]
UNIONS = ["none", "sentences", "clauses"]


def units(text: str, kind: str = "phrases") -> list[str]:
    return [unit.strip() for unit in segment(text, kind).units]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "red cotton dress floral for beach , slim fit",
            ["red cotton dress floral", "for beach ,", "slim fit"],
        ),
        (
            "black slim fit polo shirt with short sleeves ; cotton pique . summer",
            ["black slim fit polo shirt", "with short sleeves ;", "cotton pique .", "summer"],
        ),
        (
            "women's high waisted wide leg jeans in dark blue, relaxed fit",
            ["women's high waisted", "wide leg jeans", "in dark blue,", "relaxed fit"],
        ),
        (
            "steel water bottle 32 oz with straw lid",
            ["steel water bottle", "32 oz", "with straw lid"],
        ),
        ("looking for summer dress", ["looking for summer dress"]),
        ("black and white striped t-shirt", ["black and white striped t-shirt"]),
        ("hose 3.5mm, 1,000 pieces", ["hose 3.5mm,", "1,000 pieces"]),
    ],
)
def test_phrases(text, expected):
    assert units(text) == expected


def test_phrases_have_at_most_five_content_words():
    text = "blue soft warm long thick fluffy heavy knitted merino wool winter jumper"
    assert len(units(text)) >= 3
    assert all(len(unit.split()) <= 5 for unit in units(text))


def test_connecting_words_join_a_neighbour():
    for unit in units("a jacket for the rain and a coat with the hood of wool, and for"):
        assert unit.strip(" ,") not in {
            "a",
            "for",
            "for the",
            "and",
            "and a",
            "with",
            "with the",
            "of",
            "and for",
        }


def test_clauses_of_connecting_words_join_the_phrase_before():
    assert units("red dress, and, for the, slim fit") == ["red dress, and, for the,", "slim fit"]
    assert units("and, red dress") == ["and,", "red dress"]


def test_delimiters_sentences_and_tokens():
    text = "red dress, slim fit. For beach; 3.5 mm"
    assert units(text, "delimiters") == ["red dress,", "slim fit.", "For beach;", "3.5 mm"]
    assert units(text, "sentences") == ["red dress, slim fit.", "For beach; 3.5 mm"]
    assert units(text, "tokens") == ["red", "dress,", "slim", "fit.", "For", "beach;", "3.5", "mm"]
    assert units("red\ndress\r\nblue", "sentences") == ["red", "dress", "blue"]
    assert units("红色连衣裙，夏季。新款", "delimiters") == ["红色连衣裙，", "夏季。", "新款"]


def test_chinese_and_japanese_are_cut():
    assert len(units("红色连衣裙夏季女装新款")) == 3
    assert units("ふちなしメガネ軽量", "tokens") == ["ふちなし", "メガネ", "軽量"]


def test_repeated_phrases_stay_separate_players():
    assert units("fit,,,,,fit, fit") == ["fit,,,,,", "fit,", "fit"]


def test_unions_group_neighbours():
    seg = segment("red dress with lace, slim fit and cheap price. For beach", unions="clauses")
    assert [[seg.units[i].strip() for i in union] for union in seg.unions] == [
        ["red dress", "with lace,"],
        ["slim fit"],
        ["and cheap price."],
        ["For beach"],
    ]
    by_sentence = segment(seg.text, unions="sentences").unions
    assert by_sentence == ((0, 1, 2, 3), (4,))
    assert segment(seg.text).unions == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    ["", "dress", " ", "\n", "!!!", ",", "👗", "👗👠 🧥", "a" * 10_000, "for the", "\x00\u200b"],
)
def test_odd_texts(text, kind):
    for unions in UNIONS:
        seg = segment(text, kind, unions)
        assert "".join(seg.units) == text
        if kind != "tokens":
            assert len(seg) == (1 if text else 0)


@given(st.text(alphabet=st.sampled_from("ab ,.;:!?\n-'あ漢カ字é👗1/|ßñ\u3000\u200d"), max_size=60))
@settings(deadline=None, max_examples=150)
def test_spans_cover_any_text(text):
    for kind in KINDS:
        seg = segment(text, kind, "clauses")
        assert "".join(seg.units) == text
        assert all(unit for unit in seg.units)
        if text:
            assert sorted(i for union in seg.unions for i in union) == list(range(len(seg)))
            assert [i for union in seg.unions for i in union] == list(range(len(seg)))


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=50)
def test_spans_cover_arbitrary_unicode(text):
    assert "".join(segment(text).units) == text


def test_ten_thousand_characters():
    text = ("looking for a red cotton dress with long sleeves, slim fit and soft lining. " * 140)[
        :10_000
    ]
    started = time.process_time()
    seg = segment(text, unions="clauses")
    assert time.process_time() - started < 10
    assert "".join(seg.units) == text
    assert len(seg) > 300
    merged = merge_segments(seg, 16)
    assert len(merged) == 16
    assert "".join(merged.units) == text
    assert [i for union in merged.unions for i in union] == list(range(16))


def test_text_without_punctuation_is_tagged_in_parts():
    text = "red cotton dress with long sleeves " * 300
    seg = segment(text)
    assert "".join(seg.units) == text
    assert len(seg) > 300


def test_lone_surrogates():
    text = "red \ud800dress, slim \udfff fit"
    assert "".join(segment(text).units) == text


def test_threads_may_segment_at_once():
    from concurrent.futures import ThreadPoolExecutor

    texts = [f"red dress number {i}, slim fit" for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert [s.text for s in pool.map(segment, texts)] == texts


def test_merging_stays_within_unions_where_it_can():
    seg = segment("red dress, warm coat with hood, slim fit", unions="clauses")
    assert len(seg) == 4
    merged = merge_segments(seg, 3)
    assert [unit.strip(" ,") for unit in merged.units] == [
        "red dress",
        "warm coat with hood",
        "slim fit",
    ]
    assert merge_segments(seg, 1).spans == ((0, len(seg.text)),)
    with pytest.raises(ValueError, match="limit of 0"):
        merge_segments(seg, 0)


def test_batch_gives_what_single_calls_give():
    texts = [
        f"{colour} {thing} for {n} people, size {n}"
        for colour in ("red", "dark blue")
        for thing in ("tent", "warm sleeping bag")
        for n in (2, 4)
    ]
    batch = segment_many(texts, unions="clauses")
    assert [s.spans for s in batch] == [segment(text, unions="clauses").spans for text in texts]
    assert [s.text for s in segment_many([texts[0], texts[0], ""])] == [texts[0], texts[0], ""]


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="unknown kind 'words'"):
        segment("x", "words")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unions: unknown kind 'phrases'"):
        segment("x", "phrases", "phrases")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (((0, 3), (3, 9)), "outside the text of 8 characters"),
        (((-1, 8),), "outside the text"),
        (((0, 3), (4, 8)), "does not begin where the one before it ends"),
        (((0, 5),), "the spans end at 5, the text at 8"),
        (((0, 0), (0, 8)), "outside the text"),
    ],
)
def test_spans_that_do_not_cover_are_refused(spans, message):
    with pytest.raises(ValueError, match=message):
        Segmentation("red coat", spans)


def new_texts(first: int, count: int) -> list[str]:
    """Texts of words that no vocabulary holds."""
    return [f"warm zq{i} jacket with kx{i} lining" for i in range(first, first + count)]


def test_the_tagger_forgets_the_words_of_texts() -> None:
    """spaCy keeps every new string for ever unless told otherwise."""
    segment_many(new_texts(0, 50))
    strings = load_tagger().vocab.strings
    before = len(strings)
    found = segment_many(new_texts(1000, 400))
    assert all(len(one) > 1 for one in found)
    assert "zq1007" not in strings
    assert len(strings) - before < 20


def test_segments_of_old_texts_are_forgotten(monkeypatch):
    """A training run says texts without end: what is remembered of them has a bound."""
    monkeypatch.setattr(segments, "CACHE_TEXTS", 5)
    for i in range(12):
        segment(f"blue linen dress {i}, soft cotton lining {i}")
    assert len(segments._cache) == 5
    assert len(segments._clause_cache) == 5
    assert (
        "blue linen dress 11, soft cotton lining 11",
        "phrases",
        "none",
        "en",
    ) in segments._cache
