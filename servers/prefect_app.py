"""The Prefect server of ``make up``, which answers its own pages and clients and no other web page.

python -m servers.prefect_app --host 127.0.0.1 --port 4200

Prefect answers everyone who reaches it, and who may start a flow run runs code on this machine. A
browser reaches 127.0.0.1 on behalf of any page that it shows: by a request of that page, which
carries the page's ``Origin``, or under a name that the page's owner points to 127.0.0.1, which
stands in ``Host``. Both are refused here before Prefect sees them. Everything else is as in
`prefect server start`, the scheduler and the other background services included.
"""

import argparse
from collections.abc import Collection, Sequence

import uvicorn
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ospo.hosts import allowed_hosts
from servers.place import allowed_origins


class OwnOriginOnly:
    """Refuses requests and websockets of pages from elsewhere with status 403.

    ``origins``: the pages that may ask, as browsers write them (``http://127.0.0.1:4200``).
    Requests without an ``Origin``, as programs and plain links send them, pass.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]):
        self.app, self.origins = app, {origin.lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on; see the class."""
        if scope["type"] in ("http", "websocket"):
            origin = Headers(scope=scope).get("origin")
            if origin is not None and origin.lower() not in self.origins:
                refusal = PlainTextResponse("Requests of other pages are refused", status_code=403)
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


def guarded(app: ASGIApp, port: int) -> ASGIApp:
    """``app`` behind both checks, for the names and pages of this machine and those configured."""
    hosts = TrustedHostMiddleware(app, allowed_hosts=allowed_hosts(), www_redirect=False)
    return OwnOriginOnly(hosts, allowed_origins(port))


def serve(host: str, port: int) -> None:
    """Run the server until it is told to end."""
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    api = get_current_settings().server.api
    uvicorn.run(
        guarded(create_app(final=True), port),
        host=host,
        port=port,
        timeout_keep_alive=api.keepalive_timeout,
        ws_ping_interval=api.websocket_ping_interval,
        ws_ping_timeout=api.websocket_ping_timeout,
        log_level=get_current_settings().server.logging_level.lower(),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the server process."""
    parser = argparse.ArgumentParser(description="Prefect's server for its own pages and clients.")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args(arguments)
    serve(given.host, given.port)


if __name__ == "__main__":
    main()
