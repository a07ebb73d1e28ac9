"""The same step under several seeds: a step has one folder, so each seed's policy is kept beside
it.
"""

import shutil
from pathlib import Path

from ospo.files import atomic_directory, read_json, write_json
from ospo.paths import RUNS
from ospo.steps.step import Step, finished, policy_damage, policy_directory

FILE = "seed.json"  # of a kept policy: {"fingerprint": …}


def seed_directory(dataset: str, seed: int, name: str) -> Path:
    """Where the policy of the step ``name`` is kept, in ``model``."""
    return RUNS / dataset / "seeds" / str(seed) / name


def keep_policy(dataset: str, name: str, seed: int) -> Path:
    """Copy the policy of the finished step ``name`` to its place for ``seed``, whole or not at all;
    returns it. Raises OspoError where the step has not finished.
    """
    fingerprint = finished(dataset, name)["fingerprint"]
    place = seed_directory(dataset, seed, name)
    with atomic_directory(place) as temporary:
        shutil.copytree(policy_directory(dataset, name), temporary / "model")
        write_json(temporary / FILE, {"fingerprint": fingerprint})
    return place / "model"


def kept_policy(step: Step, dataset: str, seed: int) -> Path | None:
    """The policy that was kept for this very ``step`` under ``seed``, None where there is none, or
    a damaged one.
    """
    place = seed_directory(dataset, seed, step.name)
    file = place / FILE
    if not file.is_file() or read_json(file).get("fingerprint") != step.fingerprint:
        return None
    return None if policy_damage(place) else place / "model"
