"""The registry of algorithms: each is described here, once.

``params.yaml``'s choices, the labels and order of tables, and the dispatch to a trainer are derived
from it. To add an algorithm, add an entry and its trainer class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal


@dataclass(frozen=True)
class AlgorithmSpec:
    """One algorithm: what it changes, and nothing else differs between algorithms.

    label: as tables show it. trainer: ``module:name`` of what trains. An online algorithm learns
    from its own completions step by step, and ``trainer`` is a subclass of
    :class:`ospo.training.ospo.OSPOTrainer`; an offline one learns from completions of the SFT
    policy, and ``trainer`` is a function of a :class:`ospo.training.run.TrainingRun`. credit:
    whether segments are valued. arguments: what it changes of the trainer's arguments. segments:
    the players, where they are not the configured ones. redistribution: fields of
    :class:`ospo.credit.tokens.Redistribution`, where it is not the configured one.
    """

    name: str
    label: str
    trainer: str
    online: bool
    credit: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    segments: str = ""
    redistribution: Mapping[str, Any] | None = None


_OSPO = "ospo.training.ospo:OSPOTrainer"

ALGORITHMS: dict[str, AlgorithmSpec] = {
    spec.name: spec
    for spec in (
        # SFT by rejection sampling (RFT, arXiv 2308.01825): imitates the policy's best completions.
        AlgorithmSpec("rft", "RFT", "ospo.training.rft:train_rft", online=False),
        AlgorithmSpec("dpo", "DPO", "ospo.training.dpo:train_dpo", online=False),
        AlgorithmSpec("grpo", "GRPO", _OSPO, online=True),
        # Dr.GRPO (arXiv 2503.20783) drops the division by the group's std and by the completion's
        # length.
        AlgorithmSpec(
            "dr_grpo",
            "Dr.GRPO",
            _OSPO,
            online=True,
            arguments={"loss_type": "dr_grpo", "scale_rewards": "none"},
        ),
        # DAPO (arXiv 2503.14476): token-level loss, a higher upper clip, no gradient from truncated
        # completions. Its resampling of groups with equal rewards is left out: budgets would
        # differ.
        AlgorithmSpec(
            "dapo",
            "DAPO",
            _OSPO,
            online=True,
            arguments={
                "loss_type": "dapo",
                "epsilon_high": 0.28,
                "mask_truncated_completions": True,
            },
        ),
        AlgorithmSpec(
            "grpo_lambda",
            "GRPO-λ",
            "ospo.training.grpo_lambda:GRPOLambdaTrainer",
            online=True,
        ),
        # As SCAR (arXiv 2505.20417): Shapley values of single words as dense rewards, here with
        # their returns relative to the group in place of a value model.
        AlgorithmSpec(
            "shapley_tokens",
            "token Shapley",
            _OSPO,
            online=True,
            credit=True,
            segments="tokens",
            redistribution={"mode": "to-go", "alpha": 1.0, "discount": 1.0},
        ),
        AlgorithmSpec("ospo", "OSPO", _OSPO, online=True, credit=True),
    )
}

if TYPE_CHECKING:
    Algorithm = str
else:
    Algorithm = Literal[tuple(ALGORITHMS)]

# Policies that no algorithm makes, with their labels: they stand first in tables.
_OTHERS = {"raw": "raw query", "sft": "SFT"}
LABELS: dict[str, str] = _OTHERS | {name: spec.label for name, spec in ALGORITHMS.items()}
