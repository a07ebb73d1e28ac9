"""Any sentence-transformers model, by hub name or folder, as a retriever.

The model's own pooling and prompts-free encoding are used. Texts run in batches of equal token
count, so that none is padded: a text's vector then depends on the texts beside it no more than a
matrix product depends on its rows.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ospo.errors import InputError
from ospo.files import sha256_file, sha256_json
from ospo.retrieval.dense import EmbeddingRetriever, Progress, choose_dtype

MIN_TOKENS, CHUNK_TOKENS = 32, 4096


class SentenceRetriever(EmbeddingRetriever):
    """``source``: a folder, or a hub name (from the local cache only, where HF_HUB_OFFLINE
    is set).
    """

    def __init__(
        self, name: str, source: str | Path, dtype: str = "auto", memo_texts: int = 50_000
    ) -> None:
        super().__init__(name, memo_texts)
        from sentence_transformers import SentenceTransformer

        self._source = Path(source) if isinstance(source, Path) else source
        if isinstance(source, Path) and not (source / "config.json").is_file():
            raise InputError(
                source, "config.json", f"retriever {name}: file not found", "name a model's folder"
            )
        self._dtype, device = choose_dtype(dtype)
        try:
            model = SentenceTransformer(
                str(source),
                device=str(device),
                trust_remote_code=False,
                model_kwargs={"dtype": self._dtype},
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                str(source),
                "",
                f"retriever {name} fails to load: {reason[:200]}",
                "name a sentence-transformers model",
            ) from error
        self._model = model.eval()
        self._device = device

    def fingerprint(self) -> str:
        """Weights (files where they are local, the hub's commit else) and precision."""
        config = getattr(self._model[0].auto_model, "config", None)
        commit = getattr(config, "_commit_hash", None)
        files: list[tuple[str, str]] = []
        if isinstance(self._source, Path):
            kinds = (".json", ".safetensors", ".txt", ".model")
            found = sorted(file for file in self._source.rglob("*") if file.suffix in kinds)
            files = [
                (file.relative_to(self._source).as_posix(), sha256_file(file)) for file in found
            ]
        source = {"files": files} if files else {"hub": str(self._source), "commit": str(commit)}
        return sha256_json({**source, "dtype": str(self._dtype), "code": 1})

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Unit vectors (B, D) float32."""
        import torch
        import torch.nn.functional as F

        limit = self._model.max_seq_length or 512
        ids_B = [
            self._model.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
            for text in texts
        ]
        order = sorted(range(len(ids_B)), key=lambda i: len(ids_B[i]))
        parts: list[np.ndarray] = []
        start = 0
        while start < len(order):
            size = len(ids_B[order[start]])
            stop = start
            while (
                stop < len(order)
                and len(ids_B[order[stop]]) == size
                and (stop - start + 1) * size <= CHUNK_TOKENS
            ):
                stop += 1
            batch = [ids_B[i] for i in order[start:stop]] or [ids_B[order[start]]]
            real = len(batch)
            batch += batch[:1] * (-(-MIN_TOKENS // size) - real)
            ids = torch.tensor(batch, device=self._device)
            with torch.inference_mode():
                features = self._model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            parts.append(
                F.normalize(features["sentence_embedding"].float(), dim=1)[:real].cpu().numpy()
            )
            start += real
            if progress is not None:
                progress(start, len(order))
        vectors_BD = np.concatenate(parts)
        out_BD = np.empty_like(vectors_BD)
        out_BD[order] = vectors_BD
        return out_BD
