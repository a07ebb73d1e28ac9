"""OpenSearch and Elasticsearch as retrievers: searches in batches, some requests at a time, patient
while the engine is away, and with answers that are remembered.

A search that could not be answered is never a score of 0: it is asked again until the engine is
back, or until RetrieverError says that it stayed away.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ospo.config import Config
from ospo.config.retrievers import Engine
from ospo.errors import InputError
from ospo.retrieval.base import BlackBox, RetrieverError, check_rows, filled_up
from ospo.retrieval.engine_clients import CLIENTS, EngineClient, EngineFailure, read_address
from ospo.retrieval.engine_query import Hits, QueryTemplate, read_answers, read_template

LOGGER = logging.getLogger("ospo.retrieval")
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts, doubled each time
PATIENCE_AT_START = 5.0  # seconds: at the start a wrong URL is likelier than a restart
NOT_FOUND = -1.0  # below every score of an engine, which are 0 and more
REMEMBERED = 50_000  # answers: some 60 MB with pools of 100
LOOKED_UP = 5_000  # items whose presence in the index is checked, spread over the catalogue
ABSENT_SHARE = 0.1  # of those: more is an error, fewer a warning
_LOOK_UP = 1_000  # ids in one search
_PREFERENCE = {"preference": "ospo"}  # the same copy of each shard answers: equal scores


class EngineRetriever(BlackBox):
    """Ranks the items of an index by a user's query, among a pool by a filter on ``_id``.

    An item's score is the engine's; an item that it does not find has ``NOT_FOUND``. Each (text,
    pool) is asked once; one remembered answer per call is asked again, and the first that differs
    is named. Raises RetrieverError, one line with the URL and the fix.
    """

    linear = False

    def __init__(
        self, name: str, client: EngineClient, template: QueryTemplate, settings: Engine
    ) -> None:
        self.name, self.client, self.template, self.settings = name, client, template, settings
        self.items = 0
        self.asked = 0  # searches that were answered
        self._patience = PATIENCE_AT_START
        self._memory: OrderedDict[tuple[bytes, str], np.ndarray] = OrderedDict()
        self._warned_of_change = self._warned_of_others = False

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Take in the ids; the texts are the index's own. Raises RetrieverError where the index
        lacks more than a tenth of the catalogue, and after some seconds where it does not answer.
        """
        self._ids, self._row = list(item_ids), {name: row for row, name in enumerate(item_ids)}
        self._memory.clear()
        self._patience = PATIENCE_AT_START
        self._look_up([item_ids[row] for row in _spread(len(item_ids), LOOKED_UP)])
        self._patience = self.settings.wait
        self.items = len(item_ids)

    def _look_up(self, ids: list[str]) -> None:
        chunks = [ids[at : at + _LOOK_UP] for at in range(0, len(ids), _LOOK_UP)]
        bodies = [
            {"query": {"ids": {"values": chunk}}, "size": len(chunk), "_source": False}
            for chunk in chunks
        ]
        found = {name for hits in self._ask(bodies, sorts=True) for name in hits.ids}
        if not (absent := [name for name in ids if name not in found]):
            return
        problem = (
            f"the index lacks {len(absent)} of {len(ids)} items looked up, such as {absent[0]!r}"
        )
        fix = "index the whole catalogue, each item under its item_id as _id"
        if len(absent) > ABSENT_SHARE * len(ids):
            raise RetrieverError(self.name, problem, fix)
        LOGGER.warning("retriever %r: %s; no text can find them. Fix: %s", self.name, problem, fix)

    def score(self, texts: Sequence[str], rows_BP: np.ndarray) -> np.ndarray:
        """Scores (B, P) float32, asked or remembered; see ``Retriever``."""
        rows_BP = check_rows(self.name, texts, rows_BP, self.items).astype(np.int32)
        keys = [(rows.tobytes(), text) for rows, text in zip(rows_BP, texts, strict=True)]
        place = {key: b for b, key in enumerate(keys)}
        known = {key: self._memory[key] for key in place if key in self._memory}
        new = [key for key in place if key not in known]
        probe = self._probe() if new else None
        asked = [(key[1], rows_BP[place[key]]) for key in new]
        if probe is not None:
            asked.append(probe[1])
        answers = self._pool_scores(asked)
        if probe is not None:
            self._compare(probe[1][0], self._memory[probe[0]], answers.pop())
        known |= dict(zip(new, answers, strict=True))
        for key in place:
            self._memory[key] = known[key]
            self._memory.move_to_end(key)
        while len(self._memory) > REMEMBERED:
            self._memory.popitem(last=False)
        return np.array([known[key] for key in keys], np.float32).reshape(rows_BP.shape)

    def _pool_scores(self, asked: list[tuple[str, np.ndarray]]) -> list[np.ndarray]:
        """Scores (P,) float32 of each text in its pool."""
        pools = [[self._ids[row] for row in rows_P[rows_P >= 0]] for _, rows_P in asked]
        bodies = [
            self.template.search(text, max(len(ids), 1), ids)
            for (text, _), ids in zip(asked, pools, strict=True)
        ]
        scores = []
        for hits, (_, rows_P), ids in zip(self._ask(bodies), asked, pools, strict=True):
            found = dict(zip(hits.ids, hits.scores, strict=True))
            rest = min([NOT_FOUND, *(score - 1 for score in hits.scores)])
            if others := found.keys() - set(ids):
                raise RetrieverError(
                    self.name,
                    f"found item {min(others)!r}, which is not in the pool that was asked for",
                    "take out of the query what goes around its filter",
                )
            scores.append(
                np.array(
                    [found.get(self._ids[r], rest) if r >= 0 else -np.inf for r in rows_P],
                    np.float32,
                )
            )
        return scores

    def _probe(self) -> tuple[tuple[bytes, str], tuple[str, np.ndarray]] | None:
        """The answer that has waited longest to be asked again."""
        if self._warned_of_change or not self._memory:
            return None
        key = next(iter(self._memory))
        self._memory.move_to_end(key)
        return key, (key[1], np.frombuffer(key[0], np.int32))

    def _compare(self, text: str, first: np.ndarray, second: np.ndarray) -> None:
        said = np.isfinite(first)
        moved = int((~np.isclose(first[said], second[said], rtol=1e-4, atol=1e-6)).sum())
        if not moved:
            return
        self._warned_of_change = True
        LOGGER.warning(
            "retriever %r: answered differently when %r was asked again (%d of %d items); the "
            "first answer of each text is kept. Fix: do not write to the index while OSPO runs",
            self.name,
            text[:80],
            moved,
            int(said.sum()),
        )

    def search(self, texts: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Best of the index: rows (B, K) and scores (B, K); see ``Retriever``. Items that are not
        in the catalogue are left out, with one warning.
        """
        if not self.items:
            raise ValueError(f"retriever {self.name}: search before index")
        width = min(top_k, self.items)
        rows_BK = np.zeros((len(texts), width), np.int64)
        scores_BK = np.zeros((len(texts), width), np.float32)
        answers = self._ask([self.template.search(text, width) for text in texts])
        for b, hits in enumerate(answers):
            known = [(self._row[i], s) for i, s in zip(hits.ids, hits.scores, strict=True)
                     if i in self._row]  # fmt: skip
            if len(known) < len(hits.ids) and not self._warned_of_others:
                self._warned_of_others = True
                LOGGER.warning(
                    "retriever %r: %d of %d items found for %r are not in the catalogue and are "
                    "left out. Fix: an index that holds the catalogue alone",
                    self.name, len(hits.ids) - len(known), len(hits.ids), texts[b][:80],
                )  # fmt: skip
            rows = np.array([row for row, _ in known], np.int64)
            scores = np.array([score for _, score in known], np.float32)
            rows_BK[b], scores_BK[b] = filled_up(rows, scores, width, self.items, NOT_FOUND)
        return rows_BK, scores_BK

    def _ask(self, bodies: list[dict[str, Any]], sorts: bool = False) -> list[Hits]:
        """The hits of each search, in order. Waits for an engine that is away, and says so."""
        answers: list[Hits | None] = [None] * len(bodies)
        left, pause, away_since = list(range(len(bodies))), FIRST_PAUSE, None
        while left:
            before, failure = len(left), self._round(bodies, answers, left, sorts)
            left = [n for n in left if answers[n] is None]
            if not left:
                break
            now = time.monotonic()
            if away_since is None or len(left) < before:
                away_since, pause = now, FIRST_PAUSE
            assert failure is not None
            if (waited := now - away_since) >= self._patience:
                problem = f"{failure.problem}; waited {waited:.0f} s"
                raise RetrieverError(self.name, problem, failure.fix)
            LOGGER.warning(
                "retriever %r: %s; %d searches wait for it, trying again in %g s (for %.0f s at "
                "most)",
                self.name, failure.problem, len(left), pause, self._patience - waited,
            )  # fmt: skip
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        if away_since is not None:
            away = time.monotonic() - away_since
            LOGGER.warning("retriever %r: is back after %.0f s; going on", self.name, away)
        self.asked += len(bodies)
        return [answer for answer in answers if answer is not None]

    def _round(
        self,
        bodies: list[dict[str, Any]],
        answers: list[Hits | None],
        left: list[int],
        sorts: bool,
    ) -> EngineFailure | None:
        """Ask all that are ``left`` once, and fill in ``answers``. Returns a failure that may pass.
        Raises RetrieverError for one that will not.
        """
        size, away = self.settings.batch, threading.Event()
        batches = [left[at : at + size] for at in range(0, len(left), size)]

        def send(batch: list[int]) -> list[Hits | EngineFailure]:
            if away.is_set():  # the others of this round need not find out
                return []
            try:
                lines = [line for n in batch for line in (_PREFERENCE, bodies[n])]
                answer = self.client.msearch(lines)
                return read_answers(self.client, answer, len(batch), sorts or self.template.sorts)
            except EngineFailure as failure:
                away.set()
                return [failure]

        passing: EngineFailure | None = None
        with ThreadPoolExecutor(min(self.settings.concurrency, len(batches))) as threads:
            for batch, results in zip(batches, threads.map(send, batches), strict=True):
                for n, result in zip(batch, results, strict=False):
                    if isinstance(result, Hits):
                        answers[n] = result
                    elif result.again:
                        passing = passing or result
                    else:
                        away.set()
                        raise RetrieverError(self.name, result.problem, result.fix)
        return passing


def _spread(items: int, most: int) -> list[int]:
    """At most ``most`` rows, from the first to the last."""
    return np.unique(np.linspace(0, items - 1, min(items, most)).astype(int)).tolist()


def load_engine(name: str, config: Config) -> EngineRetriever:
    """``opensearch:URL/INDEX`` or ``elasticsearch:URL/INDEX``. Nothing is asked yet. Raises
    InputError for a bad address or query, and where the client is not installed.
    """
    settings = config.retrievers.engine
    address = read_address(name, settings.timeout, settings.concurrency)
    template = read_template(settings.query)
    try:
        client = CLIENTS[address.kind](address)
    except ImportError as error:
        fix = f"pip install 'ospo[{address.kind}]'"
        raise InputError("params.yaml", f"retrievers: {name}", str(error), fix) from error
    return EngineRetriever(name, client, template, settings)
