"""Any sentence-transformers model, by hub name or folder, as a retriever.

Search texts go through the model's own ``encode_query``, items through its ``encode_document``, so
that the prompts, routes, pooling and truncation it was made with hold. Texts run in batches of
equal token count, so that none is padded: a text's vector then depends on the texts beside it no
more than a matrix product depends on its rows.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ospo.errors import InputError
from ospo.files import sha256_file, sha256_json
from ospo.retrieval.dense import EmbeddingRetriever, Progress, choose_dtype

LOGGER = logging.getLogger("ospo.retrieval")
MIN_TOKENS, CHUNK_TOKENS = 32, 4096
COUNTED = 1024  # texts whose tokens are counted at once
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the names that encode_document looks for
_FIX = "name a sentence-transformers model"


def refuse_pickles(folder: Path, name: str) -> None:
    """Raise InputError where ``folder`` holds weights that would be unpickled: a ``.bin`` or
    ``.pt`` file without safetensors beside it, or an index that points to one.
    """
    fix = "save the model with safe_serialization=True"
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".bin", ".pt", ".pth", ".ckpt") and not any(
            file.parent.glob("*.safetensors")
        ):
            raise InputError(file, "", f"retriever {name}: weights are pickled", fix)
        if file.name.endswith(".safetensors.index.json"):
            shards = set(
                json.loads(file.read_text(encoding="utf-8")).get("weight_map", {}).values()
            )
            if bad := sorted(shard for shard in shards if not str(shard).endswith(".safetensors")):
                raise InputError(
                    file, "weight_map", f"retriever {name}: {bad[0]} is no safetensors file", fix
                )


class SentenceRetriever(EmbeddingRetriever):
    """``source``: a folder, or a hub name (from the local cache only, where HF_HUB_OFFLINE
    is set).
    """

    def __init__(
        self, name: str, source: str | Path, dtype: str = "auto", memo_texts: int = 50_000
    ) -> None:
        super().__init__(name, memo_texts)
        from sentence_transformers import SentenceTransformer

        self._source = source
        if isinstance(source, Path):
            if not any((source / file).is_file() for file in ("modules.json", "config.json")):
                raise InputError(
                    source,
                    "modules.json",
                    f"retriever {name}: file not found, nor a config.json",
                    _FIX,
                )
            refuse_pickles(source, name)
        wanted, device = choose_dtype(dtype)
        try:
            model = SentenceTransformer(
                str(source),
                device=str(device),
                trust_remote_code=False,
                model_kwargs={"dtype": wanted, "use_safetensors": True},
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                str(source), "", f"retriever {name} fails to load: {reason[:200]}", _FIX
            ) from error
        self._model = model.eval()
        unused = [key for key in DOCUMENT_PROMPTS[1:] if model.prompts.get(key)]
        if unused and not self._prompt("document"):
            LOGGER.warning(
                "retriever %r: sentence-transformers does not apply the model's prompt %r to "
                "documents; name it 'document' in config_sentence_transformers.json to use it",
                name,
                unused[0],
            )

    def _prompt(self, task: str) -> str:
        """The prompt that ``encode_query`` or ``encode_document`` puts before a text."""
        prompts = self._model.prompts
        names = ("query",) if task == "query" else DOCUMENT_PROMPTS
        name = next((name for name in names if name in prompts), self._model.default_prompt_name)
        return (prompts.get(name) or "") if name else ""

    @property
    def dtype(self) -> str:
        """The precision of the weights: ``float32`` or ``bfloat16``."""
        return str(self._model.dtype).removeprefix("torch.")

    def fingerprint(self) -> str:
        """Weights, prompts, tokenizer and precision: the folder's files, or the hub's commit."""
        source: dict[str, object]
        if isinstance(self._source, Path):
            kinds = (".json", ".safetensors", ".txt", ".model")
            found = sorted(file for file in self._source.rglob("*") if file.suffix in kinds)
            source = {
                "files": [
                    (file.relative_to(self._source).as_posix(), sha256_file(file)) for file in found
                ]
            }
        else:
            from huggingface_hub import snapshot_download

            commit = Path(snapshot_download(self._source, local_files_only=True)).name
            source = {"hub": self._source, "commit": commit}
        return sha256_json({**source, "dtype": str(self._model.dtype), "code": 2})

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Unit vectors (B, D) float32 of search texts, as the model encodes queries."""
        return self._encode(texts, "query", progress)

    def encode_items(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Unit vectors (B, D) float32 of item texts, as the model encodes documents."""
        return self._encode(texts, "document", progress)

    def _token_counts(self, texts: Sequence[str], task: str) -> list[int]:
        """Tokens of each text, its prompt included; 1 for models that pad nothing."""
        prompt, counts = self._prompt(task), list[int]()
        for start in range(0, len(texts), COUNTED):
            part = list(texts[start : start + COUNTED])
            features = self._model.preprocess(part, prompt=prompt, task=task)
            mask_BT = features.get("attention_mask")
            counts += [1] * len(part) if mask_BT is None else mask_BT.sum(dim=1).tolist()
        return counts

    def _encode(self, texts: Sequence[str], task: str, progress: Progress | None) -> np.ndarray:
        import torch.nn.functional as F

        encode = self._model.encode_query if task == "query" else self._model.encode_document
        counts_B = self._token_counts(texts, task)
        order = sorted(range(len(texts)), key=lambda i: counts_B[i])
        parts: list[np.ndarray] = []
        start = 0
        while start < len(order):
            size = max(counts_B[order[start]], 1)
            stop = start + 1
            while (
                stop < len(order)
                and counts_B[order[stop]] == size
                and (stop - start + 1) * size <= CHUNK_TOKENS
            ):
                stop += 1
            batch = [texts[i] for i in order[start:stop]]
            batch += batch[:1] * (-(-MIN_TOKENS // size) - len(batch))
            vectors = encode(
                batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False
            )
            unit = F.normalize(vectors[: stop - start].float(), dim=1)
            parts.append(unit.cpu().numpy())
            start = stop
            if progress is not None:
                progress(start, len(order))
        vectors_BD = np.concatenate(parts)
        out_BD = np.empty_like(vectors_BD)
        out_BD[order] = vectors_BD
        return out_BD
