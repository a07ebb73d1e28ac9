"""What a policy answers to requests: generated in batches sorted by length, and kept on disk.

The cache key is (content of the policy's files and of its base, decoding, rendered prompt), so a
policy trained again, another temperature or a changed prompt never meets an old answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from ospo.data.request import Request
from ospo.errors import InputError
from ospo.files import atomic_file, sha256_json
from ospo.paths import COMPLETIONS_CACHE
from ospo.policy.decoding import Decoding
from ospo.policy.generate import Generator, Prompt, render
from ospo.policy.guard import grounds, read_guard, unanswered
from ospo.policy.kind import read_answer_kind, read_context
from ospo.policy.prompts import extract_answer, opens_thinking
from ospo.policy.sources import policy_hash
from ospo.policy.weights import load_tokenizer

__all__ = ["CACHE", "CachedPolicy", "Completion", "Decoding", "policy_hash", "rewrite"]

CACHE = COMPLETIONS_CACHE
_PART = 2048  # prompts per cache file: what an interrupted run can lose
_SCHEMA = {
    "prompt": pl.String,
    "completion": pl.String,
    "tokens": pl.Int32,
    "finished": pl.Boolean,
    "logprob": pl.Float64,
}
_FORM = "2"  # of cache files: those before log-probabilities were kept are not read


@dataclass(frozen=True)
class Completion:
    """One completion. ``finished``: it ended by itself; ``prompt_cut``: the prompt left something
    out to fit; ``logprob``: mean log-probability of its tokens (NaN where no model wrote it).
    """

    completion: str
    answer: str
    tokens: int
    finished: bool
    prompt_cut: bool = False
    logprob: float = field(default=math.nan, compare=False)  # its last digits are the batch's


Titles = Callable[[Sequence[Request]], list[tuple[str, ...]]]


def no_titles(requests: Sequence[Request]) -> list[tuple[str, ...]]:
    """No request comes with hits."""
    return [()] * len(requests)


class CachedPolicy:
    """A policy directory that answers requests. The model is loaded only when an answer is not in
    the cache.
    """

    def __init__(
        self,
        model_dir: str | Path,
        batch_size: int,
        max_prompt_tokens: int,
        cache: Path | None = CACHE,
        titles: Titles = no_titles,
    ):
        """``titles``: of each request's first hits, asked for where the policy reads them."""
        self.model_dir, self.batch_size, self.max_prompt_tokens = (
            Path(model_dir),
            batch_size,
            max_prompt_tokens,
        )
        self.hash = policy_hash(model_dir)
        self.answer, self.guard = read_answer_kind(model_dir), read_guard(model_dir)
        self.hits, self.titles = read_context(model_dir), titles
        self.cache = cache / self.hash if cache else None
        self.generated = 0  # completions made by this object, not read from the cache
        self._generator: Generator | None = None
        self._tokenizer: Any = None
        self._thinking = False

    def complete(self, requests: Sequence[Request], decoding: Decoding) -> list[Completion]:
        """One completion per request, in their order. Equal prompts are generated once. Where the
        policy has a guard, a greedy answer that it does not use is the raw query; requests that
        lack what it needs are not generated for, and have no log-probability.
        """
        if self.guard is None or decoding.temperature > 0:
            return self._complete(requests, decoding)
        given = [grounds(request) for request in requests]
        asked = [i for i, grounds_i in enumerate(given) if self.guard.lets_answer(grounds_i)]
        found = [Completion("", unanswered(self.answer, r), 0, True) for r in requests]
        written = self._complete([requests[i] for i in asked], decoding)
        for i, completion in zip(asked, written, strict=True):
            used = self.guard.uses(given[i], completion.logprob)
            found[i] = completion if used else replace(completion, answer=found[i].answer)
        return found

    def _complete(self, requests: Sequence[Request], decoding: Decoding) -> list[Completion]:
        """What the policy writes to each request, without its guard."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.model_dir)
            self._thinking = opens_thinking(self._tokenizer)
        if self.hits and not all(request.hits for request in requests):
            if self.titles is no_titles:
                raise ValueError(f"{self.model_dir} reads first hits, and nothing finds them")
            shown = zip(requests, self.titles(requests), strict=True)
            requests = [replace(request, hits=titles) for request, titles in shown]
        prompts = [self._render(request) for request in requests]
        known = self._read({prompt.key for prompt in prompts}, decoding)
        missing = {prompt.key: prompt for prompt in prompts if prompt.key not in known}
        todo = list(missing.values())
        for start in range(0, len(todo), _PART):
            part = self._generate(todo[start : start + _PART], decoding)
            self._write(part, decoding)
            known.update(part)
        return [replace(known[prompt.key], prompt_cut=prompt.cut) for prompt in prompts]

    def release(self) -> None:
        """Drop the model; it is loaded again when needed."""
        self._generator = None

    def _render(self, request: Request) -> Prompt:
        try:
            limit = self.max_prompt_tokens
            return render(self._tokenizer, request, limit, self.answer.kind, self.hits)
        except ValueError as error:
            raise InputError(
                "params.yaml", "max_prompt_tokens", str(error), "raise it in the policy's preset"
            ) from None

    def _generate(self, prompts: list[Prompt], decoding: Decoding) -> dict[str, Completion]:
        if self._generator is None:
            self._generator = Generator.load(self.model_dir)
        # Longest first: batches hold prompts of like length, and running out of memory shows at
        # once.
        prompts = sorted(prompts, key=lambda prompt: (-len(prompt.ids), prompt.key))
        done: dict[str, Completion] = {}
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            written = self._generator.with_logprobs(batch, decoding)
            for prompt, ids, logprob in zip(batch, *written, strict=True):
                # Without an end token generation ran into the limit: the text is used as it stands
                # and counted as unfinished.
                text = self._generator.decode(ids)
                finished = bool(ids) and ids[-1] in self._generator.ends
                done[prompt.key] = Completion(
                    text, self._answer(text), len(ids), finished, logprob=logprob
                )
        self.generated += len(done)
        return done

    def _answer(self, completion: str) -> str:
        return extract_answer(completion, self._thinking)[0]

    def _folder(self, decoding: Decoding) -> Path | None:
        return self.cache / f"{decoding.key}-{_FORM}" if self.cache else None

    def _read(self, keys: set[str], decoding: Decoding) -> dict[str, Completion]:
        folder = self._folder(decoding)
        if folder is None or not folder.is_dir():
            return {}
        wanted = pl.Series(sorted(keys), dtype=pl.String)
        known: dict[str, Completion] = {}
        for file in sorted(folder.glob("*.parquet")):
            try:
                frame = pl.read_parquet(file, columns=list(_SCHEMA), glob=False)
            except (pl.exceptions.PolarsError, OSError) as error:
                raise InputError(
                    file, "", f"unreadable cache file ({error})", "delete it; it is made again"
                ) from None
            for key, text, tokens, finished, logprob in frame.filter(
                pl.col("prompt").is_in(wanted.implode())
            ).rows():
                answer = self._answer(text)
                known[key] = Completion(text, answer, tokens, finished, logprob=logprob)
        return known

    def _write(self, part: dict[str, Completion], decoding: Decoding) -> None:
        folder = self._folder(decoding)
        if folder is None or not part:
            return
        rows = [
            (key, c.completion, c.tokens, c.finished, c.logprob) for key, c in sorted(part.items())
        ]
        name = sha256_json([row[0] for row in rows])[:20]
        with atomic_file(folder / f"{name}.parquet") as temporary:
            pl.DataFrame(rows, schema=_SCHEMA, orient="row").write_parquet(temporary)


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
    titles: Titles = no_titles,
) -> list[str]:
    """Answers of the policy in ``model_dir`` (one per request), from the cache where it
    holds them. ``titles``: of each request's first hits. Raises ValueError where the policy reads
    them and neither the requests nor ``titles`` have any.
    """
    decoding = Decoding(max_new_tokens, 0.0 if greedy else temperature, seed)
    policy = CachedPolicy(model_dir, batch_size, max_prompt_tokens, cache, titles)
    return [completion.answer for completion in policy.complete(requests, decoding)]
