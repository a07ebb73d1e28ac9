"""Running the page on this machine: its address is printed first, then everything is loaded."""

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from ospo.config import load_config
from ospo.endings import ending
from ospo.errors import OspoError
from ospo.hosts import OWN_NAMES

HOST = OWN_NAMES[0]
PORT = 5050


class PageError(OspoError):
    """The page cannot be started; one line with the fix."""


def serve(params: Path, overrides: list[str], port: int, say: Callable[[str], None]) -> None:
    """Serve the page until it is told to end; ``say`` gets its address as soon as it is taken.

    Raises ConfigError for wrong parameters, PageError where the port is taken.
    """
    config = load_config(params, overrides)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise PageError(
            f"port {port} of {HOST} cannot be used ({error.strerror}). Fix: end what uses it, or "
            f"choose another: ospo page --port {port + 1}"
        ) from None
    say(f"http://{HOST}:{listening.getsockname()[1]}")
    # One request at a time, texts of a few words: threads that wait for each other on a busy
    # machine cost more than they bring (measured: 0.03 s with one, 0.15 s with two).
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import uvicorn

    from ospo.page.app import create_app

    logging.getLogger("ospo.page").setLevel(logging.INFO)
    settings = uvicorn.Config(
        create_app(config),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=5,
    )
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    except (KeyboardInterrupt, SystemExit) as error:  # it has closed what was open, and says so
        if ending(error) is None:
            raise
