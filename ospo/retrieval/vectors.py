"""Item vectors on disk: one safetensors file with the item ids and a fingerprint of what made them.

Writing goes chunk by chunk into a part file, so that a killed run resumes where it stopped;
reading maps the file into memory, so that a catalogue of millions of items needs no more
memory than the rows in use. Same input, same bytes, however often the writing was interrupted.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ospo.errors import InputError
from ospo.files import atomic_file

# Items per batch, encoded together and written together; a kill costs at most one. Batches are
# counted from the first item, so that a resumed file is made of the same batches.
CHUNK = 4096
_AGAIN = "delete it; `dvc repro` writes it anew"
_CHECKED_ROWS = 1 << 13


def texts_digest(item_ids: Sequence[str], item_texts: Sequence[str]) -> str:
    """Hex sha256 over ids and texts in order; lengths go in too, so that no two catalogues share a
    digest.
    """
    digest = hashlib.sha256()
    for text in (*item_ids, *item_texts):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _header(items: int, dimensions: int, id_bytes: int, fingerprint: str) -> bytes:
    """The head of a safetensors file (length, JSON padded to 8 bytes) with the vectors first, then
    the ids.

    https://github.com/huggingface/safetensors#format; its own writer wants all tensors in memory at
    once.
    """
    vector_bytes = items * dimensions * 4
    head = {
        "__metadata__": {
            "ospo": json.dumps({"fingerprint": fingerprint, "items": items}, sort_keys=True)
        },
        "vectors": {
            "dtype": "F32",
            "shape": [items, dimensions],
            "data_offsets": [0, vector_bytes],
        },
        "item_ids": {
            "dtype": "U8",
            "shape": [id_bytes],
            "data_offsets": [vector_bytes, vector_bytes + id_bytes],
        },
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _id_bytes(item_ids: Sequence[str]) -> bytes:
    return "\n".join(item_ids).encode("utf-8", "surrogatepass")


def save_vectors(
    path: str | Path, item_ids: Sequence[str], vectors_ID: np.ndarray, fingerprint: str
) -> None:
    """Write vectors (I, D) beside their ids, as float32, atomically."""
    ids = _id_bytes(item_ids)
    vectors_ID = np.ascontiguousarray(vectors_ID, dtype="<f4")
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(_header(len(item_ids), vectors_ID.shape[1], len(ids), fingerprint))
        stream.write(vectors_ID.data)
        stream.write(ids)


def write_resumably(
    path: str | Path,
    item_ids: Sequence[str],
    encode: Callable[[int, int], np.ndarray],
    fingerprint: str,
    part: str | Path | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Write the vectors of ``item_ids``, resuming where an earlier call stopped; returns how many
    were encoded.

    encode: (begin, end) → vectors (end - begin, D) float32 of those items. part: where an
    unfinished file waits (default: a hidden one beside ``path``). progress: called with the number
    of rows written so far. A finished file of the same fingerprint stays as it is. Raises
    InputError where the disk is full or may not be written.
    """
    path = Path(path)
    part = Path(part) if part else path.with_name(f".{path.name}.part")
    items = len(item_ids)
    if path.exists() and _head_fits(path, item_ids, fingerprint):
        progress(items)
        return 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        return _write_part(path, part, item_ids, encode, fingerprint, progress)
    except OSError as error:
        fix = (
            "free disk space or choose another folder, then run the same command again: it resumes"
        )
        raise InputError(path, "", f"cannot be written ({error.strerror or error})", fix) from None


