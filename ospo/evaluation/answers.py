"""Which requests are evaluated, and what every policy answers to them: written once, read back in
chunks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ospo.config import Config
from ospo.data.dataset import PreparedData, Request
from ospo.errors import InputError
from ospo.evaluation.completions import CachedPolicy, Completion
from ospo.evaluation.control import SWAPPED
from ospo.evaluation.policies import Policy, RulePolicy
from ospo.files import atomic_file, sha256_json
from ospo.policy.decoding import Decoding, TokenLimits
from ospo.policy.text import SearchText

_ANSWERS = pa.schema(
    [
        ("policy", pa.string()),
        ("seed", pa.int32()),
        ("split", pa.string()),
        ("decoding", pa.string()),
        ("sample", pa.int32()),
        ("row", pa.int32()),
        ("request_id", pa.string()),
        ("query", pa.string()),
        ("answer", pa.string()),
        ("text", pa.string()),
        ("completion", pa.string()),
        ("tokens", pa.int32()),
        ("finished", pa.bool_()),
        ("prompt_cut", pa.bool_()),
        ("logprob", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Job:
    """A set of completions: one policy of one training seed, one split, one decoding. ``swapped``:
    the control, the policy's greedy answers given to other requests.
    """

    policy: str
    seed: int
    split: str
    decoding: Decoding
    swapped: bool = False

    @property
    def decoding_name(self) -> str:
        """``greedy``, ``sampled`` or ``swapped``."""
        if self.swapped:
            return SWAPPED
        return "greedy" if self.decoding.temperature == 0 else "sampled"


def choose_requests(data: PreparedData, split: str, limit: int) -> np.ndarray:
    """Request rows of a split, at most ``limit`` (0: all), chosen by hash of the id, in row order.

    The choice knows no seed: runs with different seeds are evaluated on the same requests and can
    be paired. Raises InputError where the split is empty: a figure over no request is no figure.
    """
    rows = data.rows(split)
    if len(rows) == 0:
        raise InputError(
            data.directory / "requests.parquet",
            "split",
            f"no request in split {split!r}",
            "prepare more data or raise data.split's share of it",
        )
    if limit and len(rows) > limit:
        order = sorted(rows, key=lambda row: sha256_json([split, data.requests[row].request_id]))
        rows = np.sort(np.array(order[:limit]))
    return rows


def _chunks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def write_answers(
    policies: Mapping[tuple[str, int], Policy],
    data: PreparedData,
    jobs: Sequence[Job],
    rows: Mapping[str, np.ndarray],
    file: Path,
    chunk: int,
    partner_R: np.ndarray,
) -> dict[str, dict[str, int]]:
    """Write what every policy answers into ``file``, one row group per (job, chunk); returns counts
    per policy.

    partner_R: for each test request the place, among them, of the one whose answer it is given in
    the control, which is no answer of the policy and is not counted.
    """
    given: list[str] = []  # what the present policy's greedy answers to test requests add
    counts: dict[str, dict[str, int]] = {}
    bar = tqdm(total=sum(len(rows[job.split]) for job in jobs), desc="rewrite", unit="request")
    with bar, atomic_file(file) as temporary, pq.ParquetWriter(temporary, _ANSWERS) as writer:
        for number, job in enumerate(jobs):
            count = counts.setdefault(
                job.policy, {"answers": 0, "empty": 0, "unfinished": 0, "prompt_cut": 0}
            )
            policy = policies[job.policy, job.seed]
            swapped = iter([given[place] for place in partner_R] if job.swapped else ())
            if not job.swapped:
                given = []
            for part in _chunks(rows[job.split], chunk):
                requests = [data.requests[row] for row in part]
                if job.swapped:
                    completions = [Completion("", next(swapped), 0, True) for _ in requests]
                else:
                    completions = policy.complete(requests, job.decoding)
                    given += _count(count, policy.answer, requests, completions)
                writer.write_table(_answers_table(job, part, requests, completions, policy.answer))
                bar.update(len(part))
            if not any(
                (later.policy, later.seed) == (job.policy, job.seed) for later in jobs[number + 1 :]
            ):
                policies[job.policy, job.seed].release()
    return counts


def _count(
    count: dict[str, int],
    rule: SearchText,
    requests: Sequence[Request],
    completions: Sequence[Completion],
) -> list[str]:
    """Add to a policy's counts; returns what each answer adds."""
    added = [
        rule.added(request.query, completion.answer)
        for request, completion in zip(requests, completions, strict=True)
    ]
    count["answers"] += len(completions)
    count["empty"] += sum(not words for words in added)
    count["unfinished"] += sum(not r.finished for r in completions)
    count["prompt_cut"] += sum(r.prompt_cut for r in completions)
    return added


