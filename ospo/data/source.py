"""What preparation reads: a data set of params.yaml and the folder of its raw files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ospo.config import Config, DataSet

Options = TypeVar("Options", bound=DataSet, covariant=True)


@dataclass(frozen=True)
class Source(Generic[Options]):
    """A data set to prepare.

    options: its section of params.yaml. evaluation_only: training requests may be missing.
    """

    name: str
    raw: Path
    options: Options
    config: Config
    evaluation_only: bool = False

    def key(self, option: str) -> str:
        """The key of params.yaml that an error line names."""
        return f"data.{self.name}.{option}"
