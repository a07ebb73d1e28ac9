"""Benchmarks: ``python -m benchmarks.NAME``. Progress goes to stderr, one JSON object is the last
line of stdout.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def progress(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """The machine a figure was measured on, and how busy it was with other work."""
    import torch

    return {
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.machine()),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 2),
    }


def finish(result: dict[str, Any]) -> None:
    """Print ``result`` as one JSON line; NaN is refused (ValueError)."""
    print(json.dumps(result, allow_nan=False), flush=True)


def start(main: Callable[[], None]) -> None:
    """Call ``main``; a problem that the user can mend, such as data that are not prepared, is one
    line on stderr and exit code 2.
    """
    from ospo.errors import OspoError

    try:
        main()
    except OspoError as error:
        print(f"ospo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def prepared(dataset: str) -> None:
    """Raise InputError, which names what to run, where a data set's tables are missing: before
    worker processes are started, whose errors are in their logs.
    """
    from ospo.data.dataset import load_prepared
    from ospo.paths import PREPARED

    load_prepared(PREPARED / dataset)
