"""Which MLflow store is used, and how its refusals differ from its absence."""

import logging
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Before mlflow is imported: no usage reports; and a server that is away must be noticed in seconds,
# not after the four minutes of MLflow's own retries. The journal retries for as long as the run
# lives.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# It prints the address of each run that ends, with user and password where the address holds them.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Seconds; without it a PostgreSQL address where nothing answers takes minutes.
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ospo.config import Config
from ospo.errors import OspoError
from ospo.paths import ARTIFACTS
from ospo.tracking.database import SQLITE, prepare_database

for _name in ("mlflow.store.db.utils", "mlflow.models.signature", "alembic"):
    logging.getLogger(_name).setLevel(
        logging.WARNING
    )  # lines about tables, in the middle of a progress bar
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
# What MLflow's pages call "model training": tables of runs and metrics, not of traces.
KIND = ("mlflow.experimentKind", "custom_model_development")
# In an address, because MLflow 3.17 goes by what a browser chose before and not by the kind.
TRAINING_VIEW = "workflowType=machine_learning"
# Codes that say "not like this", as against "not now": sending the same again cannot succeed.
_PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "ENDPOINT_NOT_FOUND",
    "BAD_REQUEST",
}


class TrackingError(OspoError):
    """MLflow refused something, or the local store cannot be used; one line with the fix."""


class Unreachable(Exception):
    """The store does not answer at present."""


def tracking_uri(config: Config, root: Path) -> str:
    """The store's address: MLFLOW_TRACKING_URI if set, else params.yaml's; relative sqlite files
    lie under ``root``.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or config.tracking.uri
    if match := re.fullmatch(r"sqlite:///([^/].*)", uri):
        return f"sqlite:///{root.resolve() / match.group(1)}"
    if (
        urlsplit(uri).scheme not in ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
        and "+" not in uri
    ):
        raise TrackingError(
            f"tracking.uri: {without_password(uri)!r} is no MLflow store. "
            "Fix: use sqlite:///mlflow.db or the address of an MLflow server, such as "
            "http://127.0.0.1:5000"
        )
    return uri


def without_password(uri: str) -> str:
    """``uri``, or a text that holds addresses, fit for a log: users and passwords removed, values
    of query strings and named secrets replaced.

    A password may hold ``@`` or ``/``: everything up to the last ``@`` of a word goes.
    """
    uri = re.sub(r"://\S*@", "://", uri)
    uri = re.sub(r"([?&][\w.%-]+)=[^&#\s'\"]+", r"\1=…", uri)
    return re.sub(r"(?i)\b(password|passwd|token|secret)\s*[=:]\s*[^\s&]+", r"\1=…", uri)


def is_server(uri: str) -> bool:
    """Whether the store is behind an MLflow server (which may go away and come back)."""
    return uri.startswith(("http://", "https://"))


def artifact_location(uri: str, root: Path) -> str | None:
    """Where a new experiment keeps its files; None leaves it to the server.

    That is a server on another machine, or one that was told where files go
    (MLFLOW_ARTIFACTS_DESTINATION). Otherwise it is always the same folder, whether runs go to the
    database or through a server over it, so that both ways can read every artifact.
    """
    parts = urlsplit(uri)
    if is_server(uri) and (
        parts.hostname not in _LOCAL_HOSTS or os.environ.get("MLFLOW_ARTIFACTS_DESTINATION")
    ):
        return None
    if uri.startswith(SQLITE):
        return (Path(uri.removeprefix(SQLITE)).parent / ARTIFACTS).as_uri()
    return (root.resolve() / ARTIFACTS).as_uri()


def describe(error: BaseException) -> str:
    """An exception as one line without passwords."""
    return without_password(" ".join(str(error).split()))[:300]


def is_permanent(error: BaseException) -> bool:
    """Whether sending the same again is useless."""
    return isinstance(error, MlflowException) and error.error_code in _PERMANENT


def open_database(uri: str) -> None:
    """Make the database of ``uri`` where it is a missing sqlite file, and see whether it answers;
    nothing for a server. Raises TrackingError.
    """
    if is_server(uri):
        return
    user = re.match(r"[^:]+://(\S*)@", uri)
    if user and re.search("[@/]", user.group(1)):
        raise TrackingError(
            f"tracking.uri: in {without_password(uri)}, the user or password holds @ or /. "
            "Fix: write %40 for @ and %2F for /, or leave the password to PGPASSWORD"
        )
    try:
        prepare_database(uri)
    except Exception as error:  # SQLAlchemy and driver errors have no common base
        fix = (
            "free the disk, or make its folder writable"
            if uri.startswith(SQLITE)
            else "start the database, or correct the address"
        )
        raise TrackingError(
            f"tracking.uri: the MLflow store {without_password(uri)} cannot be opened "
            f"({describe(error)}). Fix: {fix}"
        ) from error


def client_for(uri: str) -> MlflowClient:
    """A client; the store is not contacted yet, except that a database is opened and made.

    Raises TrackingError where the database cannot be opened.
    """
    open_database(uri)
    try:
        return MlflowClient(
            tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri
        )
    except (
        Exception
    ) as error:  # SQLAlchemy and driver errors have no common base; all mean the same here
        raise TrackingError(
            f"tracking.uri: the MLflow store {without_password(uri)} cannot be opened "
            f"({describe(error)}). "
            "Fix: move a broken mlflow.db away, run `mlflow db upgrade URI` for an old one, or "
            "correct the address"
        ) from error


def experiment_id(client: MlflowClient, name: str, location: str | None) -> str:
    """The id of experiment ``name``, made with its artifact location where it does not exist, and
    marked as one of model training where nobody chose another kind.
    """
    found: Any = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location, tags=dict([KIND]))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process made it just now
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"tracking.experiment: {name!r} was deleted in MLflow. Fix: `mlflow experiments "
            "restore "
            f"--experiment-id {found.experiment_id}`, or choose another name in params.yaml"
        )
    kind = found.tags.get(KIND[0], "no_inferred_type")
    if kind == "no_inferred_type" or kind.endswith("_inferred"):  # not one that somebody chose
        client.set_experiment_tag(found.experiment_id, *KIND)
    return str(found.experiment_id)


def record_name(name: str) -> str:
    """``name`` as MLflow takes it for a metric or a tag: a retriever may be called by a URL, whose
    ``//`` and brackets it refuses.
    """
    plain = re.sub(r"[^\w. :/-]", "-", name, flags=re.ASCII)
    return re.sub(r"/(\.*/)+", "/", plain).strip("/")
