"""Which policy is registered, and the order and labels in which policies are shown."""

from collections.abc import Mapping, Sequence
from typing import Any

from ospo.config import LABELS

Summary = Mapping[str, Mapping[str, Mapping[str, float]]]  # split → policy → retriever → nDCG@10


def label(policy: str) -> str:
    """A policy's name as tables show it."""
    return LABELS.get(policy, policy)


def ordered(policies: Any) -> list[str]:
    """Policies in the tables' order: raw query, SFT, the algorithms, OSPO, then any other in the
    given order.
    """
    names = list(policies)
    return [name for name in LABELS if name in names] + [
        name for name in names if name not in LABELS
    ]


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
