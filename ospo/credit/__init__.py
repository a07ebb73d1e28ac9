"""Credit for the parts of a text: Shapley and Owen values of its segments, laid on a policy's own
tokens.

Usable alone: imports numpy, torch and, when phrases are first wanted, spaCy; nothing else of OSPO.
"""

from ospo.credit.advantages import redistribute, redistribute_returns, shaped_rewards
from ospo.credit.alignment import token_credit, token_spans
from ospo.credit.engine import Credit, CreditEngine, coalition_text
from ospo.credit.estimators import Estimator
from ospo.credit.owen import owen_values, shapley_values
from ospo.credit.registry import ESTIMATORS, get_estimator
from ospo.credit.returns import decisions, group_relative_returns, returns
from ospo.credit.segments import Segmentation, merge_segments, segment, segment_many
from ospo.credit.tokens import (
    Completions,
    Redistribution,
    completion_advantages,
    group_advantages,
    paid,
    silent_groups,
    token_advantages,
    whole_text,
)
from ospo.credit.values import CoalitionValues, PlainValue, PoolScores, Value, as_value

__all__ = [
    "ESTIMATORS",
    "CoalitionValues",
    "Completions",
    "Credit",
    "CreditEngine",
    "Estimator",
    "PlainValue",
    "PoolScores",
    "Redistribution",
    "Segmentation",
    "Value",
    "as_value",
    "coalition_text",
    "completion_advantages",
    "decisions",
    "get_estimator",
    "group_advantages",
    "group_relative_returns",
    "merge_segments",
    "owen_values",
    "paid",
    "redistribute",
    "redistribute_returns",
    "returns",
    "segment",
    "segment_many",
    "shaped_rewards",
    "shapley_values",
    "silent_groups",
    "token_advantages",
    "token_credit",
    "token_spans",
    "whole_text",
]
