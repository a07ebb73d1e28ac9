"""The ``ospo`` command. Each command is a thin call into the library; heavy imports wait until one
runs.
"""

import os

# Weights come from packages or from where the user says; nothing is fetched from a hub behind the
# user's back. Set before any command imports a library that reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from ospo.cli.application import app, main

__all__ = ["app", "main"]
