"""The credit engine of ``params.yaml``: the same for training, evaluation and explanations."""

from ospo.config import Config
from ospo.credit import CreditEngine
from ospo.credit.values import Function, Value


def credit_engine(
    config: Config,
    reward: Value | Function,
    *,
    estimator: str | None = None,
    budget: int | None = None,
    added: bool = False,
    language: str = "en",
) -> CreditEngine:
    """The credit engine of ``config.credit``, over the very function that gives the terminal
    reward.

    ``estimator`` and ``budget`` overrule the configured ones, for callers that may spend more on a
    text than training. ``added``: also what each segment added to those before it.
    ``language``: of the answers.
    """
    settings = config.credit
    return CreditEngine(
        reward,
        segments=settings.segments,
        unions=settings.unions,
        estimator=estimator or settings.estimator,
        window=settings.window,
        budget=budget or settings.budget,
        seed=config.seed,
        added=added,
        language=language,
    )
