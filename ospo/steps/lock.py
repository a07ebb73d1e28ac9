"""One process at a time works on a data set's runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from ospo import distributed
from ospo.errors import OspoError
from ospo.paths import RUNS


@contextmanager
def dataset_lock(
    dataset: str, patience: float = 0.0, report: Callable[[str], object] = lambda line: None
) -> Iterator[None]:
    """Hold the data set's runs for this process; the lock ends with the process, however that ends.

    Where another process works on them it is waited for, at most ``patience`` seconds; ``report``
    gets one line about that. OspoError where they do not become free. Of a run in several processes
    the main one holds them for all.
    """
    if not distributed.is_main():
        yield
        return
    folder = RUNS / dataset
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if patience > 0:
            report(f"{folder}: another run is working on it; waiting for it to end")
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise OspoError(
                f"{folder}: another run is working on it. Fix: wait for it to end, or stop "
                "it, then run again"
            ) from None
    try:
        yield
    finally:
        lock.release()
