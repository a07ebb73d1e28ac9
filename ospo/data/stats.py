"""Counts of what preparation read, kept and dropped, and why."""

from dataclasses import dataclass, field
from typing import Any

import polars as pl


@dataclass
class Stats:
    """Counters that end up in stats.json. ``dropped`` maps a reason to a number of rows, queries or requests."""

    read: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int) -> None:
        """Add ``count`` to a reason; the reason is listed even where the count is 0."""
        self.dropped[reason] = self.dropped.get(reason, 0) + int(count)

    def keep(self, frame: pl.DataFrame, reason: str, condition: pl.Expr) -> pl.DataFrame:
        """Rows of ``frame`` that meet ``condition``; the others are counted under ``reason``."""
        kept = frame.filter(condition)
        self.drop(reason, len(frame) - len(kept))
        return kept

    def as_dict(self) -> dict[str, Any]:
        """The content of stats.json."""
        return {"read": self.read, "kept": self.kept, "dropped": self.dropped, "used": self.used}
