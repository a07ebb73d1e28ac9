"""The algorithms of ``params.yaml``'s ``algorithms`` key: what each one changes, and nothing else
differs.
"""

from dataclasses import dataclass, field
from typing import Any

from ospo.config import Algorithm, Config
from ospo.credit.tokens import Redistribution


@dataclass(frozen=True)
class Online:
    """An algorithm that learns from its own completions, step by step.

    credit: whether phrases are valued. arguments: what it changes of the trainer's arguments.
    segments: the players, where they are not the configured ones. redistribution: where it is not
    the configured one.
    """

    credit: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    segments: str = ""
    redistribution: Redistribution | None = None


# Off-line: rft and dpo, from completions of the SFT policy (ospo.training.offline).
ONLINE: dict[Algorithm, Online] = {
    "grpo": Online(),
    # Dr.GRPO (arXiv 2503.20783) drops the division by the group's std and by the completion's
    # length.
    "dr_grpo": Online(arguments={"loss_type": "dr_grpo", "scale_rewards": "none"}),
    # DAPO (arXiv 2503.14476): token-level loss, a higher upper clip, no gradient from truncated
    # completions. Its resampling of groups with equal rewards is left out: budgets would differ.
    "dapo": Online(
        arguments={"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True}
    ),
    "grpo_lambda": Online(),
    # As SCAR (arXiv 2505.20417): Shapley values of single words as dense rewards, here with their
    # returns relative to the group in place of a value model.
    "shapley_tokens": Online(
        credit=True,
        segments="tokens",
        redistribution=Redistribution(mode="to-go", alpha=1.0, discount=1.0),
    ),
    "ospo": Online(credit=True),
}


def redistribution(config: Config, algorithm: Algorithm) -> Redistribution:
    """How ``algorithm`` turns credit into token advantages; mode "none" where it does not."""
    online = ONLINE[algorithm]
    if not online.credit:
        return Redistribution()
    if online.redistribution is not None:
        return online.redistribution
    credit = config.credit
    return Redistribution(credit.redistribution, credit.alpha, credit.clip, credit.discount)


def with_segments(config: Config, algorithm: Algorithm) -> Config:
    """``config`` with the segments that ``algorithm`` prescribes."""
    segments = ONLINE[algorithm].segments
    if not segments:
        return config
    return config.model_copy(
        update={"credit": config.credit.model_copy(update={"segments": segments})}
    )
