"""Plausible mistakes, put in one at a time: does a test turn red?

Each file ``*.yaml`` here lists mistakes of one package of ``ospo``::

    - name: to-go's baseline is taken over the completion itself
      file: ospo/credit/returns.py
      old: "table_GJ = np.full((len(members), width), np.nan)"
      new: "..."
      tests: tests/unit/test_credit_tokens.py

``old`` must stand exactly once in the file. ``tests`` are pytest's arguments, the ones that should
notice. ``equivalent`` in place of ``tests`` says why a change cannot be observed; it is counted
apart and not run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Mutant:
    """One mistake. ``tests``: pytest's arguments; "" where the change is ``equivalent``."""

    group: str
    name: str
    file: str
    old: str
    new: str
    tests: str = ""
    equivalent: str = ""

    def apply(self, root: Path) -> None:
        """Put the mistake into the tree at ``root``. Raises ValueError where it does not fit."""
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.group}: {self.name}: `old` stands {count} times in {self.file}"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


def mutants(group: str = "") -> list[Mutant]:
    """All mistakes, or those of one group, in the order of the files."""
    found = []
    for file in sorted(HERE.glob("*.yaml")):
        if group and file.stem != group:
            continue
        rows: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8")) or []
        found += [Mutant(group=file.stem, **row) for row in rows]
    return found
