"""What the registry of algorithms (:mod:`ospo.config.algorithms`) means for a trainer."""

import importlib
from typing import Any

from ospo.config import Config
from ospo.config.algorithms import ALGORITHMS
from ospo.credit.tokens import Redistribution


def load_trainer(algorithm: str) -> Any:
    """The trainer class (online) or training function (offline) of an algorithm."""
    module, _, name = ALGORITHMS[algorithm].trainer.partition(":")
    return importlib.import_module(module).__dict__[name]


def redistribution(config: Config, algorithm: str) -> Redistribution:
    """How ``algorithm`` turns credit into token advantages; mode "none" where it does not."""
    spec = ALGORITHMS[algorithm]
    if not spec.credit:
        return Redistribution()
    if spec.redistribution is not None:
        return Redistribution(**spec.redistribution)
    credit = config.credit
    return Redistribution(credit.redistribution, credit.alpha, credit.clip, credit.discount)


def with_segments(config: Config, algorithm: str) -> Config:
    """``config`` with the segments that ``algorithm`` prescribes."""
    segments = ALGORITHMS[algorithm].segments
    if not segments:
        return config
    return config.model_copy(
        update={"credit": config.credit.model_copy(update={"segments": segments})}
    )
