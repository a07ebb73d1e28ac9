"""Credit lies on the completion's own tokens: byte-level BPE, SentencePiece-like, WordPiece and an
unknown decoder.
"""

import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from ospo.credit import Segmentation, alignment, token_credit, token_spans

CORPUS = [
    "red cotton dress for the beach, looking for warm waterproof jacket. <answer> slim fit "
    "</answer>",
    "it isn't a naïve café dress! is it? no, size 12.5",
]


def _fast(tokenizer: Tokenizer, **special) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # Reasoning tags in real vocabularies are added tokens, of which only some are flagged special.
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True)])
    return _fast(tokenizer, pad_token="<pad>", eos_token="<eos>")


def sentencepiece() -> PreTrainedTokenizerFast:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<pad>", "<eos>"])
    )
    import json

    model = json.loads(trained.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _fast(tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>")


def wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=["[UNK]", "[PAD]", "[SEP]"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]")


class Shouting:
    """A decoder that no table knows: upper case, words joined by two spaces. Known by three members
    only.
    """

    words = ("<eos>", "red", "dress", "slim", "fit", "für")
    all_special_ids = (0,)

    def convert_ids_to_tokens(self, ids):
        return [self.words[i] for i in ids]

    def decode(self, ids):
        return "  ".join(self.words[i].upper() for i in ids)


TOKENIZERS = {"byte_level": byte_level, "sentencepiece": sentencepiece, "wordpiece": wordpiece}


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]()


TEXTS = [
    "red cotton dress , warm jacket. it isn't 12.5",
    "<think>for the beach</think> <answer>red dress, slim fit</answer>",
    "café 👗 dress ふちなし naïve",
    "   two  spaces ",
    "",
]


def _check(ids, tokenizer):
    text, spans = token_spans(ids, tokenizer)
    assert text == tokenizer.decode(ids, skip_special_tokens=True)
    assert spans.shape == (len(ids), 2)
    assert (np.diff(spans[:, 0]) >= 0).all()
    assert (np.diff(spans[:, 1]) >= 0).all()
    covered = np.zeros(len(text), dtype=bool)
    for a, b in spans:
        assert 0 <= a <= b <= len(text)
        covered[a:b] = True
    assert covered.all(), "a character belongs to no token"
    return text, spans


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_the_decoders_and_every_character_has_a_token(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    _check(ids, tokenizer)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    with_special = [eos, *ids[:2], eos, *ids[2:], eos, pad, pad]
    _, spans = _check(with_special, tokenizer)
    for t, i in enumerate(with_special):
        if i in (eos, pad):
            assert spans[t, 0] == spans[t, 1]


def test_each_token_has_its_own_characters(tokenizer):
    ids = tokenizer.encode("red dress, slim fit", add_special_tokens=False)
    text, spans = token_spans(ids, tokenizer)
    pieces = [text[a:b] for a, b in spans]
    assert "".join(pieces) == text
    assert all(pieces)
    for piece, token in zip(pieces, tokenizer.convert_ids_to_tokens(ids), strict=True):
        assert piece.strip() == token.replace("Ġ", "").replace("▁", "").removeprefix("##").strip()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_ids(data):
    # A policy samples any ids, not only those an encoder would give: broken bytes, lone byte
    # tokens, specials inside.
    tokenizer = _cached(data.draw(st.sampled_from(sorted(TOKENIZERS))))
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=24))
    _check(ids, tokenizer)


