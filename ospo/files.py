"""Writing files so that a reader never sees half of one: write to a temporary name, then rename."""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ospo.errors import InputError, OspoError

# Eight random characters stand between the two.
_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp(\..*)?")


@contextmanager
def atomic_file(path: str | Path, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on any
    failure.

    ``keep_existing``: a file that another process has made there meanwhile stays. What killed
    processes left beside ``path`` goes first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary, lock = _temporary_name(path, path.suffix), None
    try:
        lock = _make_and_lock(temporary, lambda: temporary.touch(0o600, exist_ok=False))
        yield temporary
        temporary.chmod(0o644)
        if keep_existing:
            with suppress(FileExistsError):
                os.link(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path`` that replaces ``path`` as a whole on success.

    An older directory at ``path`` stays untouched until the new one is complete. What killed
    processes left beside ``path`` goes first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary, lock = _temporary_name(path), None
    old = path.with_name(f".{path.name}.old")
    try:
        lock = _make_and_lock(temporary, lambda: temporary.mkdir(0o700))
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        temporary.rename(path)
    finally:
        if old.exists() and not path.exists():  # interrupted between the two
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _temporary_name(path: Path, suffix: str = "") -> Path:
    """A name beside ``path`` that ``remove_leftovers`` knows. It is chosen before anything is made
    under it, so that an interrupt at the moment of making it leaves nothing either.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{suffix}")


def _lock(path: Path) -> int | None:
    """A descriptor that holds ``path`` for this process, to be closed; None where another process
    holds it or it is gone.

    The lock ends with the process, however that ends: what is not held is a leftover.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except OSError:
        pass  # held, or removed between opening and locking
    os.close(descriptor)
    return None


def _make_and_lock(path: Path, make: Callable[[], None]) -> int:
    """``make`` the temporary ``path`` and return the descriptor that holds it; made again where
    another process took it for a leftover before it was held.
    """
    while True:
        make()
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: nothing there is taken for a leftover
            return descriptor
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
        os.close(descriptor)


def remove_leftovers(directory: str | Path, below: bool = False) -> list[Path]:
    """Remove temporary files and folders in ``directory`` (with ``below`` at any depth) whose
    process was killed; returns their paths. Those of living processes stay.
    """
    removed = []
    found = Path(directory).rglob(".*") if below else Path(directory).glob(".*")
    for path in sorted(found):
        if not _LEFTOVER.fullmatch(path.name) or (lock := _lock(path)) is None:
            continue
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        finally:
            os.close(lock)
        removed.append(path)
    return removed


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as sorted, indented JSON, atomically; NaN is refused (ValueError)."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def json_or_none(path: str | Path) -> Any:
    """What a JSON file holds; None where it is damaged, which callers refuse like any content that
    is not theirs.
    """
    try:
        return read_json(path)
    except ValueError:
        return None


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch and safetensors write through code of their own, which knows no errno: their words for the
# same.
_FULL_WORDS = (
    "No space left on device",
    "PytorchStreamWriter failed",
    "unexpected pos",
    "database or disk is full",
)


def is_full(error: BaseException | None) -> bool:
    """Whether ``error``, or one that led to it, says that the disk (or a quota) is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error) for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


_REFUSED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "lies on a read-only file system",
}


def storage_problem(error: BaseException) -> OspoError | None:
    """``error`` as one line where it says that the disk is full or that a place cannot be written;
    None for any other.
    """
    place = error.filename if isinstance(error, OSError) and error.filename else None
    if is_full(error):
        where = f"{place}: " if place else ""
        return OspoError(
            f"{where}the disk is full. Fix: free some space (`ospo doctor` says how much there "
            "is), then run the same command again"
        )
    if isinstance(error, OSError) and error.errno in _REFUSED and place:
        return InputError(
            place,
            "",
            _REFUSED[error.errno],
            "make it accessible to this user, or work in another folder",
        )
    return None


MANIFEST = "manifest.json"


def _listed(directory: Path) -> list[str]:
    files = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(
        path.as_posix() for path in files if path.name != MANIFEST and not path.name.startswith(".")
    )


def write_manifest(directory: str | Path) -> str:
    """Write ``manifest.json`` with the sha256 of every file at or below ``directory``; returns the
    manifest's sha256.

    Hidden files are left out. Call it last: a file that comes later does not belong.
    """
    directory = Path(directory)
    write_json(
        directory / MANIFEST, {name: sha256_file(directory / name) for name in _listed(directory)}
    )
    return sha256_file(directory / MANIFEST)


def verify_manifest(directory: str | Path) -> str:
    """Check every file of ``directory`` against its manifest; returns the manifest's sha256.

    Raises InputError naming the first file that is missing, changed or not listed, or that there is
    no manifest.
    """
    directory = Path(directory)
    file = directory / MANIFEST
    fix = "restore the directory from its origin, or train or register it again"
    try:
        wanted = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(
            file, "", f"is missing or unreadable ({type(error).__name__})", fix
        ) from None
    if not isinstance(wanted, dict) or not wanted:
        raise InputError(file, "", "lists no files", fix)
    for name in sorted(set(wanted) | set(_listed(directory))):
        if name not in wanted:
            raise InputError(
                directory / name, "manifest", "is not listed, so it did not come with the rest", fix
            )
        if not (directory / name).is_file():
            raise InputError(directory / name, "manifest", "is listed but missing", fix)
        if sha256_file(directory / name) != wanted[name]:
            raise InputError(
                directory / name,
                "sha256",
                "differs from the manifest: the file is damaged or altered",
                fix,
            )
    return sha256_file(file)
