"""Evaluation under retrievers that training never saw: rollouts, measures, statistics, report."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ospo.evaluation.robustness import best_policy, evaluate

__all__ = ["best_policy", "evaluate"]


def __getattr__(name: str) -> Any:
    # Imported on use: statistics and report need neither torch nor transformers.
    if name in __all__:
        from ospo.evaluation import robustness

        return getattr(robustness, name)
    raise AttributeError(name)