def _answers_table(
    job: Job,
    part: np.ndarray,
    requests: Sequence[Request],
    completions: Sequence[Completion],
    rule: SearchText,
) -> pa.Table:
    n = len(completions)
    columns = {
        "policy": [job.policy] * n,
        "seed": [job.seed] * n,
        "split": [job.split] * n,
        "decoding": [job.decoding_name] * n,
        "sample": [job.decoding.sample] * n,
        "row": part.astype(np.int32),
        "request_id": [request.request_id for request in requests],
        "query": [request.query for request in requests],
        "answer": [_storable(completion.answer) for completion in completions],
        "text": [
            _storable(rule.text(request.query, completion.answer))
            for request, completion in zip(requests, completions, strict=True)
        ],
        "completion": [_storable(completion.completion) for completion in completions],
        "tokens": [completion.tokens for completion in completions],
        "finished": [completion.finished for completion in completions],
        "prompt_cut": [completion.prompt_cut for completion in completions],
        "logprob": [completion.logprob for completion in completions],
    }
    return pa.table(columns, schema=_ANSWERS)


def _storable(text: str) -> str:
    # A policy can be made to write half a surrogate pair, which no UTF-8 file can hold.
    return text.encode("utf-8", "replace").decode("utf-8")


def plan(
    config: Config,
    policies: Mapping[tuple[str, int], Policy],
    limits: Mapping[str, TokenLimits] = MappingProxyType({}),
) -> list[Job]:
    """The completions an evaluation needs: greedy ones of both splits, the control of those of the
    test split, and sampled ones of the test split if asked for.

    ``policies``: (name, training seed) → policy; ``limits``: of those that have others than the
    preset's. A policy's jobs stand together: its model is in
    memory once. A rule has no control: what it adds follows from its three lines. The control comes
    right after the answers that it swaps.
    """
    rl = config.preset.rl
    jobs = []
    for (name, seed), policy in policies.items():
        longest = limits[name].answer if name in limits else rl.max_completion_tokens
        jobs += [Job(name, seed, split, Decoding(longest)) for split in ("validation", "test")]
        if not isinstance(policy, RulePolicy):
            jobs.append(Job(name, seed, "test", jobs[-1].decoding, swapped=True))
        if isinstance(policy, CachedPolicy):  # the others have one answer a request
            for sample in range(config.evaluation.samples):
                decoding = Decoding(longest, rl.temperature, config.seed, sample)
                jobs.append(Job(name, seed, "test", decoding))
    return jobs


class Answers:
    """Row groups of the answers file: one per (job, chunk), in the order they were written."""

    def __init__(self, file: Path, jobs: Sequence[Job], rows: Mapping[str, np.ndarray], chunk: int):
        self.file, self.jobs, self.rows, self.chunk = pq.ParquetFile(file), jobs, rows, chunk
        self.first: list[int] = []
        group = 0
        for job in jobs:
            self.first.append(group)
            group += -(-len(rows[job.split]) // chunk)

    def chunks(self, split: str) -> Iterator[tuple[np.ndarray, list[Job], list[pa.Table]]]:
        """(request rows, jobs, their answers), chunk by chunk."""
        wanted = [
            (job, first)
            for job, first in zip(self.jobs, self.first, strict=True)
            if job.split == split
        ]
        jobs = [job for job, _ in wanted]
        for number, part in enumerate(_chunks(self.rows[split], self.chunk)):
            yield part, jobs, [self.file.read_row_group(first + number) for _, first in wanted]
