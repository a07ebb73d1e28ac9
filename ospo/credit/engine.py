"""Credit for all completions of a step: coalition texts, one batched evaluation, one estimate
per answer.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ospo.credit.bayes import Bayes, Surrogate
from ospo.credit.estimators import check_evaluations
from ospo.credit.registry import get_estimator
from ospo.credit.segments import Kind, Segmentation, Unions, join_repeats, segment_many
from ospo.credit.values import CoalitionValues, Function, PoolScores, Value, as_value

MAX_FREE_PLAYERS = 10  # up to here coalitions scored from their parts are all evaluated


@dataclass(frozen=True)
class Credit:
    """The credit of one answer's segments.

    ``phi_N``: (n,) float64, in units of the reward. ``total``: v(N), the reward. ``empty_value``:
    v(∅). ``evaluations``: distinct coalitions used. ``skipped``: not evaluated; then the
    segmentation is one segment over the whole answer, with credit zero. ``added_N``: (n,) what each
    segment added to those before it, v(0…j) − v(0…j−1), where the engine was asked for it.
    ``estimator``: the one that was used, "" where there was nothing to estimate.
    """

    segmentation: Segmentation
    phi_N: np.ndarray
    total: float
    evaluations: int
    empty_value: float
    skipped: bool = False
    added_N: np.ndarray | None = None
    estimator: str = ""


def coalition_text(segmentation: Segmentation, mask: np.ndarray) -> str:
    """The text of a coalition, ``mask`` (n,) bool.

    Of all segments: the text itself, verbatim, so that v(N) is the terminal reward to the last bit.
    Of some: their texts, in order, stripped, joined by a space. Raises ValueError for a mask of the
    wrong length.
    """
    if len(mask) != len(segmentation):
        raise ValueError(
            f"mask: wrong length {len(mask)}, the text has {len(segmentation)} segments"
        )
    if all(mask):
        return segmentation.text
    text = segmentation.text
    return " ".join(
        text[a:b].strip()
        for (a, b), present in zip(segmentation.spans, mask, strict=True)
        if present
    )


class CreditEngine:
    """Credit for the segments of many answers.

    value: ``value(texts, rows) -> (B,)`` rewards, the very function that gives the terminal reward
        (its row argument names the request), or a :class:`ospo.credit.values.Value`, which also
        declares what else it can do: score coalitions from their parts (used for all coalitions
        but ∅ and N), or show the pool scores behind its values (the estimators ``surrogate`` and
        ``auto`` then infer the values of coalitions that were not evaluated).
    segments, unions, estimator, window, budget: see :mod:`ospo.credit.segments` and
        :mod:`ospo.credit.estimators`.
    seed: with the answer's text and row it seeds the sample of coalitions, so an answer's credit
        does not depend on what else is in the batch.
    max_segments: longer answers have neighbours joined until this many are left; 0 means half the
        budget, 12 at most.
    language: of the answers, an ISO 639-1 code; their phrases depend on it.
    added: also evaluate the text as it grew, segment by segment, for ``Credit.added_N``.

    Repeats do not play. The Shapley value is symmetric: of "linen, linen, linen" each would get a
    third of what linen is worth, and a policy would learn to say it again and again. A repeat can
    only come after what it repeats, so the game is that of the text without repeats, and they share
    what adding them changes, v(N) − v(N without repeats): nothing, or less than nothing where
    length costs. The sum is still v(N) − v(∅) (a Shapley value under precedence constraints, Faigle
    & Kern 1992, with the repeats last).
    """

    def __init__(
        self,
        value: Value | Function,
        *,
        segments: Kind = "phrases",
        unions: Unions = "none",
        estimator: str = "auto",
        window: int = 8,
        budget: int = 32,
        seed: int = 0,
        max_segments: int = 0,
        added: bool = False,
        language: str = "en",
    ):
        if budget < 2:
            raise ValueError(
                f"budget: {budget} coalitions, at least the empty and the full one are needed"
            )
        self.value = as_value(value)
        self.segments, self.unions, self.language = segments, unions, language
        self.budget, self.seed = budget, seed
        self.estimator = get_estimator(estimator, window)
        self.max_segments = max_segments or max(1, min(12, budget // 2))
        self.added = added

    @property
    def estimator_used(self) -> str:
        """The estimator of the largest games this engine plays, as the value's abilities and the
        budget decide it; smaller games are exact wherever the budget covers them.
        """
        if self.value.coalitions is not None and self.max_segments <= MAX_FREE_PLAYERS:
            return "exact" if self.estimator.name == "auto" else self.estimator.name
        scored = self.value.pool is not None and self.value.coalitions is None
        return self.estimator.used(self.max_segments, (), self.budget, scored)

    def credit(
        self,
        answers: Sequence[str],
        rows: Sequence[int],
        rewards: np.ndarray | None = None,
        skip: np.ndarray | None = None,
    ) -> list[Credit]:
        """Credit of each answer (B,) for the request in ``rows`` (B,), with one call of the value
        function.

        rewards: (B,) the terminal rewards, which must equal v(N) bit for bit. skip: (B,) bool,
        answers that need no credit, for example groups with equal rewards.

        Raises ValueError for wrong lengths, non-finite values (naming answer and coalition) and
        where a reward is not v(N): then the game is not the one the rewards come from.
        """
        skipped = self._check(answers, rows, rewards, skip)
        active = [b for b in range(len(answers)) if not skipped[b]]
        segmentations = dict(
            zip(
                active,
                segment_many(
                    [answers[b] for b in active], self.segments, self.unions, self.language
                ),
                strict=True,
            )
        )
        jobs: dict[tuple[str, int], _Job] = {}
        for b in active:
            key = (answers[b], int(rows[b]))
            if key not in jobs:
                jobs[key] = self._plan(segmentations[b], int(rows[b]))
        self._evaluate(list(jobs.values()))
        solved = {key: self._fit(job) for key, job in jobs.items()}
        results = []
        for b, answer in enumerate(answers):
            if skipped[b]:
                spans = ((0, len(answer)),) if answer else ()
                total = float(rewards[b]) if rewards is not None else float("nan")
                results.append(
                    Credit(Segmentation(answer, spans), np.zeros(len(spans)), total, 0, 0.0, True)
                )
                continue
            credit = solved[answer, int(rows[b])]
            if rewards is not None and not _same(credit.total, rewards, b):
                raise ValueError(
                    f"rewards: answer {b} has reward {float(rewards[b])!r} but v(N) is "
                    f"{credit.total!r}; the credit's value function is not the one the rewards "
                    "come from"
                )
            results.append(credit)
        return results

    def _check(self, answers, rows, rewards, skip) -> np.ndarray:
        for name, given in (("rows", rows), ("rewards", rewards), ("skip", skip)):
            if given is not None and len(given) != len(answers):
                raise ValueError(
                    f"{name}: wrong length {len(given)}, there are {len(answers)} answers"
                )
        if rewards is not None and not np.isfinite(np.asarray(rewards, dtype=np.float64)).all():
            raise ValueError("rewards: non-finite value")
        return np.zeros(len(answers), dtype=bool) if skip is None else np.asarray(skip, dtype=bool)

    def _plan(self, whole: Segmentation, row: int) -> "_Job":
        segmentation, repeats = join_repeats(whole, self.max_segments)
        text = segmentation.text.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(
            text, digest_size=8, salt=b"ospo", person=str((self.seed, row)).encode()[:16]
        )
        rng = np.random.default_rng([self.seed, row, int.from_bytes(digest.digest(), "little")])
        players = np.flatnonzero(~np.array(repeats, dtype=bool))
        number = {int(segment): player for player, segment in enumerate(players)}
        unions = tuple(
            group
            for union in segmentation.unions
            if (group := tuple(number[i] for i in union if i in number))
        )
        # With repeats the whole text is one coalition more.
        budget = max(2, self.budget - (len(players) < len(segmentation)))
        free = self.value.coalitions is not None and len(players) <= MAX_FREE_PLAYERS
        if self.estimator.name == "auto" and free:
            # Coalitions scored from their parts cost next to nothing: all of them, exactly.
            budget = 1 << len(players)
        played = self.estimator.plan(len(players), unions, budget, rng)
        n = len(segmentation)
        games = np.zeros((len(played), n), dtype=bool)
        games[:, players] = played
        whole_text = np.ones((int(len(players) < n), n), dtype=bool)
        grown = np.tri(max(n - 1, 0), n, dtype=bool)[: n if self.added else 0]
        return _Job(
            segmentation,
            row,
            np.concatenate([games, whole_text, grown]),
            len(played),
            players,
            unions,
        )

    def _evaluate(self, jobs: list["_Job"]) -> None:
        """Fill in the jobs' values: one call for all distinct (text, row)."""
        fast: CoalitionValues | None = self.value.coalitions
        wanted: dict[tuple[str, int], int] = {}
        for job in jobs:
            sizes = job.masks.sum(axis=1)
            # Where parts can be scored alone, only ∅ and N go through the text: v(N) must be the
            # reward itself.
            job.direct = (sizes == 0) | (sizes == len(job.segmentation)) | (fast is None)
            for mask in job.masks[job.direct]:
                key = (coalition_text(job.segmentation, mask), job.row)
                job.texts.append(wanted.setdefault(key, len(wanted)))
        if not wanted:
            return
        texts, rows = [text for text, _ in wanted], [row for _, row in wanted]
        values = np.asarray(self.value(texts, rows), dtype=np.float64)
        if values.shape != (len(wanted),):
            raise ValueError(
                f"values: wrong length {values.shape}, {len(wanted)} texts were asked for"
            )
        parts: list[np.ndarray | None] = [None] * len(jobs)
        if fast is not None:
            units = [[unit.strip() for unit in job.segmentation.units] for job in jobs]
            parts = list(fast(units, [job.row for job in jobs], [job.masks for job in jobs]))
        elif self.estimator.wants_scores and self.value.pool is not None:
            self._score(self.value.pool, jobs, texts, rows)
        for job, part in zip(jobs, parts, strict=True):
            job.values = (
                np.zeros(len(job.masks)) if part is None else np.array(part, dtype=np.float64)
            )
            if job.values.shape != (len(job.masks),):
                raise ValueError(
                    f"values: wrong length {job.values.shape}, {len(job.masks)} coalitions were "
                    "asked for"
                )
            job.values[job.direct] = values[job.texts]
            try:
                check_evaluations(job.masks, job.values)
            except ValueError as error:
                raise ValueError(
                    f"{error} of {job.segmentation.text!r:.80} (request row {job.row})"
                ) from None

    def _score(
        self, pool: PoolScores, jobs: list["_Job"], texts: list[str], rows: list[int]
    ) -> None:
        """Fill in the jobs' pool scores, of the texts just evaluated, where some coalitions were
        not evaluated.
        """
        unknown = [job for job in jobs if job.played < 1 << len(job.players)]
        needed = sorted({i for job in unknown for i in job.texts})
        if not needed:
            return
        place = {i: position for position, i in enumerate(needed)}
        wanted, of_rows = [texts[i] for i in needed], [rows[i] for i in needed]
        scores = np.asarray(pool.pool_scores(wanted, of_rows))
        if scores.ndim != 2 or len(scores) != len(needed):
            raise ValueError(
                f"scores: wrong shape {scores.shape}, {len(needed)} texts were asked for"
            )
        for job in unknown:
            job.scores = scores[[place[i] for i in job.texts]]

    def _fit(self, job: "_Job") -> Credit:
        n, players = len(job.segmentation), job.players
        played = slice(job.played)
        masks, values = job.masks[played][:, players], job.values[played]
        sizes = masks.sum(axis=1)
        distinct_total = float(values[sizes == len(players)][0])
        empty = float(values[sizes == 0][0])
        scores = None if job.scores is None else job.scores[played]
        distinct = len({mask.tobytes() for mask in masks})
        used = self.estimator.used(len(players), job.unions, distinct, scores is not None)
        if used == Surrogate.name and scores is not None:
            played_phi = self._infer(job, masks, values, scores)
        else:
            played_phi = self.estimator.fit(len(players), job.unions, masks, values)
        total = float(job.values[job.played]) if len(players) < n else distinct_total
        phi = np.full(n, (total - distinct_total) / max(1, n - len(players)))
        phi[players] = played_phi
        evaluations = len({mask.tobytes() for mask in job.masks})
        added = None
        if self.added:
            grown = job.values[len(job.values) - max(n - 1, 0) :]
            added = np.diff([empty, *grown, total])[:n]
        return Credit(job.segmentation, phi, total, evaluations, empty, False, added, used)

    def _infer(
        self, job: "_Job", masks: np.ndarray, values: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        """Credit (n,) of the players by the surrogate.

        Credit is linear in the game, and pool scores tell nothing of prices: the measured part is
        inferred from scores, and the prices, which are nearly additive, are a game of their own.
        """
        assert isinstance(self.estimator, Surrogate)
        pool, price = self.value.pool, self.value.price
        assert pool is not None
        n = len(job.players)
        measure = partial(pool.measure, row=job.row)
        if price is None:
            return self.estimator.fit_scores(n, job.unions, masks, values, scores, measure)
        texts = [coalition_text(job.segmentation, mask) for mask in job.masks[: job.played]]
        prices = np.asarray(price(texts), dtype=np.float64)
        phi = self.estimator.fit_scores(n, job.unions, masks, values + prices, scores, measure)
        return phi - Bayes().fit(n, job.unions, masks, prices) if prices.any() else phi


def _same(total: float, rewards: np.ndarray, b: int) -> bool:
    """Whether answer b's reward is v(N), to the last bit of the rewards' own precision."""
    given = np.asarray(rewards)[b]
    return bool(given == given.dtype.type(total))


class _Job:
    """One game to play: its coalitions, and their values once evaluated."""

    def __init__(
        self,
        segmentation: Segmentation,
        row: int,
        masks: np.ndarray,
        played: int,
        players: np.ndarray,
        unions: tuple[tuple[int, ...], ...],
    ):
        self.segmentation, self.row, self.masks = segmentation, row, masks
        # So many of the masks are for the estimator; then the whole text and the text as it grew.
        self.played = played
        # Segments that play (no repeats); unions of their numbers.
        self.players, self.unions = players, unions
        self.direct = np.zeros(len(masks), dtype=bool)  # coalitions evaluated through their text
        self.texts: list[int] = []  # their numbers in the batch
        self.values = np.zeros(0)
        self.scores: np.ndarray | None = None
