"""A process that has the heavy packages imported and runs pytest in forks of itself.

Run as a script with the modules to import as arguments, and with no path to the project, so that
nothing of ``ospo`` or ``tests`` is imported before the fork: a mistake at import time is met by
every test. Reads one JSON object per line from stdin, with pytest's arguments ``tests``, the tree's
``folder``, the limit ``seconds`` and the file ``output``, and answers each with one line: pytest's
exit code, or ``null`` where the limit passed.
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

# What the modules of ospo and the tests import of other people's packages.
HEAVY = """
    numpy scipy.stats scipy.optimize scipy.sparse sklearn.decomposition
    sklearn.feature_extraction.text pandas polars pyarrow.parquet torch torch.nn.functional
    transformers.models.auto.modeling_auto transformers.models.llama.modeling_llama
    transformers.models.qwen2.modeling_qwen2 transformers.trainer tokenizers datasets
    peft accelerate
    trl.trainer.sft_trainer trl.trainer.grpo_trainer trl.trainer.dpo_trainer
    mlflow mlflow.pyfunc mlflow.store.tracking.sqlalchemy_store
    mlflow.store.model_registry.sqlalchemy_store
    spacy faiss bm25s Stemmer sentence_transformers jinja2
    pydantic ruamel.yaml typer typer.testing rich.table fastapi sqlalchemy psutil
    pytest hypothesis hypothesis.strategies hypothesis.extra.numpy
""".split()
OUTSIDE = 100  # exit code: the tests ran another ospo than the folder's


def _run(tests: str, folder: Path, output: str) -> int:
    """In the child: pytest's exit code of ``tests`` in ``folder``, its words in ``output``."""
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    import pytest

    options = ["-x", "-q", "-m", "not gpu", "-p", "no:cacheprovider"]
    code = int(pytest.main([*options, *tests.split()]))
    sys.stdout.flush()
    ospo: Any = sys.modules.get("ospo")
    inside = ospo is None or Path(ospo.__file__).is_relative_to(folder)
    return code if inside else OUTSIDE


def _wait(child: int, seconds: float) -> int | None:
    """The child's exit code; None where it had to be ended, with its own children."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main() -> None:
    """Entry point."""
    sys.path = [path for path in sys.path if Path(path) != Path(__file__).parent]
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            code = 3  # pytest's own number of an internal error
            try:
                code = _run(job["tests"], Path(job["folder"]), job["output"])
            finally:
                os._exit(code)
        print(json.dumps(_wait(child, job["seconds"])), flush=True)


if __name__ == "__main__":
    main()
