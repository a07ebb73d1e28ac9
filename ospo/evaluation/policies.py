"""What can be evaluated: the raw query, a policy's directory, or a file of answers from any other
system.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ospo.config import Config
from ospo.data.request import Request
from ospo.errors import InputError
from ospo.evaluation.completions import CachedPolicy, Completion, Titles, no_titles
from ospo.files import sha256_file
from ospo.policy.decoding import Decoding
from ospo.policy.rules import FILE, RULES, STOP_WORDS, Rule, read_rule
from ospo.policy.text import REWRITE, SearchText


class Policy(Protocol):
    """Something that answers requests. ``hash`` identifies its content ("" for a rule). ``answer``:
    what its answers are, whatever params.yaml says now.
    """

    hash: str
    answer: SearchText

    def complete(self, requests: Sequence[Request], decoding: Decoding) -> list[Completion]:
        """One completion per request, in order."""
        ...

    def release(self) -> None:
        """Give back the memory of a loaded model."""
        ...


class RulePolicy:
    """A rule (``ospo.policy.rules``): what any policy has to beat.

    ``titles``: of each request's first hits, asked for only where the rule reads them. ``hash``: of
    the file that names the rule, "" where none does. ``stop``: words that a rule never adds.
    """

    answer: SearchText = REWRITE

    def __init__(
        self, rule: Rule, titles: Titles, hash: str = "", stop: frozenset[str] = STOP_WORDS
    ):
        self.rule, self.titles, self.hash, self.stop = rule, titles, hash, stop

    def complete(self, requests: Sequence[Request], decoding: Decoding) -> list[Completion]:
        """The rule's texts."""
        found = self.titles(requests) if self.rule.reads_hits else [()] * len(requests)
        texts = [
            self.rule.text(request, titles, self.stop)
            for request, titles in zip(requests, found, strict=True)
        ]
        return [Completion(text, text, 0, True) for text in texts]

    def release(self) -> None:
        """Nothing to give back."""


MAX_CHARACTERS = (
    4000  # of an answer from a file: some 800 words, far more than any search box takes
)


class AnswerFile:
    """Answers made elsewhere: JSON lines ``{"request_id": …, "answer": …}``, one per request.

    An answer longer than ``MAX_CHARACTERS`` is cut there and counted as unfinished, like one that
    ran into a policy's token limit. Answers are whole search texts, which stand for the request.
    """

    answer: SearchText = REWRITE

    def __init__(self, file: Path):
        self.file, self.hash = file, sha256_file(file)[:20]
        self.answers: dict[str, str] = {}
        with file.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    request_id, answer = row["request_id"], row["answer"]
                except (json.JSONDecodeError, KeyError, TypeError):
                    request_id = answer = None
                if not isinstance(request_id, str) or not isinstance(answer, str):
                    raise InputError(
                        file,
                        f"line {number}",
                        'is not {"request_id": text, "answer": text}',
                        "repair that line",
                    )
                if request_id in self.answers:
                    raise InputError(
                        file,
                        f"line {number}",
                        f"request {request_id!r} appears twice",
                        "keep one answer",
                    )
                self.answers[request_id] = answer

    def complete(self, requests: Sequence[Request], decoding: Decoding) -> list[Completion]:
        """The file's answers. Raises InputError for a request without one (an empty answer is
        written as ``""``).
        """
        if missing := [
            request.request_id for request in requests if request.request_id not in self.answers
        ]:
            raise InputError(
                self.file,
                "request_id",
                f"{len(missing)} requests have no answer, first {missing[0]!r}",
                "answer them all",
            )
        found = [self.answers[request.request_id] for request in requests]
        return [
            Completion(a[:MAX_CHARACTERS], a[:MAX_CHARACTERS], 0, len(a) <= MAX_CHARACTERS)
            for a in found
        ]

    def release(self) -> None:
        """Nothing to give back."""


def parse_policies(given: Sequence[str]) -> dict[str, list[Path]]:
    """``NAME=PATH`` texts → name → its policies in the given order (training seeds 0, 1, …). Raises
    InputError.

    PATH is a policy directory, a run that holds one (``model/``), or a ``.jsonl`` file of answers.
    """
    policies: dict[str, list[Path]] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals or not name.strip() or not place.strip() or name.strip() in RULES:
            raise InputError(
                "--policy", text, "is not NAME=PATH", "for example --policy ospo=runs/esci/ospo"
            )
        path = Path(place.strip())
        policies.setdefault(name.strip(), []).append(
            path / "model" if (path / "model").is_dir() else path
        )
    return policies


def open_policy(
    source: Path,
    config: Config,
    cache: Path | None,
    titles: Titles = no_titles,
    max_prompt_tokens: int | None = None,
) -> Policy:
    """The policy at ``source`` (a ``.jsonl`` file: its answers; else the directory of a policy, or
    of a rule that answers in its place).

    ``titles``: of requests' first hits, for policies that read them; ``max_prompt_tokens``: by
    default the preset's. Raises InputError where there is none. A directory's model is loaded when
    it first has to answer.
    """
    if source.suffix == ".jsonl":
        if not source.is_file():
            raise InputError(
                source, "", "file not found", "name a policy directory or a file of answers"
            )
        return AnswerFile(source)
    if rule := read_rule(source):
        if not rule.standalone:
            problem = f"{rule.name} needs a search of the catalogue"
            raise InputError(source / FILE, "rule", problem, "name raw or history")
        return RulePolicy(rule, no_titles, sha256_file(source / FILE)[:20])
    limit = max_prompt_tokens or config.preset.rl.max_prompt_tokens
    return CachedPolicy(source, config.evaluation.batch_size, limit, cache, titles)
