"""The rewriter as an MLflow model, stored as this very code (models from code): nothing is pickled.

``mlflow.pyfunc.load_model("models:/ospo-rewriter-esci@champion").predict(["running shoes"])`` →
search texts.
"""

import os
from typing import Any

os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # before transformers: a served model never waits for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc import PythonModel

from ospo.serving.requests import RequestError
from ospo.serving.rewriter import Busy, Rewriter


class OspoRewriter(PythonModel):
    """Loads the policy among its artifacts and rewrites requests with it."""

    rewriter: Rewriter

    def load_context(self, context: Any) -> None:
        """Load the policy; InputError where its files do not match their checksums."""
        settings = context.model_config or {}
        self.rewriter = Rewriter.load(
            context.artifacts["policy"],
            max_prompt_tokens=int(settings["max_prompt_tokens"]),
            max_new_tokens=int(settings["max_new_tokens"]),
        )

    def predict(  # type: ignore[override]  # MLflow allows leaving context out, its stub does not say so
        self, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[str]:
        """Query strings, or JSON objects as strings with ``query`` and ``history`` → one search
        text each.

        ``params``: ``max_new_tokens`` (1 to 256), ``temperature`` (0 to 2), ``seed``.
        """
        try:
            return self.rewriter.rewrite(model_input, params)
        except RequestError as error:
            # As MLflow's own type: the server then answers 400 with this line, without a stack
            # trace.
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None
        except Busy as error:
            raise MlflowException(str(error), TEMPORARILY_UNAVAILABLE) from None


set_model(OspoRewriter())
