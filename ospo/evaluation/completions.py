"""What a policy writes for requests: batched generation, left-padded, length-sorted and cached on
disk.

The cache key is (content of the policy's files, decoding, rendered prompt), so a policy trained
again, another temperature or a changed prompt never meets an old answer. Sampling draws its noise
per (seed, prompt, sample, step), which makes a sampled answer independent of the batch it was
generated in.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers import AutoTokenizer, LogitsProcessor

from ospo.data.dataset import Request
from ospo.errors import InputError
from ospo.files import atomic_file, sha256_file, sha256_json
from ospo.paths import COMPLETIONS_CACHE
from ospo.policy.prompts import extract_answer, fit_messages, prompt_messages
from ospo.policy.weights import load_policy

CACHE = COMPLETIONS_CACHE
_PART = 2048  # prompts per cache file: what an interrupted run can lose
_SCHEMA = {"prompt": pl.String, "completion": pl.String, "tokens": pl.Int32, "finished": pl.Boolean}


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn: ``temperature`` 0 is greedy; ``sample`` numbers independent draws
    under one seed.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    sample: int = 0

    @property
    def key(self) -> str:
        """Names the decoding in the cache; greedy decoding depends on neither seed nor sample."""
        if self.temperature == 0:
            return f"greedy-{self.max_new_tokens}"
        return f"t{self.temperature:g}-seed{self.seed}-{self.sample}-{self.max_new_tokens}"


@dataclass(frozen=True)
class Rollout:
    """One completion. ``finished``: it ended by itself; ``prompt_cut``: the prompt left something
    out to fit.
    """

    completion: str
    answer: str
    tokens: int
    finished: bool
    prompt_cut: bool = False


def policy_hash(model_dir: str | Path) -> str:
    """Hash of a policy directory's content: every file but training leftovers, and of an adapter
    its base too.

    Raises InputError where the directory holds no model.
    """
    model_dir = Path(model_dir)
    if (
        not (model_dir / "config.json").is_file()
        and not (model_dir / "adapter_config.json").is_file()
    ):
        raise InputError(
            model_dir,
            "",
            "holds no policy (no config.json or adapter_config.json)",
            "train it or name its directory",
        )
    names = sorted(
        p
        for p in model_dir.rglob("*")
        if p.is_file() and p.suffix in {".json", ".safetensors", ".jinja"}
    )
    return sha256_json({str(p.relative_to(model_dir)): sha256_file(p) for p in names})[:20]


class SeededGumbel(LogitsProcessor):
    """Adds Gumbel noise drawn per row, so that greedy search samples exactly from softmax(logits /
    temperature).

    The Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): argmax(log p + g) with g ~ Gumbel(0,
    1) has law p. One generator a row, seeded by the prompt's hash, makes the draw independent of
    batch order and batch size.
    """

    def __init__(self, seeds: Sequence[int], temperature: float):
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """(B, V) logits → (B, V) perturbed logits."""
        noise_BV = torch.stack(
            [torch.rand(scores.shape[1], generator=g, dtype=torch.float64) for g in self.generators]
        )
        gumbel_BV = -torch.log(-torch.log(noise_BV.clamp_(1e-300, 1 - 1e-16)))
        return (scores.double() / self.temperature + gumbel_BV.to(scores.device)).to(torch.float32)  # type: ignore[return-value]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Rewriter:
    """A policy directory that answers requests. The model is loaded only when an answer is not in
    the cache.
    """

    def __init__(
        self,
        model_dir: str | Path,
        batch_size: int,
        max_prompt_tokens: int,
        cache: Path | None = CACHE,
    ):
        self.model_dir, self.batch_size, self.max_prompt_tokens = (
            Path(model_dir),
            batch_size,
            max_prompt_tokens,
        )
        self.hash = policy_hash(model_dir)
        self.cache = cache / self.hash if cache else None
        self.generated = 0  # completions made by this object, not read from the cache
        self._model: Any = None
        self._tokenizer: Any = None

    def rollouts(self, requests: Sequence[Request], decoding: Decoding) -> list[Rollout]:
        """One rollout per request, in their order. Equal prompts are generated once."""
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self.model_dir, trust_remote_code=False)
        rendered = [
            render(self._tokenizer, request, self.max_prompt_tokens) for request in requests
        ]
        keys = [_digest(prompt) for prompt, _ in rendered]
        known = self._read(keys, decoding)
        missing = {
            key: prompt for key, (prompt, _) in zip(keys, rendered, strict=True) if key not in known
        }
        todo = list(missing.items())
        for start in range(0, len(todo), _PART):
            part = self._generate(dict(todo[start : start + _PART]), decoding)
            self._write(part, decoding)
            known.update(part)
        return [
            replace(known[key], prompt_cut=cut)
            for key, (_, cut) in zip(keys, rendered, strict=True)
        ]

    def release(self) -> None:
        """Drop the model; it is loaded again when needed."""
        self._model = None

    def _generate(self, prompts: dict[str, str], decoding: Decoding) -> dict[str, Rollout]:
        if self._model is None:
            self._model, _ = load_policy(self.model_dir)
            self._model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        model, tokenizer = self._model, self._tokenizer
        ids = {
            key: tokenizer(text, add_special_tokens=False)["input_ids"]
            for key, text in prompts.items()
        }
        # Longest first: batches hold prompts of like length, and running out of memory shows at
        # once.
        order = sorted(ids, key=lambda key: (-len(ids[key]), key))
        context = getattr(model.config, "max_position_embeddings", None)
        if context and len(ids[order[0]]) + decoding.max_new_tokens > context:
            raise InputError(
                self.model_dir,
                "max_prompt_tokens",
                f"a prompt of {len(ids[order[0]])} tokens and {decoding.max_new_tokens} new ones "
                "exceed the model's "
                f"{context}",
                "lower max_prompt_tokens or max_completion_tokens of the preset",
            )
        done: dict[str, Rollout] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = generate(model, tokenizer, [ids[key] for key in batch], batch, decoding)
            for key, row in zip(batch, rows, strict=True):
                done[key] = _rollout(tokenizer, row, _end_ids(model, tokenizer))
        self.generated += len(done)
        return done

    def _read(self, keys: Sequence[str], decoding: Decoding) -> dict[str, Rollout]:
        folder = self.cache / decoding.key if self.cache else None
        if folder is None or not folder.is_dir():
            return {}
        wanted = pl.Series(sorted(set(keys)), dtype=pl.String)
        known: dict[str, Rollout] = {}
        for file in sorted(folder.glob("*.parquet")):
            try:
                frame = pl.read_parquet(file, columns=list(_SCHEMA), glob=False)
            except (pl.exceptions.PolarsError, OSError) as error:
                raise InputError(
                    file, "", f"unreadable cache file ({error})", "delete it; it is made again"
                ) from None
            for key, completion, tokens, finished in frame.filter(
                pl.col("prompt").is_in(wanted.implode())
            ).rows():
                known[key] = Rollout(completion, extract_answer(completion)[0], tokens, finished)
        return known

    def _write(self, part: dict[str, Rollout], decoding: Decoding) -> None:
        if self.cache is None or not part:
            return
        rows = [(key, r.completion, r.tokens, r.finished) for key, r in sorted(part.items())]
        name = sha256_json([row[0] for row in rows])[:20]
        with atomic_file(self.cache / decoding.key / f"{name}.parquet") as temporary:
            pl.DataFrame(rows, schema=_SCHEMA, orient="row").write_parquet(temporary)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    keys: Sequence[str],
    decoding: Decoding,
) -> list[list[int]]:
    """Completion ids of prompts (token ids), without padding, the end token kept where it was
    reached.
    """
    width = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id
    ids_BT = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    processors: list[LogitsProcessor] = []
    if decoding.temperature > 0:
        seeds = [int(_digest(f"{decoding.seed}/{decoding.sample}/{key}")[:15], 16) for key in keys]
        processors = [SeededGumbel(seeds, decoding.temperature)]
    with torch.inference_mode():
        out_BT = model.generate(
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad,
            logits_processor=processors,
        )[:, width:].cpu()
    ends = _end_ids(model, tokenizer)
    rows = []
    for row in out_BT.tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), None)
        rows.append(row if stop is None else row[: stop + 1])
    return rows


def _rollout(tokenizer: Any, ids: list[int], ends: set[int]) -> Rollout:
    # Without an end token generation ran into the limit: the text is used as it stands and counted
    # as unfinished.
    completion = tokenizer.decode(ids, skip_special_tokens=True)
    return Rollout(
        completion, extract_answer(completion)[0], len(ids), bool(ids) and ids[-1] in ends
    )


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return {i for i in (*listed, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None}


def render(tokenizer: Any, request: Request, max_prompt_tokens: int) -> tuple[str, bool]:
    """The prompt as in training (through the chat template, cut to fit), and whether anything was
    left out of it.
    """
    try:
        messages, _ = fit_messages(request, tokenizer, max_prompt_tokens)
    except ValueError as error:
        raise InputError(
            "params.yaml", "max_prompt_tokens", str(error), "raise it in the policy's preset"
        ) from None
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text, messages != prompt_messages(request)


def rewrite(
    model_dir: str | Path,
    requests: Sequence[Request],
    batch_size: int,
    greedy: bool = True,
    *,
    max_prompt_tokens: int = 128,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
    cache: Path | None = CACHE,
) -> list[str]:
    """Answers of the policy in ``model_dir`` (one per request), from the cache where it
    holds them.
    """
    decoding = Decoding(max_new_tokens, 0.0 if greedy else temperature, seed)
    return [
        rollout.answer
        for rollout in Rewriter(model_dir, batch_size, max_prompt_tokens, cache).rollouts(
            requests, decoding
        )
    ]
