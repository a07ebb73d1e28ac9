"""How a flow run shows itself in Prefect: its name, how it ends on a user's mistake, and the
summary that it carries, with links to MLflow and to the report.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import ParameterTypeError
from prefect.runtime import flow_run

from ospo import tracking
from ospo.config import Config, load_config
from ospo.errors import OspoError
from ospo.paths import PARAMS

# Where Prefect's engine writes the traceback of an exception that ends a run; twice per run.
_ENGINE_LOGGERS = tuple(
    f"prefect.{name}" for name in ("flow_runs", "task_runs", "engine", "flow_engine", "task_engine")
)
EVALUATION = "evaluation"
AS_IN_PARAMS = "params.yaml"  # of a form's list of presets: the one that params.yaml names
_AGAIN = "exited with unexpected exception"  # the engine's second record of the same exception


class OneLine(logging.Filter):
    """A user's mistake (OspoError, or a parameter of the wrong type) is one line in a run's log:
    its traceback would be the engine's own calls.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is kept; its traceback goes where it is of such a mistake."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, OspoError | ParameterTypeError):
            return True
        if _AGAIN in str(record.msg):
            return False
        record.exc_info = record.exc_text = None
        record.msg, record.args = " ".join(str(error).split()), ()
        return True


def install_one_line() -> None:
    """Put the filter where Prefect's engine logs, once however often it is called."""
    for name in _ENGINE_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, OneLine) for known in logger.filters):
            logger.addFilter(OneLine())


def run_name(step: str = "") -> Callable[[], str]:
    """What names a flow run: data set, algorithm (or ``step``) and preset, ``esci-ospo-nano``.

    Parameters that cannot be read leave the preset out; the run itself then says what is wrong.
    """

    def name() -> str:
        given: Mapping[str, Any] = flow_run.parameters
        datasets = [given["dataset"]] if "dataset" in given else given["datasets"] or ["all"]
        parts = [*datasets, step or given["algorithm"]]
        with suppress(OspoError):  # the run itself says it
            parts.append(_preset(given))
        return "-".join(parts)

    return name


def _preset(given: Mapping[str, Any]) -> str:
    """The preset that a run's parameters come to."""
    policy: str | None = given.get("policy")
    if policy and policy != AS_IN_PARAMS:
        return policy
    file, changes = given.get("params", PARAMS), given.get("overrides") or []
    return load_config(file, changes, given.get("dataset")).policy


def carry_summary(
    name: str, dataset: str, words: str, runs: Mapping[str, str], config: Config, report: Path
) -> None:
    """Give the flow run that calls this its summary: ``words`` (markdown), and links to its MLflow
    runs (what it is → id) and to the report, a file that the run ``evaluation`` holds as well.
    """
    create_markdown_artifact(
        key=f"{name}-{dataset}".replace("_", "-"),  # Prefect takes no other characters
        markdown=f"{words}\n\n{links(config, runs, report)}",
        description=f"{name} of {dataset}".capitalize(),
    )


def links(config: Config, runs: Mapping[str, str], report: Path) -> str:
    """MLflow runs and report as one line of markdown: as links where an MLflow server is, otherwise
    by id and file name.
    """
    address = tracking.server_address(config)
    places = tracking.places(config, runs) if address else {}
    parts = []
    for what, run_id in runs.items():
        if what not in places:
            parts.append(f"MLflow run of the {what}: `{run_id}`")
            continue
        link = f"{address}/{places[what].link}"
        parts.append(f"[MLflow run of the {what}]({link})")
        if what == EVALUATION:
            parts.append(f"[Report]({address}/{places[what].report})")
    return " · ".join([*parts, f"report as a file: `{report}`"])
