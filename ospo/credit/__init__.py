"""Credit for the parts of a text: Shapley and Owen values of its segments, laid on a policy's own
tokens.

Usable alone: imports numpy, torch and, when phrases are first wanted, spaCy; nothing else of OSPO.
"""

from ospo.credit.advantages import redistribute, shaped_rewards
from ospo.credit.alignment import token_credit, token_spans
from ospo.credit.engine import Credit, CreditEngine, coalition_text
from ospo.credit.estimators import Estimator
from ospo.credit.owen import owen_values, shapley_values
from ospo.credit.registry import ESTIMATORS, get_estimator
from ospo.credit.returns import decisions, group_relative_returns, returns
from ospo.credit.segments import Segmentation, merge_segments, segment, segment_many

__all__ = [
    "ESTIMATORS",
    "Credit",
    "CreditEngine",
    "Estimator",
    "Segmentation",
    "coalition_text",
    "decisions",
    "get_estimator",
    "group_relative_returns",
    "merge_segments",
    "owen_values",
    "redistribute",
    "returns",
    "segment",
    "segment_many",
    "shaped_rewards",
    "shapley_values",
    "token_credit",
    "token_spans",
]
