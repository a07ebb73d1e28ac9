"""Estimators by name, and the choice among them."""

from ospo.credit.bayes import MAX_PLAYERS, Bayes, Surrogate
from ospo.credit.estimators import (
    Contiguous,
    Estimator,
    Exact,
    Kernel,
    Permutation,
    Stratified,
    exact_evaluations,
)


class Auto(Surrogate):
    """Exact whenever the budget covers it, else what the evidence favours (docs/credit.md).

    That is ``surrogate`` where the value function shows its pool scores and ``bayes`` where it does
    not. Beyond 16 segments: permutation sampling, or the paper's windows where the budget is too
    small even for one order.
    """

    name = "auto"

    def _choose(self, n: int, unions, budget: int) -> Estimator:
        if exact_evaluations(n, unions) <= budget:
            return Exact()
        if n <= MAX_PLAYERS:
            return Bayes()
        return Permutation() if budget > n else Contiguous()

    def plan(self, n, unions, budget, rng):
        return self._choose(n, unions, budget).plan(n, unions, budget, rng)

    def fit(self, n, unions, masks, values):
        distinct = len({mask.tobytes() for mask in masks})
        return self._choose(n, unions, distinct).fit(n, unions, masks, values)

    def fit_scores(self, n, unions, masks, values, scores, measure):
        distinct = len({mask.tobytes() for mask in masks})
        if self.used(n, unions, distinct, True) != Surrogate.name:
            return self.fit(n, unions, masks, values)
        return super().fit_scores(n, unions, masks, values, scores, measure)

    def used(self, n, unions, evaluated, scored):
        chosen = self._choose(n, unions, evaluated)
        return Surrogate.name if scored and isinstance(chosen, Bayes) else chosen.name


ESTIMATORS = (
    "exact",
    "contiguous",
    "permutation",
    "stratified",
    "kernel",
    "bayes",
    "surrogate",
    "auto",
)


def get_estimator(name: str, window: int = 8) -> Estimator:
    """The estimator of that name; ``window`` is the contiguous one's. Raises ValueError for an
    unknown name.
    """
    match name:
        case "contiguous":
            return Contiguous(window)
        case "exact" | "permutation" | "stratified" | "kernel" | "bayes" | "surrogate" | "auto":
            kinds = (Exact, Permutation, Stratified, Kernel, Bayes, Surrogate, Auto)
            return next(kind() for kind in kinds if kind.name == name)
    raise ValueError(f"estimator: unknown name {name!r}, use one of {', '.join(ESTIMATORS)}")
