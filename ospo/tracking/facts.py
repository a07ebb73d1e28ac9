"""Facts about code, packages and machine that every run carries: the commit as tags, the rest in
one artifact. No host or user name, no path.
"""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FACTS = "facts.json"  # the artifact of package versions, machine and md5s of files
PACKAGES = (
    "ospo",
    "torch",
    "transformers",
    "trl",
    "peft",
    "polars",
    "spacy",
    "bm25s",
    "mlflow",
    "prefect",
    "dvc",
)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        # An installed package or an unpacked archive has no repository: the tag then says so.
        return None
    return done.stdout.strip()


def git_commit(root: Path) -> str:
    """The commit checked out at ``root``, or ``unknown`` outside a repository."""
    return _git(root, "rev-parse", "HEAD") or "unknown"


def git_dirty(root: Path) -> str:
    """``true`` where tracked files differ from the commit, ``false`` where not, ``unknown`` outside
    a repository.
    """
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return "unknown" if status is None else str(bool(status)).lower()


def package_versions() -> dict[str, str]:
    """Installed version of each package whose behaviour shapes results."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def processors() -> int:
    """How many processors this process may use; where the system does not say, how many there
    are.
    """
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, str]:
    """Processor count, platform, Python, and the GPU if torch is loaded and sees one."""
    facts = {
        "cpus": str(processors()),
        "platform": f"{platform.system()}-{platform.machine()}",
        "python": platform.python_version(),
    }
    import torch

    facts["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return facts


def standard_tags(root: Path) -> dict[str, str]:
    """The commit as MLflow tags: what a reader filters runs by."""
    commit = git_commit(root)
    return {
        "mlflow.source.name": "ospo",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "git.commit": commit,
        "git.dirty": git_dirty(root),
    }


def standard_facts() -> dict[str, dict[str, str]]:
    """What a run was made with, for its artifact ``FACTS``: package versions and machine."""
    return {"packages": package_versions(), "machine": machine()}
