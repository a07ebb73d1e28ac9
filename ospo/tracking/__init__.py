"""Experiment tracking in MLflow: ``run`` for a step's records, ``sync`` for what was left while
MLflow was away.
"""

from ospo.tracking.recorder import Recorder, SilentRun
from ospo.tracking.runs import Run, dataset_digest, flatten
from ospo.tracking.session import (
    Place,
    RunDetails,
    Terminated,
    amend,
    places,
    run,
    server_address,
    setup,
    sync,
)
from ospo.tracking.store import TRAINING_VIEW, TrackingError, record_name, tracking_uri

__all__ = [
    "TRAINING_VIEW",
    "Place",
    "Recorder",
    "Run",
    "RunDetails",
    "SilentRun",
    "Terminated",
    "TrackingError",
    "amend",
    "dataset_digest",
    "flatten",
    "places",
    "record_name",
    "run",
    "server_address",
    "setup",
    "sync",
    "tracking_uri",
]
