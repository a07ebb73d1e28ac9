"""Which names a served model answers to.

A browser reaches 127.0.0.1 for any page whose owner points the page's name there (DNS rebinding);
that name stands in ``Host``. MLflow's scoring server answers every name, and has no setting.
"""

import os
from typing import Any

import fastapi
from mlflow.pyfunc import scoring_server
from starlette.middleware.trustedhost import TrustedHostMiddleware

VARIABLE = "OSPO_ALLOWED_HOSTS"
"""Names under which a reverse proxy shows the server, separated by commas; * answers all."""
_OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")


def allowed_hosts() -> list[str]:
    """Names in a request's ``Host`` that are answered, without port: this machine's own, and those
    configured.
    """
    given = os.environ.get(VARIABLE, "").split(",")
    return [*_OWN_NAMES, *(name.strip().lower() for name in given if name.strip())]


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
