"""Replacing a step's result as a whole: the new one is built beside the old one, which stays until
the new one stands.

``runs/esci/sft`` is the result, ``runs/esci/.sft.next`` the attempt at another one. A finished
attempt takes the result's place by two renames; the old result is ``.sft.old`` between them, and
:func:`settle` finishes what a kill in between left.
"""

import shutil
from pathlib import Path

from ospo.files import remove_leftovers
from ospo.tracking.journal import FOLDER as RECORDS


def attempt(directory: Path) -> Path:
    """Where the next result of ``directory`` is built."""
    return directory.with_name(f".{directory.name}.next")


def _former(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.old")


def settle(directory: Path) -> None:
    """Finish a replacement that was killed: without a result the old one comes back, beside a
    result it goes.
    """
    former = _former(directory)
    if not former.exists():
        return
    if directory.exists():
        shutil.rmtree(former)
    else:
        former.rename(directory)


def begin_anew(directory: Path) -> Path:
    """An empty attempt at ``directory``'s next result. Records that wait for MLflow are kept."""
    new = attempt(directory)
    new.mkdir(parents=True, exist_ok=True)
    for path in new.iterdir():
        if path.name == RECORDS:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return new


def replace(directory: Path) -> None:
    """Put the finished attempt in ``directory``'s place. Records of the old result that still wait
    for MLflow move along.
    """
    settle(directory)
    new, former = attempt(directory), _former(directory)
    remove_leftovers(new, below=True)
    if directory.exists():
        _move_records(directory, new)
        directory.rename(former)
    new.rename(directory)
    shutil.rmtree(former, ignore_errors=True)  # what is left of it goes with the next settle()


def _move_records(old: Path, new: Path) -> None:
    if not (old / RECORDS).is_dir():
        return
    (new / RECORDS).mkdir(exist_ok=True)
    for path in sorted((old / RECORDS).iterdir()):
        path.rename(new / RECORDS / path.name)
