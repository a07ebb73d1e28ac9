"""A real headless Chromium, driven through its DevTools protocol: enough to open a page, ask it and
photograph it.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-port=0 "
    "--hide-scrollbars"
)


def chromium() -> str | None:
    """Path of Chromium or Chrome, None where none is installed."""
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


PICTURES = os.environ.get("OSPO_PICTURES", "")
"""A folder for pictures of the pages that tests open, to be looked at; "": none are taken."""


class Page:
    """One tab. ``problems``: console errors, exceptions, refused requests; ``requests``: every URL
    asked for.
    """

    def __init__(self) -> None:
        self.profile = Path(tempfile.mkdtemp(prefix="ospo-chromium-"))
        command = [
            str(chromium()),
            *FLAGS.split(),
            f"--user-data-dir={self.profile}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        port_file = self.profile / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().strip()):
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.close()
                raise RuntimeError("Chromium did not start")
            time.sleep(0.05)
        port, path = port_file.read_text().split()[:2]
        self.socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.last = 0
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events met on the way are noted."""
        self.last += 1
        message: dict[str, Any] = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method", ""), event.get("params", {})
        if method == "Runtime.exceptionThrown" or (
            method == "Runtime.consoleAPICalled"
            and params["type"] in ("error", "warning", "assert")
        ):
            self.problems.append(json.dumps(params)[:500])
        if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        if method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {params['message']}")
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, file: Path, width: int = 1200, dark: bool = False, media: str = "") -> None:
        """Load a file at a viewport ``width``."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=file.resolve().as_uri())
        deadline = time.monotonic() + 30
        while self.ask("document.readyState + location.protocol") != "completefile:":
            if time.monotonic() > deadline:
                raise RuntimeError("the page did not load")
            time.sleep(0.05)

    def visit(self, address: str, width: int = 1400, dark: bool = False) -> None:
        """Load a page from a server; what its scripts add later is the caller's to wait for."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=1000,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + 60
        while (
            self.ask("document.readyState") != "complete"
            or self.ask("location.protocol") != "http:"
        ):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{address} did not load")
            time.sleep(0.1)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"])[:500])
        return result["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def photograph(self, file: Path, top: int = 0, height: int = 0) -> None:
        """The page as PNG, or ``height`` pixels of it from ``top`` on."""
        clip = {"x": 0, "y": top, "width": self.ask("innerWidth"), "height": height, "scale": 1}
        part = {"clip": clip} if height else {}
        picture = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, **part
        )
        file.write_bytes(base64.b64decode(picture["data"]))

    def keep(self, name: str) -> None:
        """The page as a picture of that name in ``PICTURES``, where that is set."""
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            self.photograph(Path(PICTURES) / f"{name}.png")

    def pdf(self) -> bytes:
        """The page as printed."""
        return base64.b64decode(self.call("Page.printToPDF")["data"])

    def close(self) -> None:
        """End Chromium and remove its profile."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)
