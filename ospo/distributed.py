"""One run in several processes (``accelerate launch``): who keeps the books, and waiting for each
other.
"""

import os
from typing import Any


def processes() -> int:
    """How many processes work on this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process locks, tracks and writes for all of them."""
    return processes() == 1 or os.environ.get("RANK", "0") == "0"


def together() -> None:
    """Wait until every process of the run is here; nothing where this is the only one."""
    if processes() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


class Follower:
    """Stands in for the tracked run in processes that are not the main one: takes everything, keeps
    nothing.
    """

    id = ""

    def _left(self, *_: Any, **__: Any) -> None:
        """Left to the main process."""

    log_metrics = log_params = log_dict = log_text = log_table = _left
    log_artifact = log_artifacts = log_dataset = set_tags = _left