def _write_part(
    path: Path,
    part: Path,
    item_ids: Sequence[str],
    encode: Callable[[int, int], np.ndarray],
    fingerprint: str,
    progress: Callable[[int], None],
) -> int:
    items, ids = len(item_ids), _id_bytes(item_ids)
    begin = done = 0
    if dimensions := _part_dimensions(part, items, len(ids), fingerprint):
        head = len(_header(items, dimensions, len(ids), fingerprint))
        begin = min((part.stat().st_size - head) // (4 * dimensions), items)
        if begin < items:  # a batch that was cut short is encoded again as a whole
            begin -= begin % CHUNK
        done = begin
    with part.open("r+b" if dimensions else "wb") as stream:
        if dimensions:
            stream.truncate(head + done * 4 * dimensions)  # a batch or ids that a kill cut short
            stream.seek(0, os.SEEK_END)
        progress(done)
        while done < items or not dimensions:
            vectors = np.ascontiguousarray(encode(done, min(done + CHUNK, items)), dtype="<f4")
            if not dimensions:
                dimensions = vectors.shape[1]
                stream.write(_header(items, dimensions, len(ids), fingerprint))
            stream.write(vectors.data)
            stream.flush()
            os.fsync(
                stream.fileno()
            )  # after a power cut, too, the file holds as many rows as its size says
            done += len(vectors)
            progress(done)
        stream.write(ids)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
    return items - begin


def _part_dimensions(part: Path, items: int, id_bytes: int, fingerprint: str) -> int:
    """Dimensions of an unfinished file that this catalogue and encoder began; 0: none,
    begin anew.
    """
    if not part.is_file():
        return 0
    with part.open("rb") as stream:
        start = stream.read(1 << 16)
    try:
        length = int.from_bytes(start[:8], "little")
        dimensions = int(json.loads(start[8 : 8 + length])["vectors"]["shape"][1])
    except (ValueError, KeyError, IndexError, TypeError):
        return 0
    head = _header(items, dimensions, id_bytes, fingerprint)
    return dimensions if dimensions > 0 and start[: len(head)] == head else 0


def _head_fits(path: Path, item_ids: Sequence[str], fingerprint: str) -> bool:
    try:
        return _metadata(path)["fingerprint"] == fingerprint and stored_ids(path) == list(item_ids)
    except InputError:
        return False


def _metadata(path: Path) -> dict:
    """The file's own metadata, once safetensors has checked its form; fingerprint "" where another
    program wrote it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stream:
            metadata = json.loads((stream.metadata() or {}).get("ospo", "{}"))
            if not isinstance(metadata, dict) or not {"vectors", "item_ids"} <= set(stream.keys()):
                raise ValueError("its tensors are not vectors and item_ids")
        return {"fingerprint": "", **metadata}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(path, "", f"is not a vectors file ({error})", _AGAIN) from None


def stored_fingerprint(path: str | Path) -> str:
    """The fingerprint in a vectors file. Raises InputError where it is no vectors file."""
    return str(_metadata(Path(path))["fingerprint"])


def is_vectors_file(path: str | Path) -> bool:
    """Whether this module wrote the file."""
    try:
        return bool(_metadata(Path(path))["fingerprint"])
    except InputError:
        return False


def stored_ids(path: str | Path) -> list[str]:
    """The item ids of a vectors file, in the order of its rows. Raises InputError where it
    is none.
    """
    from safetensors import safe_open

    path = Path(path)
    _metadata(path)
    with safe_open(path, framework="numpy") as stream:
        data = stream.get_tensor("item_ids").tobytes()
    try:
        return data.decode("utf-8", "surrogatepass").split("\n") if data else []
    except UnicodeDecodeError as error:
        raise InputError(path, "item_ids", f"is damaged ({error})", _AGAIN) from None


def load_vectors(path: str | Path, fingerprint: str, items: int) -> np.ndarray | None:
    """Vectors (I, D) float32 of ``path``, mapped read-only; None where another fingerprint made
    them.

    Raises InputError where the file is not a vectors file, or holds other than ``items`` rows of
    finite numbers.
    """
    path = Path(path)
    if _metadata(path)["fingerprint"] != fingerprint:
        return None
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        tensor = json.loads(stream.read(length))["vectors"]
    shape = tuple(tensor["shape"])
    if tensor["dtype"] != "F32" or len(shape) != 2 or shape[0] != items or 0 in shape:
        raise InputError(path, "vectors", "do not fit the catalogue", _AGAIN)
    vectors = np.memmap(
        path, dtype="<f4", mode="r", offset=8 + length + tensor["data_offsets"][0], shape=shape
    )
    if not _all_finite(vectors):
        raise InputError(path, "vectors", "do not fit the catalogue", _AGAIN)
    return vectors


def _all_finite(vectors: np.memmap) -> bool:
    """Whether all entries are finite; pages that were read are released, so that memory does
    not fill up.
    """
    for begin in range(0, len(vectors), _CHECKED_ROWS):
        if not np.isfinite(vectors[begin : begin + _CHECKED_ROWS]).all():
            return False
        vectors._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    return True
