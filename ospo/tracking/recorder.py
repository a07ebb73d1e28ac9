"""What a step may record: the methods of a tracked run, and a stand-in that records nothing."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

Rows = pl.DataFrame | Sequence[Mapping[str, Any]]


class Recorder(ABC):
    """Takes what a step measures. Methods return at once and raise for wrong arguments only."""

    @property
    @abstractmethod
    def id(self) -> str:
        """The run's id, "" where nothing is recorded."""

    @abstractmethod
    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one step. Values are floats without unit unless the name says so; NaN is kept
        as NaN.
        """

    @abstractmethod
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters, flattened to dotted keys; one that is set already cannot be changed."""

    @abstractmethod
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Tags; later values replace earlier ones."""

    @abstractmethod
    def describe(self, text: str) -> None:
        """``text`` (markdown) as the run's description; it replaces the one before."""

    @abstractmethod
    def log_dict(self, name: str, value: Any) -> None:
        """``value`` as JSON artifact ``name``."""

    @abstractmethod
    def log_text(self, name: str, text: str) -> None:
        """``text`` as artifact ``name``."""

    @abstractmethod
    def log_table(self, name: str, rows: Rows) -> None:
        """A table as artifact ``name`` (ends in .json): a DataFrame, or rows with the same keys."""

    @abstractmethod
    def log_artifact(self, path: str | Path, artifact_path: str = "") -> None:
        """A file, or everything in a directory, under ``artifact_path``."""

    @abstractmethod
    def log_dataset(
        self,
        name: str,
        directory: str | Path,
        md5: str | Mapping[str, str],
        context: str = "training",
    ) -> None:
        """A prepared data set as input of the run, with the counts of its stats.json."""


class SilentRun(Recorder):
    """For the processes of a run that leave recording to the main one."""

    @property
    def id(self) -> str:
        """Always empty."""
        return ""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Left to the main process, like all that follows."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """See the class."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """See the class."""

    def describe(self, text: str) -> None:
        """See the class."""

    def log_dict(self, name: str, value: Any) -> None:
        """See the class."""

    def log_text(self, name: str, text: str) -> None:
        """See the class."""

    def log_table(self, name: str, rows: Rows) -> None:
        """See the class."""

    def log_artifact(self, path: str | Path, artifact_path: str = "") -> None:
        """See the class."""

    def log_dataset(
        self,
        name: str,
        directory: str | Path,
        md5: str | Mapping[str, str],
        context: str = "training",
    ) -> None:
        """See the class."""
