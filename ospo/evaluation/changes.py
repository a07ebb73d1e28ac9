"""What a rewrite changed against the raw request, and what each change did to the reward.

The credit that training uses plays the game of the rewrite's phrases: it begins with no text and
its credits sum to v(rewrite) − v(∅). That is not the question of a comparison with the raw query: a
phrase can earn credit over no text although the request it replaced earned more. Here the players
are the *changes* that lead from the request to the rewrite: phrases that bring new words, and words
of the request that were left out. The game begins with the request, so its Shapley values sum to
what the rewrite gained or lost against it (baseline Shapley: Sundararajan & Najmi, "The many
Shapley values for model explanation", ICML 2020, the baseline being the request).
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ospo.credit import Credit, get_estimator
from ospo.policy.text import SearchText

_WORD = re.compile(r"\w+(?:['’\-.]\w+)*")


@dataclass(frozen=True)
class LostWords:
    """Neighbouring words of the request that the rewrite does not hold, as the request writes them.

    ``change``: their share of v(rewrite) − v(raw). ``put_back``: what adding them to the rewrite
    would change, v(rewrite with them) − v(rewrite).
    """

    text: str
    change: float
    put_back: float


@dataclass(frozen=True)
class Changes:
    """The changes from a request to a rewrite of n phrases, in units of the reward.

    ``kept_N``: whether every word of a phrase stands in the request. ``change_N``: each phrase's
    share of v(rewrite) − v(raw), 0 for kept phrases. ``lost``: what the rewrite left out.
    ``form``: what order, repeats and punctuation alone changed, v(the same words as the rewrite
    writes them) − v(raw). All shares and ``form`` sum to ``rewrite`` − ``raw``. ``raw`` and
    ``rewrite`` are the rewards of the two texts.
    """

    raw: float
    rewrite: float
    kept_N: tuple[bool, ...]
    change_N: tuple[float, ...]
    lost: tuple[LostWords, ...]
    form: float


class _Edit:
    """One rewrite as a game: players are its phrases with new words, then its runs of lost
    words.
    """

    def __init__(self, query: str, answer: str, units: Sequence[str], row: int):
        self.query, self.answer, self.row = query, answer, row
        asked, written = _words(query), _words(answer)
        self.kept_N = tuple(not _words(unit) - asked for unit in units)
        self.whole = [unit.strip() for unit in units]
        # Without its new words a phrase still holds those of the request.
        self.reduced = [
            " ".join(word for word in _WORD.findall(unit) if word.casefold() in asked)
            for unit in units
        ]
        self.lost = _runs(query, written)
        self.added = [i for i, kept in enumerate(self.kept_N) if not kept]
        self.players = len(self.added) + len(self.lost)
        self.masks = np.zeros((0, self.players), dtype=bool)

    def plan(self, budget: int, seed: int) -> None:
        digest = hashlib.blake2b(
            f"{seed}/{self.row}/{self.answer}".encode("utf-8", "surrogatepass"), digest_size=8
        )
        rng = np.random.default_rng(int.from_bytes(digest.digest(), "little"))
        budget = max(budget, self.players + 2)  # enough for every estimator that `auto` takes
        planned = get_estimator("auto").plan(self.players, (), budget, rng)
        # Beside the coalitions: the rewrite with each run of lost words put back.
        back = np.ones((len(self.lost), self.players), dtype=bool)
        for i in range(len(self.lost)):
            back[i, len(self.added) + i] = False
        self.planned = len(planned)
        self.masks = np.concatenate([planned, back])

    def texts(self) -> list[str]:
        """The request, then each coalition's text."""
        return [self.query, *(self._text(mask) for mask in self.masks)]

    def _text(self, mask: np.ndarray) -> str:
        if mask.all():
            return self.answer
        taken = dict(zip(self.added, mask[: len(self.added)].tolist(), strict=True))
        parts = [
            whole if taken.get(i, True) else reduced
            for i, (whole, reduced) in enumerate(zip(self.whole, self.reduced, strict=True))
        ]
        dropped = mask[len(self.added) :].tolist()
        parts += [text for text, gone in zip(self.lost, dropped, strict=True) if not gone]
        return " ".join(part for part in parts if part)

    def solve(self, values: np.ndarray) -> Changes:
        raw, played = float(values[0]), values[1 : 1 + self.planned]
        masks, back = self.masks[: self.planned], values[1 + self.planned :]
        sizes = masks.sum(axis=1)
        start = float(played[sizes == 0][0])
        rewrite = float(played[sizes == self.players][0])
        shares = get_estimator("auto").fit(self.players, (), masks, played)
        change_N = np.zeros(len(self.kept_N))
        change_N[self.added] = shares[: len(self.added)]
        lost = tuple(
            LostWords(text, float(share), float(value) - rewrite)
            for text, share, value in zip(self.lost, shares[len(self.added) :], back, strict=True)
        )
        return Changes(raw, rewrite, self.kept_N, tuple(change_N.tolist()), lost, start - raw)


def additions(rule: SearchText, query: str, credit: Credit) -> Changes:
    """The changes of an answer that adds to its request, which keeps every word of it: the game of
    its credit begins with the raw query already, so that credits are shares of the difference.

    ``kept_N``: phrases that only repeat the request. Raises ValueError for another ``rule``.
    """
    if not rule.keeps_request:
        raise ValueError(f"additions: a {rule.kind} does not keep the request; use changes")
    kept_N = tuple(not rule.added(query, unit) for unit in credit.segmentation.units)
    shares = tuple(credit.phi_N.tolist())
    return Changes(credit.empty_value, credit.total, kept_N, shares, (), 0.0)


def _words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}


def _runs(query: str, written: set[str]) -> list[str]:
    """Runs of neighbouring words of the request that are not among those ``written``."""
    runs = []
    matches = _WORD.finditer(query)
    for lost, group in groupby(matches, lambda match: match.group().casefold() not in written):
        if lost:
            run = list(group)
            runs.append(query[run[0].start() : run[-1].end()])
    return runs


def changes(
    reward: Callable[[Sequence[str], Sequence[int]], np.ndarray],
    queries: Sequence[str],
    answers: Sequence[str],
    units: Sequence[Sequence[str]],
    rows: Sequence[int],
    *,
    budget: int,
    seed: int = 0,
) -> list[Changes]:
    """The changes of each answer (B) against its request, with one call of ``reward``.

    ``reward(texts, rows) -> (B,)`` is the reward that evaluation and training share; ``units`` are
    each answer's phrases, which joined are the answer; ``rows`` name the requests. Exact where
    2**changes ≤ ``budget``, else estimated (the estimator ``auto``).
    """
    edits = [_Edit(*one) for one in zip(queries, answers, units, map(int, rows), strict=True)]
    texts: list[str] = []
    of_rows: list[int] = []
    bounds = [0]
    for edit in edits:
        edit.plan(budget, seed)
        texts += edit.texts()
        of_rows += [edit.row] * (len(texts) - len(of_rows))
        bounds.append(len(texts))
    if not texts:
        return []
    values = np.asarray(reward(texts, of_rows), dtype=np.float64)
    return [
        edit.solve(values[first:last])
        for edit, first, last in zip(edits, bounds[:-1], bounds[1:], strict=True)
    ]
