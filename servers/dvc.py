"""Running DVC as a process of its own, which ends with its caller."""

import os
import signal
import subprocess
import sys
from pathlib import Path


def up_to_date(stages: list[str]) -> bool:
    """Whether DVC would run none of these stages, nor any before them."""
    command = [sys.executable, "-m", "dvc", "status", "-q", "--with-deps", *stages]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def run_dvc(*arguments: str) -> tuple[int, str]:
    """Run DVC; its exit code and the line of its output that says most.

    It runs in a process group of its own: an interrupted caller ends it with everything it started.
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    }
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
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
    summary = next(
        (line for line in lines if line.startswith("ospo: ")),
        lines[-1] if lines else "it printed nothing",
    )
    return code, summary
