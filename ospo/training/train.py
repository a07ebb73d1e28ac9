"""One entry to every algorithm: same data, reward and budget, from the same SFT policy."""

from ospo.config.algorithms import ALGORITHMS
from ospo.training.algorithms import load_trainer
from ospo.training.run import TrainingRun


def train(run: TrainingRun, algorithm: str) -> None:
    """Train with ``algorithm`` from the policy in ``run.start``.

    ``run.out/model`` is complete at the end or absent, and a killed run resumes, for all of them.
    """
    if ALGORITHMS[algorithm].online:
        from ospo.training.rl import train_rl

        train_rl(run, algorithm)
    else:
        load_trainer(algorithm)(run)
