"""Item vectors on disk: safetensors with the item ids and a fingerprint of what made them. Same input, same bytes."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ospo.errors import InputError
from ospo.files import atomic_file


def texts_digest(item_ids: Sequence[str], item_texts: Sequence[str]) -> str:
    """Hex sha256 over ids and texts in order; lengths go in too, so that no two catalogues share a digest."""
    digest = hashlib.sha256()
    for text in (*item_ids, *item_texts):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def save_vectors(path: str | Path, item_ids: Sequence[str], vectors_ID: np.ndarray, fingerprint: str) -> None:
    """Write vectors (I, D) float32 beside their ids, atomically."""
    from safetensors.numpy import save_file

    ids = np.frombuffer("\n".join(item_ids).encode("utf-8", "surrogatepass"), dtype=np.uint8)
    # One metadata key: safetensors writes several in no fixed order.
    metadata = {"ospo": json.dumps({"fingerprint": fingerprint, "items": len(item_ids)}, sort_keys=True)}
    with atomic_file(path) as temporary:
        save_file({"item_ids": ids, "vectors": np.ascontiguousarray(vectors_ID)}, temporary, metadata=metadata)


def load_vectors(path: str | Path, fingerprint: str, items: int) -> np.ndarray | None:
    """Vectors (I, D) float32 of ``path``, or None where another fingerprint made them (another model, text or dtype).

    Raises InputError where the file is not a vectors file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as stream:
            metadata = json.loads((stream.metadata() or {}).get("ospo", "{}"))
            if metadata.get("fingerprint") != fingerprint:
                return None
            vectors = stream.get_tensor("vectors")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            path, "", f"is not a vectors file ({error})", "delete it; `dvc repro` writes it anew"
        ) from None
    if vectors.ndim != 2 or len(vectors) != items or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        raise InputError(path, "vectors", "do not fit the catalogue", "delete it; `dvc repro` writes it anew")
    return vectors
