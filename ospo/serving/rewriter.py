"""A policy as plain Python: requests in, search texts out. Safe to call from many threads.

The prompt, the completion, the answer and the search text come from the same functions as in
training and evaluation (``ospo.policy``), so that what is served is what was measured.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ospo.data.request import Request
from ospo.errors import OspoError, printable
from ospo.files import verify_manifest
from ospo.policy.decoding import Decoding
from ospo.policy.generate import Generator, Prompt
from ospo.policy.guard import Guard, grounds, read_guard, unanswered
from ospo.policy.prompts import clean, extract_answer, opens_thinking
from ospo.policy.shown import shown_text
from ospo.policy.text import SearchText
from ospo.serving.requests import MAX_NEW_TOKENS, parse_options, parse_requests

# Inputs of all callers together; more are turned away at once instead of timing out late.
MAX_WAITING = 4096
REMEMBERED = 20_000
"""Greedy answers that are kept, of the prompts met last: shoppers ask the same again and again. A
prompt of 128 tokens and its answer take about 2 KB."""
# In the queue; by then MLflow's server has given the caller up (its own limit is 60 s too).
MAX_SECONDS = 60.0


class Busy(OspoError):
    """Too many inputs wait already; try again later."""


@dataclass
class _Job:
    """One input on its way through the model."""

    prompt: Prompt
    decoding: Decoding
    queued: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    completion: str = ""
    logprob: float = 0.0
    error: Exception | None = None


class Rewriter:
    """Rewrites requests with one policy.

    Calls from several threads are joined into batches: each takes along what has been queued since
    the last. An idle rewriter answers at once, a busy one in batches, and there is no
    waiting time to tune. Greedy answers to the ``remembered`` prompts met last are kept.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        max_prompt_tokens: int = 128,
        max_new_tokens: int = 32,
        batch_size: int = 32,
        guard: Guard | None = None,
        remembered: int = REMEMBERED,
    ):
        generator.check_length(max_prompt_tokens, max_new_tokens)
        self.generator, self.guard = generator, guard
        self.max_prompt_tokens, self.max_new_tokens, self.batch_size = (
            max_prompt_tokens,
            max_new_tokens,
            batch_size,
        )
        # What a caller may ask for: the longest prompt and its answer fit the model's context.
        room = generator.context - max_prompt_tokens if generator.context else MAX_NEW_TOKENS
        self.most_new_tokens = min(MAX_NEW_TOKENS, room)
        # How often the model was started; with the number of inputs it tells what joining saved.
        self.batches = 0
        self._known: OrderedDict[tuple[tuple[int, ...], Decoding], tuple[str, float]] = (
            OrderedDict()
        )
        self._remembered = remembered
        self._thinking = opens_thinking(generator.tokenizer)
        self._queue: deque[_Job] = deque()
        self._state = threading.Lock()  # guards the queue and what is remembered
        # One thread for the model, whoever calls: OpenMP keeps a team of threads for each one that
        # computes, and teams that spin beside each other cost as much again.
        self._model = ThreadPoolExecutor(1, thread_name_prefix="rewriter")

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = True, **settings: int) -> "Rewriter":
        """The policy in ``directory``, with its guard; ``settings`` are the constructor's.

        Raises InputError where a file is missing, damaged or altered (``verify``: every file
        against the manifest, which must be there; false where the caller has just done that).
        """
        if verify:
            verify_manifest(directory)
        guard = read_guard(directory)
        return cls(Generator.load(directory, verify=False), guard=guard, **settings)

    @property
    def answer(self) -> SearchText:
        """How its search texts are formed."""
        return self.generator.answer

    @property
    def hits(self) -> int:
        """How many titles of a request's first hits its prompts show."""
        return self.generator.hits

    def rewrite(self, inputs: Sequence[Any], params: Mapping[str, Any] | None = None) -> list[str]:
        """One search text for each input.

        Args: inputs: query strings; or, as objects or JSON strings, ``{"query": …, "history":
            [{"name": …, "type": …,
                "colour": …}, …]}`` with the oldest purchase first.
            params: ``max_new_tokens`` (1 to 256), ``temperature`` (0, greedy, to 2), ``seed``.

        What the policy's answers are, its folder says: rewrites, or additions to the request, whose
        words are then kept. An empty request gives an empty text; where the policy answers nothing
        usable, or a greedy answer that its guard does not use, the query itself is the text.
        Raises RequestError for inputs or parameters that are not accepted, Busy under too much
        load.
        """
        requests = parse_requests(inputs)
        decoding = parse_options(params, self.max_new_tokens, self.most_new_tokens)
        guard = self.guard if decoding.temperature == 0 else None
        jobs: dict[int, _Job] = {}
        for number, request in enumerate(requests):
            said = clean(request.query) or request.history
            if said and (guard is None or guard.lets_answer(grounds(request))):
                jobs[number] = _Job(self._prompt(request), decoding)
        self._run(list(jobs.values()))
        return [
            self._text(request, jobs[number]) if number in jobs else self._unanswered(request)
            for number, request in enumerate(requests)
        ]

    def logits(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """Logits (V,) of the first token after each input's prompt: what two loaded policies can be
        compared by.
        """
        prompts = [self._prompt(request) for request in parse_requests(inputs)]
        return [self.generator.logits(prompt) for prompt in prompts]

    def _prompt(self, request: Request) -> Prompt:
        """The request's prompt. A first word that does not fit is cut too: a service must
        answer.
        """
        while True:
            try:
                return self.generator.render(request, self.max_prompt_tokens)
            except ValueError:
                query = clean(request.query)
                if len(query) <= 1:
                    raise
                request = Request(query=query[: len(query) // 2])

    def _text(self, request: Request, job: _Job) -> str:
        guard = self.guard if job.decoding.temperature == 0 else None
        if guard and not guard.uses(grounds(request), job.logprob):
            return self._unanswered(request)
        return self._shown(request, job.completion)

    def _unanswered(self, request: Request) -> str:
        """The raw query's search text; nothing for a request that says nothing."""
        if not clean(request.query) and not request.history:
            return self.answer.text(printable(request.query), "")
        return shown_text(self.answer, request.query, unanswered(self.answer, request))

    def _shown(self, request: Request, completion: str) -> str:
        """The search text of a completion."""
        answer, _ = extract_answer(completion, self._thinking)
        return shown_text(self.answer, request.query, answer)

    def _run(self, jobs: list[_Job]) -> None:
        """Answer ``jobs``: longest first, so that little is padded; a batch at a time, so that
        other callers get in.
        """
        jobs = [job for job in jobs if not self._recall(job)]
        jobs.sort(key=lambda job: -len(job.prompt.ids))
        for start in range(0, len(jobs), self.batch_size):
            part = jobs[start : start + self.batch_size]
            with self._state:
                if len(self._queue) + len(part) > MAX_WAITING:
                    raise Busy(
                        f"{len(self._queue)} inputs wait already. Fix: try again later, or serve "
                        "more copies"
                    )
                self._queue.extend(part)
            # One step answers all of the part that waits longest, so as many steps as parts do.
            self._model.submit(self._step)
            for job in part:
                job.done.wait()
            if failed := next((job.error for job in part if job.error is not None), None):
                raise failed

    def _recall(self, job: _Job) -> bool:
        """Whether the job's answer is known; then it is the job's."""
        with self._state:
            known = self._known.get(key := (tuple(job.prompt.ids), job.decoding))
            if known is None:
                return False
            self._known.move_to_end(key)
        job.completion, job.logprob = known
        job.done.set()
        return True

    def _remember(self, batch: list[_Job]) -> None:
        with self._state:
            for job in batch:
                if not job.decoding.temperature:
                    self._known[tuple(job.prompt.ids), job.decoding] = (
                        job.completion,
                        job.logprob,
                    )
            while len(self._known) > self._remembered:
                self._known.popitem(last=False)

    def _step(self) -> None:
        """Answer the next batch of the queue, in the model's thread."""
        with self._state:
            if not self._queue:
                return
            decoding = self._queue[0].decoding
            batch: list[_Job] = []
            rest: deque[_Job] = deque()
            for job in self._queue:
                fits = job.decoding == decoding and len(batch) < self.batch_size
                (batch if fits else rest).append(job)
            self._queue = rest
        late = [job for job in batch if time.monotonic() - job.queued > MAX_SECONDS]
        for job in late:
            job.error = Busy(
                f"not answered within {MAX_SECONDS:g} s. Fix: try again later, or serve more copies"
            )
        batch = [job for job in batch if job.error is None]
        try:
            if batch:
                self._generate(batch)
        except Exception as error:  # noqa: BLE001 (handed to every caller whose input was in the batch)
            for job in batch:
                job.error = error
        except BaseException as error:
            for job in batch:
                job.error = OspoError(f"interrupted by {type(error).__name__}")
            raise
        finally:
            for job in [*batch, *late]:
                job.done.set()

    def _generate(self, batch: list[_Job]) -> None:
        """Write the completions of a batch of jobs that share their decoding."""
        self.batches += 1
        prompts = [job.prompt for job in batch]
        written = self.generator.with_logprobs(prompts, batch[0].decoding)
        for job, ids, logprob in zip(batch, *written, strict=True):
            job.completion, job.logprob = self.generator.decode(ids), logprob
        self._remember(batch)