def _llama_2_spans(tokens):
    """Text and spans by the rule of a byte-fallback decoder, worked out token by token: a run of
    byte tokens is its UTF-8 text if it is valid, else one replacement character per byte; the
    text's first space goes.
    """
    pieces, run = [], []

    def end_run():
        raw = bytes(run)
        try:
            characters = raw.decode()
        except UnicodeDecodeError:
            pieces.extend((1, "\ufffd") for _ in raw)
        else:
            for character in characters:
                pieces.append((len(character.encode()), character))
        run.clear()

    for token in tokens:
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            run.append(int(token[3:5], 16))
        else:
            end_run()
            pieces.append((1, token.replace("▁", " ")))
    end_run()
    text, spans = "", []
    for count, piece in pieces:
        spans += [(len(text), len(text) + len(piece))] * count
        text += piece
    if text.startswith(" "):
        text, spans = text[1:], [(max(a - 1, 0), max(b - 1, 0)) for a, b in spans]
    return text, spans


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_byte_fallback_tokens_have_the_characters_of_their_own_bytes(data):
    tokenizer = _cached("sentencepiece")
    word = st.integers(0, len(tokenizer) - 1).map(lambda i: [i])
    byte = st.integers(0, 255)
    valid = st.characters(codec="utf-8").map(lambda c: list(c.encode()))
    broken = st.lists(byte, min_size=1, max_size=4)
    names = (valid | broken).map(lambda bs: [f"<0x{b:02X}>" for b in bs])
    parts = data.draw(st.lists(word | names.map(tokenizer.convert_tokens_to_ids), max_size=10))
    special = set(tokenizer.all_special_ids)
    ids = [i for part in parts for i in part if i not in special]
    text, spans = token_spans(ids, tokenizer)
    expected = _llama_2_spans(tokenizer.convert_ids_to_tokens(ids))
    assert (text, list(map(tuple, spans.tolist()))) == expected


def test_a_control_byte_before_a_broken_one():
    tokenizer = _cached("sentencepiece")
    tokens = ["<0x20>", "<0x02>", "<0x8E>", "<0x61>"]
    text, spans = token_spans(tokenizer.convert_tokens_to_ids(tokens), tokenizer)
    assert (text, spans.tolist()) == ("\ufffd" * 4, [[0, 1], [1, 2], [2, 3], [3, 4]])


_made: dict[str, PreTrainedTokenizerFast] = {}


def _cached(name):
    if name not in _made:
        _made[name] = TOKENIZERS[name]()
    return _made[name]


def test_characters_of_several_tokens_are_whole_in_each():
    tokenizer = byte_level()
    ids = tokenizer.encode("a👗b", add_special_tokens=False)
    text, spans = token_spans(ids, tokenizer)
    assert len(ids) == 6  # the emoji is four bytes, none of which were merged
    assert [text[a:b] for a, b in spans] == ["a", "👗", "👗", "👗", "👗", "b"]


def test_added_tokens_special_or_not():
    tokenizer = byte_level()
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    think = tokenizer.convert_tokens_to_ids("<think>")
    ids = [start, think, *tokenizer.encode("red", add_special_tokens=False)]
    text, spans = token_spans(ids, tokenizer)
    assert text == "<think>red"
    assert spans[0].tolist() == [0, 0]
    assert spans[1].tolist() == [0, 7]


def test_unknown_decoder():
    ids = [1, 2, 0, 3, 4, 5, *[1, 2, 3, 4, 5] * 8]
    text, spans = token_spans(ids, Shouting())
    assert text == Shouting().decode([i for i in ids if i])
    assert [text[a:b].strip() for a, b in spans[:6]] == ["RED", "DRESS", "", "SLIM", "FIT", "FÜR"]
    assert [text[a:b].strip() for a, b in spans[-5:]] == ["RED", "DRESS", "SLIM", "FIT", "FÜR"]


def test_windows_give_what_the_tables_give(tokenizer):
    # The slow way, used for unknown decoders, agrees with the vocabulary's own pieces.
    for text in TEXTS[:2]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        decoded, spans = token_spans(ids, tokenizer)
        assert alignment._decode_windows(ids, tokenizer, decoded).tolist() == spans.tolist()


def test_fast_enough(tokenizer):
    rng = np.random.default_rng(0)
    batch = rng.integers(0, len(tokenizer), size=(64, 786)).tolist()
    token_spans(batch[0], tokenizer)
    started = time.process_time()
    for ids in batch:
        token_spans(ids, tokenizer)
    assert (
        time.process_time() - started < 3
    )  # 0.1–0.2 s on an idle core; full prefixes would take minutes


# --- token credit
# --------------------------------------------------------------------------------------------------

SEG = Segmentation("red dress, slim fit", ((0, 10), (10, 19)))
PHI = np.array([0.5, -0.25])


