"""A policy as plain Python: requests in, search texts out. Safe to call from many threads.

The prompt, the answer and the search text come from the same functions as in training and
evaluation (``ospo.policy.prompts``, ``ospo.reward.search.search_text``), so that what is served is
what was measured.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ospo.errors import InputError, OspoError
from ospo.files import read_json, verify_manifest
from ospo.policy.prompts import clean, extract_answer, fit_messages
from ospo.policy.text import search_text
from ospo.serving.requests import Options, Request, parse_options, parse_requests

BASE_FILE = "base.json"  # written by ospo.policy.weights.save_policy beside an adapter
MAX_WAITING = (
    4096  # inputs of all callers together; more are turned away at once instead of timing out late
)
MAX_ANSWER = 1000  # characters; no preset's answers come near
# In the queue; by then MLflow's server has given the caller up (its own limit is 60 s too).
MAX_SECONDS = 60.0


class Busy(OspoError):
    """Too many inputs wait already; try again later."""


@dataclass
class _Job:
    """One input on its way through the model."""

    ids: list[int]
    options: Options
    key: str
    queued: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    completion: str = ""
    error: Exception | None = None


def load_weights(directory: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a policy directory, in evaluation mode, on the GPU if there is one.

    The base of an adapter is taken from the directory where it was bundled (``base/``), else from
    the source that ``base.json`` names. Nothing but safetensors is read, and no code from the
    directory is run.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        if (directory / "adapter_config.json").is_file():
            from peft import PeftModel

            info = read_json(directory / BASE_FILE) if (directory / BASE_FILE).is_file() else {}
            dtype = getattr(torch, info.get("dtype", "bfloat16"))
            base = AutoModelForCausalLM.from_pretrained(
                _base(directory, info), dtype=dtype, **options
            )
            model: Any = PeftModel.from_pretrained(base, directory)
        else:
            model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", **options)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            directory, "", f"holds no policy that loads ({reason})", "register the policy again"
        ) from error
    tokenizer.padding_side = "left"
    model.eval()
    return (model.to("cuda") if torch.cuda.is_available() else model), tokenizer


def _base(directory: Path, info: Mapping[str, Any]) -> str:
    if (directory / "base" / "config.json").is_file():
        return str(directory / "base")
    from ospo.policy.weights import base_directory

    if not info.get("source"):
        raise InputError(
            directory / BASE_FILE,
            "source",
            "does not name the base model",
            "register the policy again",
        )
    return base_directory(info["source"])


class Rewriter:
    """Rewrites requests with one policy.

    Calls from several threads are joined into batches: who holds the model takes along what others
    have queued meanwhile. An idle rewriter answers at once, a busy one in batches, and there is no
    waiting time to tune.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_prompt_tokens: int = 128,
        max_new_tokens: int = 32,
        batch_size: int = 32,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.max_prompt_tokens, self.max_new_tokens, self.batch_size = (
            max_prompt_tokens,
            max_new_tokens,
            batch_size,
        )
        # How often the model was started; with the number of inputs it tells what joining saved.
        self.batches = 0
        self._queue: deque[_Job] = deque()
        self._queue_lock, self._model_lock = threading.Lock(), threading.Lock()
        listed = model.generation_config.eos_token_id
        listed = listed if isinstance(listed, list) else [listed]
        self._ends = {
            i for i in (*listed, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None
        }

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = True, **settings: int) -> "Rewriter":
        """The policy in ``directory``; ``settings`` are the constructor's.

        Raises InputError where a file is missing, damaged or altered (``verify``: sha256 against
        the manifest).
        """
        directory = Path(directory)
        if verify:
            verify_manifest(directory)
        return cls(*load_weights(directory), **settings)

    def rewrite(self, inputs: Sequence[Any], params: Mapping[str, Any] | None = None) -> list[str]:
        """One search text for each input.

        Args: inputs: query strings; or, as objects or JSON strings, ``{"query": …, "history":
            [{"name": …, "type": …,
                "colour": …}, …]}`` with the oldest purchase first.
            params: ``max_new_tokens`` (1 to 256), ``temperature`` (0, greedy, to 2), ``seed``.

        An empty request gives an empty text; where the policy answers nothing usable, the query
        itself is the text. Raises RequestError for inputs or parameters that are not accepted, Busy
        under too much load.
        """
        requests = parse_requests(inputs)
        options = parse_options(params, self.max_new_tokens)
        jobs: dict[int, _Job] = {}
        for number, request in enumerate(requests):
            if clean(request.query) or request.history:
                jobs[number] = self._job(request, options)
        self._run(list(jobs.values()))
        return [
            self._text(request, jobs[number].completion) if number in jobs else ""
            for number, request in enumerate(requests)
        ]

    def logits(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """Logits (V,) of the first token after each input's prompt: what two loaded policies can be
        compared by.
        """
        options = parse_options(None, self.max_new_tokens)
        jobs = [self._job(request, options) for request in parse_requests(inputs)]
        with self._model_lock, torch.inference_mode():
            return [
                self.model(torch.tensor([job.ids], device=self.model.device)).logits[0, -1].cpu()
                for job in jobs
            ]

    def _job(self, request: Request, options: Options) -> _Job:
        messages = self._fit(request)
        prompt = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return _Job(ids, options, hashlib.sha256(f"{options.seed}/{prompt}".encode()).hexdigest())

    def _fit(self, request: Request) -> list[dict[str, str]]:
        """Messages that fit the prompt. A first word longer than that is cut too: a service must
        answer.
        """
        while True:
            try:
                return fit_messages(request, self.tokenizer, self.max_prompt_tokens)[0]  # type: ignore[arg-type]
            except ValueError:
                query = clean(request.query)
                if len(query) <= 1:
                    raise
                request = Request(query[: len(query) // 2])

    def _text(self, request: Request, completion: str) -> str:
        answer = "".join(
            c if c.isprintable() else " " for c in extract_answer(completion)[0][:MAX_ANSWER]
        )
        return search_text(answer) or search_text(clean(request.query))

    def _run(self, jobs: list[_Job]) -> None:
        """Answer ``jobs``: longest first, so that little is padded; a batch at a time, so that
        other callers get in.
        """
        jobs = sorted(jobs, key=lambda job: -len(job.ids))
        for start in range(0, len(jobs), self.batch_size):
            part = jobs[start : start + self.batch_size]
            with self._queue_lock:
                if len(self._queue) + len(part) > MAX_WAITING:
                    raise Busy(
                        f"{len(self._queue)} inputs wait already. Fix: try again later, or serve "
                        "more copies"
                    )
                self._queue.extend(part)
            for job in part:
                while not job.done.is_set():
                    with self._model_lock:
                        if not job.done.is_set():
                            self._step()
            if failed := next((job.error for job in part if job.error is not None), None):
                raise failed

    def _step(self) -> None:
        """Answer the next batch of the queue. The caller holds the model."""
        with self._queue_lock:
            options = self._queue[0].options
            batch: list[_Job] = []
            rest: deque[_Job] = deque()
            for job in self._queue:
                (batch if job.options == options and len(batch) < self.batch_size else rest).append(
                    job
                )
            self._queue = rest
        late = [job for job in batch if time.monotonic() - job.queued > MAX_SECONDS]
        for job in late:
            job.error = Busy(
                f"not answered within {MAX_SECONDS:g} s. Fix: try again later, or serve more copies"
            )
        batch = [job for job in batch if job.error is None]
        try:
            if batch:
                for job, completion in zip(batch, self._generate(batch), strict=True):
                    job.completion = completion
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

    def _generate(self, batch: list[_Job]) -> list[str]:
        """Completions of a batch, left-padded; greedy, or sampled with each row's own generator."""
        self.batches += 1
        options, device = batch[0].options, self.model.device
        width = max(len(job.ids) for job in batch)
        pad = self.tokenizer.pad_token_id
        ids_BT = torch.tensor(
            [[pad] * (width - len(job.ids)) + job.ids for job in batch], device=device
        )
        mask_BT = torch.tensor(
            [[0] * (width - len(j.ids)) + [1] * len(j.ids) for j in batch], device=device
        )
        generators = [torch.Generator().manual_seed(int(job.key[:15], 16)) for job in batch]
        out: list[list[int]] = [[] for _ in batch]
        rows = list(range(len(batch)))  # the jobs that the tensors' rows belong to
        ended: set[int] = set()
        cache: Any = None
        with torch.inference_mode():
            position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
            for _ in range(options.max_new_tokens):
                step = self.model(
                    input_ids=ids_BT,
                    attention_mask=mask_BT,
                    position_ids=position_BT,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                cache = step.past_key_values
                token_B = _choose(
                    step.logits[:, -1].float().cpu(),
                    options.temperature,
                    [generators[r] for r in rows],
                )
                for row, token in zip(rows, token_B.tolist(), strict=True):
                    if token in self._ends:
                        ended.add(row)
                    elif row not in ended:
                        out[row].append(token)
                if len(ended) == len(batch):
                    break
                ids_BT, position_BT = token_B[:, None].to(device), position_BT[:, -1:] + 1
                mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
                still = [b for b, row in enumerate(rows) if row not in ended]
                if len(still) <= 0.75 * len(
                    rows
                ):  # answers differ in length: do not carry ended ones along
                    keep = torch.tensor(still, device=device)
                    cache.batch_select_indices(keep)
                    ids_BT, position_BT, mask_BT = ids_BT[keep], position_BT[keep], mask_BT[keep]
                    rows = [rows[b] for b in still]
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in out]


def _choose(
    logits_BV: torch.Tensor, temperature: float, generators: list[torch.Generator]
) -> torch.Tensor:
    """Next tokens (B,): the largest logit, or a draw from softmax(logits / temperature) by the
    Gumbel-max trick.
    """
    if temperature > 0:
        noise_BV = torch.stack(
            [torch.rand(logits_BV.shape[1], generator=g, dtype=torch.float64) for g in generators]
        )
        gumbel_BV = -torch.log(-torch.log(noise_BV.clamp(1e-300, 1 - 1e-16)))
        logits_BV = logits_BV.double() / temperature + gumbel_BV
    return logits_BV.argmax(dim=-1)
