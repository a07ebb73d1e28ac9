"""The policies to choose from: registered versions (the champion first), those of the last runs,
and the rules that answer by themselves; loaded when they are asked for.
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ospo import registry
from ospo.config import Config, own_config
from ospo.data.request import Request
from ospo.evaluation.selection import NAMES, label
from ospo.files import MANIFEST
from ospo.page.asked import CHAMPION, AskedError
from ospo.policy.rules import RULES
from ospo.serving.answering import Answering, RuleRewriter, load_rewriter
from ospo.serving.requests import MAX_FIELD, MAX_NEW_TOKENS
from ospo.steps import policy_directory
from ospo.tracking.database import SQLITE
from ospo.tracking.store import tracking_uri

FRESH_SECONDS = 5.0  # the registry is asked again after this
LOADED = 6  # policies in memory
REMEMBERED = 512  # rewrites
Titles = Callable[[Request], Sequence[str]]


@dataclass(frozen=True)
class Choice:
    """A policy to choose: its ``key`` in addresses, and its name for people."""

    key: str
    name: str
    version: registry.Version | None = None


def decision_of(version: registry.Version) -> dict[str, Any]:
    """The decision written on a version: ``promoted``, ``reason``, ``figures``, …; {} where there
    is none.
    """
    try:
        found = json.loads(version.tags.get("decision", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Policies:
    """The policies of a project. Calls may come from many threads."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._lock = threading.RLock()  # MLflow's address is global
        self._versions: dict[str, tuple[float, list[registry.Version]]] = {}
        self._loaded: OrderedDict[tuple[str, str], Answering] = OrderedDict()
        self._texts: OrderedDict[tuple[Any, ...], str] = OrderedDict()

    def versions(self, dataset: str) -> list[registry.Version]:
        """Registered versions, newest first; none where there is no database yet, which asking
        would make. Raises OspoError where MLflow does not answer.
        """
        with self._lock:
            at, found = self._versions.get(dataset, (float("-inf"), []))
            if time.monotonic() - at > FRESH_SECONDS:
                found = registry.models(self.config, (dataset,)) if self._registry() else []
                self._versions[dataset] = (time.monotonic(), found)
            return found

    def _registry(self) -> bool:
        uri = tracking_uri(self.config, Path())
        file = uri.removeprefix(SQLITE).partition("?")[0]
        return not uri.startswith(SQLITE) or Path(file).is_file()

    def choices(self, dataset: str) -> list[Choice]:
        """All policies to choose from, the champion first, then the other versions, those of the
        last runs, and the rules. Raises OspoError where MLflow does not answer.
        """
        return self._with(dataset, self.versions(dataset))

    def unregistered(self, dataset: str) -> list[Choice]:
        """Those that need no registry: of the last runs, and the rules."""
        return self._with(dataset, [])

    def _with(self, dataset: str, versions: list[registry.Version]) -> list[Choice]:
        listed = [
            Choice(CHAMPION, f"champion: {_named(v)}", v)
            for v in versions
            if registry.CHAMPION in v.aliases
        ]
        for version in versions:
            if registry.CHAMPION not in version.aliases:
                newest = ", challenger" if registry.CHALLENGER in version.aliases else ""
                listed.append(Choice(f"v{version.version}", f"{_named(version)}{newest}", version))
        for name in NAMES:
            if name not in RULES and policy_directory(dataset, name).is_dir():
                listed.append(Choice(f"run-{name}", f"last run: {label(name)}"))
        for name, rule in RULES.items():
            if rule.standalone:
                listed.append(Choice(f"rule-{name}", f"no policy, {rule.label}"))
        return listed

    def choice(self, dataset: str, key: str) -> Choice:
        """The choice of a key. Raises AskedError, or RegistryError where no champion is there."""
        local = key.startswith(("run-", "rule-"))
        listed = self.unregistered(dataset) if local else self.choices(dataset)
        for choice in listed:
            if choice.key == key:
                return choice
        if key == CHAMPION:
            raise registry.RegistryError(
                f"{registry.model_name(dataset)}: no champion yet. Fix: choose another policy "
                "here, or run `make demo`"
            )
        keys = ", ".join(choice.key for choice in listed)
        raise AskedError(f"version: {key!r:.60} is not known here. Fix: use one of {keys}")

    def rewrite(
        self, dataset: str, choice: Choice, request: Request, titles: Titles
    ) -> tuple[str, Answering]:
        """A request's search text by a policy, and what answered. ``titles``: of the request's
        first hits, asked for where the policy reads them. Raises OspoError where its files are
        missing or damaged.
        """
        answering = self._answering(dataset, choice)
        key = (dataset, _identity(dataset, choice), request.query, request.history)
        with self._lock:
            if key in self._texts:
                self._texts.move_to_end(key)
                return self._texts[key], answering
        asked = [{"name": p.name, "type": p.type, "colour": p.colour} for p in request.history]
        hits = [title[:MAX_FIELD] for title in titles(request)] if answering.hits else []
        [text] = answering.rewrite([{"query": request.query, "history": asked, "hits": hits}])
        with self._lock:
            self._texts[key] = text
            while len(self._texts) > REMEMBERED:
                self._texts.popitem(last=False)
        return text, answering

    def _answering(self, dataset: str, choice: Choice) -> Answering:
        key = (dataset, _identity(dataset, choice))
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = self._load(dataset, choice)
                while len(self._loaded) > LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(key)
            return self._loaded[key]

    def _load(self, dataset: str, choice: Choice) -> Answering:
        if choice.version is not None:
            return registry.open_rewriter(self.config, dataset, choice.version.version)[1]
        kind, _, name = choice.key.partition("-")
        if kind == "rule":
            return RuleRewriter(RULES[name])
        rl = own_config(self.config, dataset).preset.rl
        return load_rewriter(
            policy_directory(dataset, name),
            max_prompt_tokens=rl.max_prompt_tokens,
            max_new_tokens=min(rl.max_completion_tokens, MAX_NEW_TOKENS),
        )


def _identity(dataset: str, choice: Choice) -> str:
    """What stays the same while a policy is the same: the champion's place goes from one version
    to another, and a run may be done again.
    """
    if choice.version is not None:
        return choice.version.uri
    kind, _, name = choice.key.partition("-")
    manifest = policy_directory(dataset, name) / MANIFEST
    done = manifest.stat().st_mtime_ns if kind == "run" and manifest.is_file() else 0
    return f"{choice.key}@{done}"


def _named(version: registry.Version) -> str:
    return f"version {version.version} ({label(version.tags.get('algorithm', 'unknown'))})"
