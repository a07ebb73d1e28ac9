"""From character spans to the completion's own token ids. Nothing here tokenises text: that would
move the credit.

The tokenizer is known by three members only: ``decode(ids)``, ``convert_ids_to_tokens(ids)`` and
``all_special_ids``.
"""

import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ospo.credit.segments import Segmentation

REPLACEMENT = "\ufffd"


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of byte-level BPE (GPT-2) → bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    if all(c in _BYTES for c in token):
        return bytes(_BYTES[c] for c in token)
    return token.encode(
        "utf-8", "surrogatepass"
    )  # an added token stands in the vocabulary as it is


def _sentencepiece(token: str) -> bytes:
    byte = _lone_byte(token)
    return (
        token.replace("▁", " ").encode("utf-8", "surrogatepass") if byte is None else bytes([byte])
    )


def _lone_byte(token: str) -> int | None:
    """The byte of a byte-fallback token such as <0x0A>."""
    match = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return int(match[1], 16) if match else None


def _wordpiece(token: str) -> bytes:
    text = token[2:] if token.startswith("##") else " " + token
    # The decoder's own clean-up, which works token by token.
    for dirty, clean in _CLEAN_UP:
        text = text.replace(dirty, clean)
    return text.encode("utf-8", "surrogatepass")


_CLEAN_UP = (
    *((" " + mark, mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((" " + ending, ending) for ending in ("n't", "'m")),
    (" do not", " don't"),
    *((" " + ending, ending) for ending in ("'s", "'ve", "'re")),
)
_READERS = (_byte_level, _sentencepiece, _wordpiece)


class _Tables:
    """What each token id contributes to the text, by each way of reading a vocabulary; filled as
    ids are met.
    """

    def __init__(self, tokenizer: Any):
        # The decoder also skips added tokens that are flagged special without being one of the
        # named ones.
        added = getattr(tokenizer, "added_tokens_decoder", {})
        flagged = {int(i) for i, token in added.items() if getattr(token, "special", False)}
        self.special = flagged | {int(i) for i in tokenizer.all_special_ids}
        self.pieces: list[dict[int, bytes]] = [{} for _ in _READERS]
        self.lone: set[int] = set()  # ids of byte-fallback tokens
        self.preferred = 0

    def read(self, tokenizer: Any, ids: list[int], reader: int) -> list[bytes]:
        table = self.pieces[reader]
        new = sorted({i for i in ids if i not in table})
        if new:
            for i, token in zip(new, tokenizer.convert_ids_to_tokens(new), strict=True):
                table[i] = b"" if token is None else _READERS[reader](token)
                if token is not None and _lone_byte(token) is not None:
                    self.lone.add(i)
        pieces = [table[i] for i in ids]
        if _READERS[reader] is _sentencepiece and self.lone:
            self._fall_back(ids, pieces)
        elif _READERS[reader] is _wordpiece and ids:
            pieces[0] = tokenizer.convert_ids_to_tokens(ids[:1])[0].encode("utf-8", "surrogatepass")
        return pieces

    def _fall_back(self, ids: list[int], pieces: list[bytes]) -> None:
        """A run of byte tokens that is not UTF-8 decodes to one replacement character a byte."""
        k = 0
        while k < len(ids):
            first = k
            while k < len(ids) and ids[k] in self.lone:
                k += 1
            if k > first:
                try:
                    b"".join(pieces[first:k]).decode("utf-8")
                except UnicodeDecodeError:
                    pieces[first:k] = [REPLACEMENT.encode()] * (k - first)
            k += 1


_tables: WeakKeyDictionary[Any, _Tables] = WeakKeyDictionary()


def token_spans(ids: Sequence[int], tokenizer: Any) -> tuple[str, np.ndarray]:
    """The completion's text and each token's character span in it: (text, (T, 2) int64 of [start,
    end)).

    ``text`` is ``tokenizer.decode`` of the ids without special tokens. Spans are in order. Special
    tokens have length zero, at the place where they stand. Where several tokens make one character
    (byte-level vocabularies), each of them has the whole of that character.

    Each id's bytes are read from the vocabulary as byte-level BPE, SentencePiece or WordPiece
    would, and used where they spell exactly the decoder's text; for any other decoder the text is
    decoded in a sliding window.
    """
    ids = [int(i) for i in ids]
    tables = _tables.get(tokenizer)
    if tables is None:
        tables = _tables[tokenizer] = _Tables(tokenizer)
    kept = [t for t, i in enumerate(ids) if i not in tables.special]
    kept_ids = [ids[t] for t in kept]
    text = tokenizer.decode(kept_ids) if kept_ids else ""
    spans_K = None
    for attempt in range(len(_READERS)):
        reader = (tables.preferred + attempt) % len(_READERS)
        spans_K = _spell(tables.read(tokenizer, kept_ids, reader), text)
        if spans_K is not None:
            tables.preferred = reader
            break
    if spans_K is None:
        spans_K = _decode_windows(kept_ids, tokenizer, text)
    spans_T2 = np.zeros((len(ids), 2), dtype=np.int64)
    spans_T2[kept] = spans_K
    position = 0
    kept_set = set(kept)
    for t in range(len(ids)):
        if t in kept_set:
            position = int(spans_T2[t, 1])
        else:
            spans_T2[t] = position
    return text, spans_T2


def _characters(data: bytes) -> tuple[str, np.ndarray]:
    """UTF-8 with U+FFFD for each invalid part, and the number of the character that each byte
    belongs to.
    """
    owners = np.empty(len(data), dtype=np.int64)
    text: list[str] = []
    count = position = 0
    while position < len(data):
        try:
            valid, bad = data[position:].decode("utf-8"), 0
            length = len(data) - position
        except UnicodeDecodeError as error:
            valid, bad, length = (
                data[position : position + error.start].decode("utf-8"),
                error.end - error.start,
                error.start,
            )
        chunk = np.frombuffer(data, dtype=np.uint8, count=length, offset=position)
        owners[position : position + length] = count - 1 + np.cumsum((chunk & 0xC0) != 0x80)
        text.append(valid)
        count += len(valid)
        position += length
        if bad:
            owners[position : position + bad] = count
            text.append(REPLACEMENT)
            count += 1
            position += bad
    return "".join(text), owners


def _spell(pieces: list[bytes], text: str) -> np.ndarray | None:
    """Spans (K, 2) if the pieces, less one leading space perhaps, spell ``text``; else None."""
    data = b"".join(pieces)
    spelled, owners = _characters(data)
    if spelled == text:
        shift = 0
    elif spelled[:1] == " " and spelled[1:] == text:
        shift = 1
    else:
        return None
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    starts = ends - np.array([len(piece) for piece in pieces], dtype=np.int64)
    spans = np.zeros((len(pieces), 2), dtype=np.int64)
    filled = ends > starts
    if filled.any():
        spans[filled, 0] = owners[starts[filled]]
        spans[filled, 1] = owners[ends[filled] - 1] + 1
    spans = np.maximum(spans - shift, 0)
    # A token without bytes stands where the one before it ends.
    for k in np.flatnonzero(~filled):
        spans[k] = spans[k - 1, 1] if k else 0
    return spans


def _decode_windows(ids: list[int], tokenizer: Any, text: str) -> np.ndarray:
    """Spans (K, 2) by decoding: each token's characters are what it adds to the text of the tokens
    just before it.
    """
    lengths = _window_lengths(ids, tokenizer)
    if lengths[-1] != len(
        text
    ):  # a decoder that looks further back: the whole prefix, for every token
        lengths = [
            0,
            *(len(tokenizer.decode(ids[: k + 1]).rstrip(REPLACEMENT)) for k in range(len(ids))),
        ]
    ends = np.minimum(np.maximum.accumulate(np.array(lengths[1:], dtype=np.int64)), len(text))
    ends[-1:] = len(text)
    spans = np.stack([np.concatenate([[0], ends])[:-1], ends], axis=1)
    # Tokens that complete no character share the one that a later token completes.
    for k in range(len(ids) - 2, -1, -1):
        if spans[k, 0] == spans[k, 1] == spans[k + 1, 0] < spans[k + 1, 1]:
            spans[k, 1] += 1
    return spans


def _window_lengths(ids: list[int], tokenizer: Any) -> list[int]:
    """Characters that stand after 0 … K tokens, each decoded behind the few tokens that
    came last.
    """
    lengths = [0]
    start = read = 0  # tokens [start, read) are the context, whose text is known
    for k in range(len(ids)):
        known = tokenizer.decode(ids[start:read]) if read > start else ""
        text = tokenizer.decode(ids[start : k + 1])
        if text.endswith(REPLACEMENT) and k + 1 < len(
            ids
        ):  # bytes of a character that is not complete yet
            lengths.append(lengths[-1])
            continue
        done = lengths[-1] + max(0, len(text) - len(known))
        lengths.append(done)
        start, read = read, k + 1
    return lengths


def token_credit(
    spans_T2: np.ndarray, answer_offset: int, segmentation: Segmentation, phi_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each token's credit φ̃ and the share of its characters inside the answer: ((T,) float64, (T,)
    float64).

    answer_offset: character of the completion's text at which the answer begins. A token across a
    boundary takes the mean of its segments' credits weighted by the characters it has in each;
    tokens outside have credit 0, inside 0.

    Raises ValueError for phi of the wrong length or not finite, and for an answer outside the
    completion's text.
    """
    phi_N = np.asarray(phi_N, dtype=np.float64)
    spans_T2 = np.asarray(spans_T2, dtype=np.int64).reshape(-1, 2)
    if phi_N.shape != (len(segmentation),):
        raise ValueError(
            f"phi: wrong length {phi_N.shape}, the text has {len(segmentation)} segments"
        )
    if not np.isfinite(phi_N).all():
        raise ValueError("phi: non-finite credit")
    end = int(spans_T2[:, 1].max()) if len(spans_T2) else 0
    if answer_offset < 0 or (segmentation.text and answer_offset + len(segmentation.text) > end):
        raise ValueError(
            f"answer: span ({answer_offset}, {answer_offset + len(segmentation.text)}) outside the "
            "completion's "
            f"text of {end} characters"
        )
    if not len(segmentation):
        return np.zeros(len(spans_T2)), np.zeros(len(spans_T2))
    bounds = np.array([0, *(b for _, b in segmentation.spans)]) + answer_offset
    # Integrals of the credit and of 1 up to each character; a token's share is a difference of two
    # of them.
    credit_integral = np.concatenate([[0.0], np.cumsum(phi_N * np.diff(bounds))])
    starts = np.clip(spans_T2[:, 0], bounds[0], bounds[-1])
    ends = np.clip(spans_T2[:, 1], bounds[0], bounds[-1])
    overlap = ends - starts
    length = spans_T2[:, 1] - spans_T2[:, 0]
    inside = np.where(length > 0, overlap / np.maximum(length, 1), 0.0)
    first = np.searchsorted(bounds, starts, side="right") - 1
    last = np.searchsorted(bounds, ends, side="left") - 1
    area = np.interp(ends, bounds, credit_integral) - np.interp(starts, bounds, credit_integral)
    shared = area / np.maximum(overlap, 1)
    # Within one segment take its credit itself: equal credits must stay equal to the last bit.
    own = phi_N[np.clip(first, 0, len(phi_N) - 1)]
    return np.where(overlap > 0, np.where(first == last, own, shared), 0.0), inside
