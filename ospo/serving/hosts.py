"""What MLflow's scoring server has no setting for: which names it answers to (``ospo.hosts``), and
how many requests it hands to the model at a time.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import fastapi
from mlflow.pyfunc import scoring_server
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ospo.hosts import allowed_hosts

AT_ONCE = 64
"""Requests that are in the model at a time: twice a batch, so that the next one is full when one
ends. asyncio's own limit is the processors and four."""


@asynccontextmanager
async def _many_at_once(app: fastapi.FastAPI) -> AsyncIterator[None]:
    """MLflow hands each request to the event loop's own threads."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="rewrite") as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        yield


def set_up_server() -> None:
    """Let the server of this process answer ``allowed_hosts`` only, others with 400, and work on
    ``AT_ONCE`` requests at a time; nothing where the process is not ``mlflow models serve``.

    MLflow's server loads the model first and makes its application afterwards, by the class that is
    put in place here and takes itself away again.
    """
    if scoring_server._SERVER_MODEL_PATH not in os.environ:
        return
    plain = fastapi.FastAPI

    class Guarded(plain):  # type: ignore[valid-type,misc]
        """The next application, with more threads and behind the check of its names."""

        def __init__(self, *args: Any, **options: Any):
            fastapi.FastAPI = plain  # type: ignore[misc]
            super().__init__(*args, lifespan=_many_at_once, **options)
            self.add_middleware(
                TrustedHostMiddleware, allowed_hosts=allowed_hosts(), www_redirect=False
            )

    fastapi.FastAPI = Guarded  # type: ignore[misc]
