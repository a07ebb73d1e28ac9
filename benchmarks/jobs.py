"""Many runs of one benchmark, some at a time: each in a process of its own with one thread,
finished ones kept.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks import progress
from ospo.files import atomic_file, write_json

RESULT = "result.safetensors"


def job_key(*parts: Any) -> str:
    """A short name for what a job depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def run_jobs(module: str, jobs: list[dict[str, Any]], parallel: int) -> None:
    """Run every job whose ``out`` folder holds no result yet, in ``parallel`` worker processes of
    ``module``.

    A worker reads jobs from its standard input and answers each with one line (:func:`serve`).
    Raises SystemExit naming the log of the first job that failed, when all others are done.
    """
    waiting = [job for job in jobs if not (Path(job["out"]) / RESULT).is_file()]
    if not waiting:
        return
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    lock = threading.Lock()
    failed: list[dict[str, Any]] = []

    def work(_: int) -> None:
        while waiting:  # a job that fails ends its worker; the next has another
            one_worker()

    def one_worker() -> None:
        command = [sys.executable, "-m", module, "--worker"]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            while True:
                with lock:
                    if not waiting:
                        break
                    job = waiting.pop(0)
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline().strip()
                if not answer.startswith("done"):
                    failed.append(job)
                    break
                progress(f"{job['out']}: {answer.removeprefix('done ')} s, {len(waiting)} to go")
            process.stdin.close()

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(work, range(min(parallel, len(waiting)))))
    if failed:
        raise SystemExit(f"{failed[0]['out']}: failed, see {failed[0]['out']}/log.txt")


def serve(run: Callable[[dict[str, Any]], None]) -> None:
    """Worker's side: run jobs from standard input one by one; what a job prints goes to ``log.txt``
    in its folder.
    """
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        out = Path(job["out"])
        out.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        with (out / "log.txt").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            run(job)  # an exception ends the worker, its traceback is in the log
        answers.write(f"done {time.perf_counter() - began:.0f}\n")
        answers.flush()


def save_result(out: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write one job's arrays and facts, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "facts.json", facts)
    with atomic_file(out / RESULT) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)


def load_result(out: Path) -> dict[str, np.ndarray]:
    """A job's arrays."""
    return load_file(out / RESULT)
