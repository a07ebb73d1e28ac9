"""Where an evaluation's figures come from: code, data, parameters, packages and machine."""

from pathlib import Path
from typing import Any

from ospo.config import Config
from ospo.data.dataset import PreparedData
from ospo.files import read_json, sha256_file
from ospo.tracking.facts import git_commit, git_dirty, machine, package_versions


def lineage(config: Config, data: PreparedData) -> dict[str, Any]:
    """A JSON value: commit, parameters, sha256 of each prepared file, what preparation kept and
    dropped, packages.
    """
    stats = data.directory / "stats.json"
    root = Path(__file__).parents[2]
    return {
        "git_commit": git_commit(root),
        "git_dirty": git_dirty(root),
        "data": {file.name: sha256_file(file) for file in sorted(data.directory.glob("*.parquet"))},
        "stats": read_json(stats) if stats.is_file() else {},
        "params": config.model_dump(mode="json"),
        "packages": package_versions(),
        "machine": machine(),
    }
