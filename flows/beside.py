"""Flows side by side: each in a process of its own, with its share of the processors and Prefect's
server in common.

Prefect's own pool of processes ends badly: a task that is told to end stops the pool's thread, and
what still runs is then waited for without end. Nothing imported here may load tqdm: a process says
on which line its progress bar stands before tqdm reads it.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from prefect import get_client
from prefect.context import hydrated_context, serialize_context
from prefect.exceptions import TerminationSignal
from prefect.utilities.callables import cloudpickle_wrapped_call

from ospo.endings import TERMINATED, exit_on_sigterm
from ospo.errors import OspoError

_WATCH_SECONDS = 1.0
_SPAWN = multiprocessing.get_context("spawn")
_OUTCOME: list[Any] = []  # of a process's one call: a context of Prefect's comes without a way back


class Beside:
    """At most ``count`` calls at a time, each in a process of its own (:func:`side_by_side`)."""

    def __init__(self, count: int, context: dict[str, Any]):
        self._count, self._context = count, context
        self._running: dict[Connection, tuple[str, int, BaseProcess]] = {}
        self._results: dict[str, Any] = {}

    def start(self, name: str, call: Callable[..., Any], given: Mapping[str, Any]) -> None:
        """Call ``call(**given)`` in a new process, as soon as one of ``count`` places is free; what
        it calls belongs to the present flow run.

        Raises as ``results`` does where an earlier call failed meanwhile.
        """
        while len(self._running) == self._count:
            self._collect()
        here, there = _SPAWN.Pipe(duplex=False)
        taken = {bar for _, bar, _ in self._running.values()}
        bar = min(set(range(self._count)) - taken)  # the line of its progress bar
        work = cloudpickle_wrapped_call(_call, self._context, call, dict(given))
        process = _SPAWN.Process(target=_main, name=name, args=(there, work, os.getpid(), bar))
        process.start()
        there.close()  # so that its end is seen here
        self._running[here] = name, bar, process

    def results(self) -> dict[str, Any]:
        """What each call returned, by name, when all have ended.

        Raises the OspoError of the first that fails, at once; RuntimeError where it ended by
        anything else, which it has printed.
        """
        while self._running:
            self._collect()
        return self._results

    def end(self) -> None:
        """End what still runs."""
        for _, _, process in self._running.values():
            process.terminate()
        for _, _, process in self._running.values():
            process.join()
        self._running.clear()

    def _collect(self) -> None:
        """Wait for the next call that ends."""
        for connection in wait(list(self._running)):
            assert isinstance(connection, Connection)
            name, _, process = self._running[connection]
            try:
                outcome = connection.recv()
            except EOFError:
                process.join()
                raise RuntimeError(
                    f"{name}: its process ended with exit code {process.exitcode}"
                ) from None
            if isinstance(outcome, OspoError):
                raise outcome
            process.join()
            del self._running[connection]
            self._results[name] = outcome


@contextmanager
def side_by_side(count: int, threads: int) -> Iterator[Beside]:
    """Places for ``count`` calls within a flow run. Each computes with ``threads`` threads, unless
    OMP_NUM_THREADS is set already.

    Whatever ends the block ends what still runs; so does the end of this process.
    """
    with get_client(sync_client=True) as client:  # otherwise each would start a server
        shared = {"PREFECT_API_URL": str(client.api_url), "OMP_NUM_THREADS": str(threads)}
    if "PREFECT_API_URL" not in os.environ:
        shared["PREFECT_UI_URL"] = ""  # a flow's own server has no pages: no links to them
    own = {name: os.environ.get(name) for name in shared}
    os.environ.update({name: shared[name] if was is None else was for name, was in own.items()})
    beside = Beside(count, serialize_context())
    try:
        yield beside
    finally:
        beside.end()
        for name, was in own.items():
            if was is None:
                del os.environ[name]


def _call(context: dict[str, Any], call: Callable[..., Any], given: Mapping[str, Any]) -> None:
    with hydrated_context(context):
        _OUTCOME.append(call(**given))


def _main(connection: Connection, work: Callable[[], Any], parent: int, bar: int) -> None:
    """A process's life: its progress bar's line, how it ends, the call, what came of it."""
    if sys.stderr.isatty():
        os.environ["TQDM_POSITION"] = str(bar)
    # Ctrl-C in a terminal reaches every process; only the parent answers, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_on_sigterm()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()

    try:
        work()
    except OspoError as error:
        _OUTCOME.append(error)
    except TerminationSignal:  # what Prefect makes of SIGTERM while a flow runs
        raise SystemExit(TERMINATED) from None
    connection.send(_OUTCOME.pop())