def _credit(completion: str, tokenizer, extra_ids=()):
    ids = [*tokenizer.encode(completion, add_special_tokens=False), *extra_ids]
    text, spans = token_spans(ids, tokenizer)
    offset = text.index(SEG.text)
    return text, spans, offset, *token_credit(spans, offset, SEG, PHI)


def test_trap_1_credit_stays_on_its_tokens_behind_a_prefix(tokenizer):
    # Trap 1: laying the credit of the re-tokenised answer from completion token 0 on shifts it by
    # the prefix.
    if tokenizer.unk_token == "[UNK]":
        completion = (
            "looking for 12, it is a dress. red dress, slim fit"  # WordPiece cannot spell tags back
        )
    else:
        completion = "<think>é👗 for the beach</think> <answer>red dress, slim fit</answer>"
    text, spans, offset, credit, inside = _credit(
        completion, tokenizer, [tokenizer.eos_token_id, tokenizer.pad_token_id]
    )
    boundary = offset + 10
    for (a, b), c, share in zip(spans, credit, inside, strict=True):
        if b <= offset or a >= offset + len(SEG.text) or a == b:
            assert (c, share) == (0, 0)
        elif offset <= a and b <= boundary:
            assert (c, share) == (0.5, 1)
        elif a >= boundary and b <= offset + len(SEG.text):
            assert (c, share) == (-0.25, 1)
    assert (credit == 0.5).sum() >= 2
    assert (credit == -0.25).sum() >= 2
    # All of the answer's characters are accounted for, once.
    lengths = spans[:, 1] - spans[:, 0]
    if "👗" not in text:
        assert (inside * lengths).sum() == pytest.approx(len(SEG.text))


def test_trap_1_a_special_token_inside_the_answer_moves_nothing():
    tokenizer = byte_level()
    first = tokenizer.encode("red dress,", add_special_tokens=False)
    second = tokenizer.encode(" slim fit", add_special_tokens=False)
    text, spans = token_spans([*first, tokenizer.eos_token_id, *second], tokenizer)
    assert text == SEG.text
    credit, inside = token_credit(spans, 0, SEG, PHI)
    assert inside[len(first)] == 0
    assert credit[len(first)] == 0
    assert (credit[: len(first)] == 0.5).all()
    assert (credit[-1], inside[-1]) == (-0.25, 1)


def test_tokens_across_a_boundary_are_shared_by_overlap():
    spans = np.array([[0, 3], [3, 6], [6, 14], [14, 24], [24, 26]])
    # The answer begins at 5; its segments are [5, 15) and [15, 24).
    credit, inside = token_credit(spans, 5, SEG, PHI)
    assert inside == pytest.approx([0, 1 / 3, 1, 1, 0])
    assert credit == pytest.approx([0, 0.5, 0.5, (1 * 0.5 - 9 * 0.25) / 10, 0])


def test_equal_credits_stay_equal():
    seg = Segmentation("abcdefgh", ((0, 3), (3, 6), (6, 8)))
    credit, _ = token_credit(
        np.array([[0, 1], [1, 3], [3, 6], [6, 7], [7, 8]]), 0, seg, np.full(3, 0.1)
    )
    assert set(credit.tolist()) == {0.1}


def test_empty_answer_and_no_tokens():
    empty = Segmentation("", ())
    credit, inside = token_credit(np.array([[0, 3]]), 3, empty, np.zeros(0))
    assert (credit.tolist(), inside.tolist()) == ([0], [0])
    credit, inside = token_credit(np.zeros((0, 2)), 0, empty, np.zeros(0))
    assert len(credit) == len(inside) == 0


@pytest.mark.parametrize(
    ("offset", "phi", "message"),
    [
        (1, PHI, r"answer: span \(1, 20\) outside the completion's text of 19 characters"),
        (-1, PHI, "outside the completion's text"),
        (0, PHI[:1], r"phi: wrong length \(1,\), the text has 2 segments"),
        (0, np.array([0.1, np.nan]), "phi: non-finite"),
    ],
)
def test_bad_input_is_named(offset, phi, message):
    with pytest.raises(ValueError, match=message):
        token_credit(np.array([[0, 19]]), offset, SEG, phi)
