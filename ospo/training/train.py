"""One door to every algorithm: same data, reward and budget, from the same SFT policy."""

from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from ospo.config import Algorithm, Config
from ospo.data.dataset import PreparedData
from ospo.training.callbacks import OnLog, OnTable
from ospo.training.ospo import Reward


def train(
    config: Config,
    data: PreparedData,
    algorithm: Algorithm,
    sft_model: Path,
    reward: Reward,
    out: Path,
    on_log: OnLog,
    on_table: OnTable | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train with ``algorithm`` from the policy in ``sft_model``; see
    :func:`ospo.training.rl.train_rl`.

    ``out/model`` is complete at the end or absent, and a run that was killed goes on where it was,
    for all of them. ``callbacks`` see the trainer's events.
    """
    if algorithm == "rft":
        from ospo.training.rft import train_rft

        train_rft(config, data, sft_model, reward, out, on_log, callbacks)
    elif algorithm == "dpo":
        from ospo.training.dpo import train_dpo

        train_dpo(config, data, sft_model, reward, out, on_log, callbacks)
    else:
        from ospo.training.rl import train_rl

        train_rl(config, data, algorithm, sft_model, reward, out, on_log, on_table, callbacks)
