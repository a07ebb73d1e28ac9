"""What every request meets first: method, length, rate; and what every answer carries."""

import threading
import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_ADDRESS = 8_192  # bytes of path and query string
RATE, BURST = 20.0, 60.0  # requests per second over time, and at once: of all visitors together
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Bucket:
    """A token bucket: ``rate`` tokens per second, at most ``burst`` at once. Safe from threads."""

    def __init__(
        self, rate: float = RATE, burst: float = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self._tokens, self._at = burst, clock()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a token; False where none is left."""
        with self._lock:
            now = self.clock()
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class Limits:
    """ASGI middleware: refuses what is not GET or HEAD, too long or too often, and puts
    ``HEADERS`` on every answer.
    """

    def __init__(self, app: ASGIApp, bucket: Bucket) -> None:
        self.app, self.bucket = app, bucket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._refusal(scope) or self.app
        await answer(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("This page only answers GET.\n", 405, {"Allow": "GET, HEAD"})
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if size > MAX_ADDRESS:
            return PlainTextResponse(
                f"The address has {size} bytes; at most {MAX_ADDRESS} are accepted.\n", 414
            )
        if not self.bucket.take():
            return PlainTextResponse(
                "Too many requests; wait a second.\n", 429, {"Retry-After": "1"}
            )
        return None
