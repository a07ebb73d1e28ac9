"""A retriever that a test can slow down, so that the run under it stays at work for as long as the
test needs it.

Copied into a test's project (tests/operations.py) and named in its parameters as a user's own
retriever would be: the speed of the machine then does not decide whether a fault meets a run at
work.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ospo.config import Config
from ospo.retrieval.static import StaticRetriever

HOLD = Path(__file__).with_name("hold")  # while this file is there, each call takes PACE seconds
PACE = 1.0


class Paced:
    """The static retriever, at the test's pace."""

    def __init__(self, config: Config) -> None:
        self.inner = StaticRetriever()

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """See ``Retriever``."""
        self.inner.index(item_ids, item_texts, cache)

    def score(self, texts: Sequence[str], rows_BP: np.ndarray) -> np.ndarray:
        """See ``Retriever``."""
        deadline = time.monotonic() + PACE
        while HOLD.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.inner.score(texts, rows_BP)
