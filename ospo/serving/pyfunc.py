"""The rewriter as an MLflow model, stored as this very code (models from code): nothing is pickled.

``mlflow.pyfunc.load_model("models:/ospo-rewriter-esci@champion").predict(["running shoes"])`` → search texts.
"""

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers: a served model never waits for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from ospo.serving.rewriter import Rewriter


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
        """Query strings, or JSON objects as strings with ``query`` and ``history`` → one search text each.

        ``params``: ``max_new_tokens`` (1 to 256), ``temperature`` (0 to 2), ``seed``.
        """
        return self.rewriter.rewrite(model_input, params)


set_model(OspoRewriter())
