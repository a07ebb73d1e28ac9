"""Prefect flows: decorators, names and artifacts around single calls into ``ospo``."""

import os

# Without a server of its own (PREFECT_API_URL) a flow starts one; on a busy machine that takes
# longer than Prefect's 20 seconds. Must be set before prefect is imported.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
