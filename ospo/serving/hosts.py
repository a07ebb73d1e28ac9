"""A served model answers to the names of ``ospo.hosts`` only: MLflow's scoring server answers every
name, and has no setting.
"""

import os
from typing import Any

import fastapi
from mlflow.pyfunc import scoring_server
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ospo.hosts import allowed_hosts


def refuse_other_hosts() -> None:
    """Let the server of this process answer ``allowed_hosts`` only, others with 400; nothing where
    the process is not ``mlflow models serve``.

    MLflow's server loads the model first and makes its application afterwards, by the class that is
    put in place here and takes itself away again.
    """
    if scoring_server._SERVER_MODEL_PATH not in os.environ:
        return
    plain = fastapi.FastAPI

    class Guarded(plain):  # type: ignore[valid-type,misc]
        """The next application, behind the check of its names."""

        def __init__(self, *args: Any, **options: Any):
            fastapi.FastAPI = plain  # type: ignore[misc]
            super().__init__(*args, **options)
            self.add_middleware(
                TrustedHostMiddleware, allowed_hosts=allowed_hosts(), www_redirect=False
            )

    fastapi.FastAPI = Guarded  # type: ignore[misc]
