"""What every flow needs: data brought up to date by DVC, and the parameters."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from ospo.config import Config, load_config
from ospo.errors import OspoError
from ospo.steps import Lineage

Dataset = Literal["esci", "hm"]


def flow_config(params: str, overrides: list[str] | None) -> Config:
    """The parameters of a flow run; one clear line (ConfigError) where they are wrong."""
    return load_config(params, overrides or [])


def lineage(parent_run_id: str | None) -> Lineage:
    """The MLflow parent run and the Prefect flow run that a step belongs to."""
    return Lineage(parent_run_id=parent_run_id, prefect_run_id=str(flow_run.id or ""))


@task(name="dvc repro", task_run_name="dvc repro {dataset}", cache_policy=NO_CACHE)
def dvc_repro(dataset: Dataset) -> None:
    """Bring one dataset's prepared data and item vectors up to date.

    DVC runs in a process group of its own: an interrupted flow ends it with everything it started.
    Raises OspoError with DVC's last line where a stage fails.
    """
    command = [sys.executable, "-m", "dvc", "repro", f"vectors@{dataset}"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    lines: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            if line.strip():
                lines.append(line.strip())
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if code:
        said = next((line for line in lines if line.startswith("ospo: ")), lines[-1] if lines else "it printed nothing")
        raise OspoError(f"`dvc repro vectors@{dataset}` failed: {said.removeprefix('ospo: ')}")
