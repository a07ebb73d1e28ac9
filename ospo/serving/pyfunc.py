"""The rewriter as an MLflow model, stored as this very code (models from code): nothing is pickled.

``mlflow.pyfunc.load_model("models:/ospo-rewriter-esci@champion").predict(["running shoes"])`` →
search texts.
"""

import os
from collections.abc import Callable
from typing import Any

# Before transformers is imported: a served model never waits for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import mlflow.pyfunc
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc import PythonModel

from ospo.errors import InputError
from ospo.serving.answering import Answering, load_rewriter
from ospo.serving.hosts import set_up_server
from ospo.serving.requests import PARAMETERS, RequestError, check_parameters
from ospo.serving.rewriter import Busy


class Refusal(MlflowException):
    """An MLflow error with a line that stays as it is.

    MLflow's server answers it with its status, without a stack trace. It would also put the whole
    input before the message, ten megabytes where they were sent.
    """

    @property
    def message(self) -> str:
        """The line."""
        return self._line

    @message.setter
    def message(self, text: str) -> None:
        if "_line" not in vars(self):
            self._line = text


def refuse_unknown_parameters() -> None:
    """Let MLflow refuse parameters that this model does not know.

    MLflow drops them before ``predict`` with a warning in the server's log, and offers no setting:
    a mistyped ``temperatur`` would go unnoticed. Only calls of models with exactly these parameters
    are looked at.
    """
    enforce: Callable[[Any, Any], Any] = mlflow.pyfunc._enforce_params_schema
    if "refuses" in vars(enforce):  # a model loaded again, or another version of it
        return

    def enforce_strictly(params: Any, schema: Any) -> Any:
        if schema is not None and {spec.name for spec in schema.params} == set(PARAMETERS):
            try:
                check_parameters(params)
            except RequestError as error:
                raise Refusal(str(error), INVALID_PARAMETER_VALUE) from None
        return enforce(params, schema)

    vars(enforce_strictly)["refuses"] = PARAMETERS
    mlflow.pyfunc._enforce_params_schema = enforce_strictly  # type: ignore[attr-defined]


class OspoRewriter(PythonModel):
    """Loads the policy among its artifacts, or the rule in its place, and rewrites requests
    with it.
    """

    rewriter: Answering

    def load_context(self, context: Any) -> None:
        """Load the policy; InputError where its files do not match their checksums, or where the
        model was logged with another kind of answers than the policy was trained to give.
        """
        settings = context.model_config or {}
        self.rewriter = load_rewriter(
            context.artifacts["policy"],
            max_prompt_tokens=int(settings["max_prompt_tokens"]),
            max_new_tokens=int(settings["max_new_tokens"]),
        )
        kind = self.rewriter.answer.kind
        if settings.get("answer", kind) != kind:
            raise InputError(
                context.artifacts["policy"],
                "answer",
                f"is {kind}, but the model was logged as {settings['answer']!r:.40}",
                "register the policy again",
            )
        refuse_unknown_parameters()
        set_up_server()

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
            raise Refusal(str(error), INVALID_PARAMETER_VALUE) from None
        except Busy as error:
            raise Refusal(str(error), TEMPORARILY_UNAVAILABLE) from None


# MLflow wraps predict in a check of its type hint, which lists every input that it refuses in full.
# The signature still comes from the hint; what is accepted, ospo.serving.requests decides.
OspoRewriter.predict = OspoRewriter.predict.__wrapped__  # type: ignore[attr-defined,method-assign]

set_model(OspoRewriter())
