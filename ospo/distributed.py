"""One run in several processes (``accelerate launch``): which of them records it, and waiting for
each other.
"""

import os
from collections.abc import Callable


def processes() -> int:
    """How many processes work on this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process locks, tracks and writes for all of them."""
    return processes() == 1 or os.environ.get("RANK", "0") == "0"


def wait_for_all() -> None:
    """Wait until every process of the run is here; nothing where this is the only one."""
    if processes() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def by_main(decide: Callable[[], bool]) -> bool:
    """What ``decide`` says in the main process, in every process; the others do not call it."""
    found = [decide() if is_main() else False]
    if processes() > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(found)
    return found[0]
