"""Experiment tracking in MLflow: ``run`` for a step's records, ``sync`` for what was left while
MLflow was away.
"""

from ospo.tracking.recorder import Recorder, SilentRun
from ospo.tracking.runs import Run, dataset_digest, flatten
from ospo.tracking.session import RunDetails, Terminated, run, setup, sync
from ospo.tracking.store import TrackingError, record_name, tracking_uri

__all__ = [
    "Recorder",
    "Run",
    "RunDetails",
    "SilentRun",
    "Terminated",
    "TrackingError",
    "dataset_digest",
    "flatten",
    "record_name",
    "run",
    "setup",
    "sync",
    "tracking_uri",
]
