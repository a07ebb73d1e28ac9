"""Reading the metrics file that every training run writes, ``metrics.jsonl``: one JSON object per
step.
"""

import json
from pathlib import Path

from ospo.errors import InputError


def read_metrics(file: str | Path) -> list[dict[str, float]]:
    """Lines of a metrics file in order, each with its ``step`` (int); [] where there is no file.

    What follows the last line end was torn by a kill and is left out. Raises InputError naming the
    line for any other that is not a JSON object with a step.
    """
    file = Path(file)
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, KeyError, TypeError):
            raise InputError(
                file, f"line {number}", "is not a line of metrics", "remove it"
            ) from None
        rows.append(row)
    return rows
