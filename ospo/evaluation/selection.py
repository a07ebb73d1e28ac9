"""Which policy is registered, and the order and labels in which policies are shown."""

from collections.abc import Mapping, Sequence
from typing import Any

from ospo.config import ALGORITHMS, LABELS
from ospo.policy.rules import RAW, RULES

# In the order of tables: the rules (the raw query first), SFT, the algorithms.
NAMES = {name: rule.label for name, rule in RULES.items()} | {
    name: text for name, text in LABELS.items() if name not in RULES
}

Summary = Mapping[str, Mapping[str, Mapping[str, float]]]  # split → policy → retriever → nDCG@10


def label(policy: str) -> str:
    """A policy's name as tables show it."""
    return NAMES.get(policy, policy)


def guard_label(policy: str) -> str:
    """The name of a policy under its guard (``ospo.evaluation.guard``) in tables."""
    return f"{label(policy)} + guard"


def control_label(policy: str) -> str:
    """The name of a policy's control (``ospo.evaluation.control``) in tables."""
    return f"control: {label(policy)} for other requests"


def ordered(policies: Any) -> list[str]:
    """Policies in the tables' order: raw query, the other rules, SFT, the algorithms, OSPO, then
    any other in the given order.
    """
    names = list(policies)
    return [name for name in NAMES if name in names] + [name for name in names if name not in NAMES]


def best_policy(
    summary: Summary, training_retriever: str, policies: Sequence[str] = ("grpo", "ospo")
) -> str:
    """The policy to register: the one of ``policies`` with the highest validation nDCG@10 on the
    training retriever.

    Ties go to the one named first. Raises ValueError where none of them was evaluated.
    """
    table = summary["validation"]
    known = [policy for policy in policies if policy in table]
    if not known:
        raise ValueError(f"none of {', '.join(policies)} was evaluated")
    return max(known, key=lambda policy: table[policy][training_retriever])


def reported_policy(
    summary: Summary, training_retriever: str, policies: Sequence[str] | None = None
) -> str:
    """The policy that a report is about: the one of ``policies`` (default: all evaluated) that
    registration would take, by validation requests; without any of an algorithm the best that is no
    rule, without any of these the best rule but the raw query.

    Raises ValueError where there is none.
    """
    learned = [p for p in policies or summary["validation"] if p != RAW]
    others = [policy for policy in learned if policy not in RULES]
    trained = [policy for policy in learned if policy in ALGORITHMS]
    return best_policy(summary, training_retriever, trained or others or learned)


def best_rule(summary: Summary, training_retriever: str, *, standalone: bool = False) -> str:
    """The rule that a policy has to beat: the evaluated one with the highest validation nDCG@10 on
    the training retriever, so that test requests do not choose it. Ties go to the raw query.

    ``standalone``: of those that answer from the request alone. Raises ValueError where none was
    evaluated.
    """
    rules = [name for name, rule in RULES.items() if rule.standalone or not standalone]
    return best_policy(summary, training_retriever, rules)
