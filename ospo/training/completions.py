"""The table of sampled completions: what the policy wrote, what it earned, and which phrase earned
it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ospo.errors import InputError
from ospo.files import atomic_file

SCHEMA: dict[str, Any] = {
    "step": pl.Int32,
    "request_id": pl.String,
    "answer": pl.String,
    "completion": pl.String,
    "reward": pl.Float64,
    "advantage": pl.Float32,
    "segments": pl.List(pl.String),
    "credit": pl.List(pl.Float32),
    "empty_value": pl.Float64,
}


class CompletionTable:
    """Rows of one run, kept in memory and written whole: every sampled completion of every step.

    ``segments`` and ``credit`` are aligned lists, empty where no credit was computed. Steps that a
    resumed run goes through again replace their earlier rows.
    """

    def __init__(self, file: Path, request_ids: Sequence[str]):
        self.file, self.request_ids = file, request_ids
        self._rows: list[dict[str, Any]] = []
        self._before = pl.DataFrame(schema=SCHEMA)
        if file.is_file():
            try:
                self._before = pl.read_parquet(file, glob=False).select(list(SCHEMA)).cast(SCHEMA)  # type: ignore[arg-type]
            except pl.exceptions.PolarsError as error:
                raise InputError(
                    file, "", f"is not a table of completions ({error})", "delete it"
                ) from None

    def add(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Add one step's completions: ``row`` (request row) and the columns of SCHEMA but ``step``,
        ``request_id``.
        """
        for row in rows:
            values = {key: value for key, value in row.items() if key != "row"}
            self._rows.append({"step": step, "request_id": self.request_ids[row["row"]]} | values)

    def sample(self, step: int, size: int = 32) -> list[dict[str, Any]]:
        """The first ``size`` completions of a step as plain rows for people, each phrase with its
        credit.
        """
        rows = [row for row in self._rows if row["step"] == step][:size]
        return [
            {
                "step": step,
                "request": row["request_id"],
                "answer": row["answer"],
                "reward": round(row["reward"], 4),
                "advantage": round(row["advantage"], 3),
                "credit": " | ".join(
                    f"{phrase.strip()} {phi:+.3f}"
                    for phrase, phi in zip(row["segments"], row["credit"], strict=True)
                ),
                "completion": row["completion"],
            }
            for row in rows
        ]

    def frame(self) -> pl.DataFrame:
        """All rows, in order of steps."""
        new = pl.DataFrame(self._rows, schema=SCHEMA)
        first = min((row["step"] for row in self._rows), default=None)
        before = self._before if first is None else self._before.filter(pl.col("step") < first)
        return pl.concat([before, new])

    def write(self) -> None:
        """Write the table atomically."""
        with atomic_file(self.file) as temporary:
            self.frame().write_parquet(temporary)
