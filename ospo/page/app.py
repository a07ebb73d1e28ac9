"""The page's addresses. Every answer is made from the query string alone; nothing is written."""

import logging
import threading
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from ospo.config import Config
from ospo.data.dataset import PreparedData
from ospo.errors import OspoError
from ospo.evaluation.slices import SLICES
from ospo.hosts import allowed_hosts
from ospo.page.asked import KINDS, Asked, AskedError, history_text, off_value
from ospo.page.browse import browse
from ospo.page.champions import judged
from ospo.page.limits import Bucket, Limits
from ospo.page.policies import Choice
from ospo.page.shop import Shop
from ospo.page.trial import Side, Trial, attempt
from ospo.page.views import page, style

LOGGER = logging.getLogger("ospo.page")
LISTED = 60  # held-out requests to pick from


def create_app(config: Config, bucket: Bucket | None = None) -> FastAPI:
    """The application over the project in the working directory. ``bucket``: the limit on the rate
    of all visitors together.
    """
    shop = Shop(config)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    script = files("ospo.page").joinpath("static/page.js").read_text(encoding="utf-8")
    sheet = style()

    def handler(show: Callable[[Shop, Asked], dict[str, Any]], template: str) -> Any:
        def answer(request: Request) -> Response:
            return _answer(shop, request, show, template)

        return answer

    for path, show, template in (
        ("/", _try, "try.html.j2"),
        ("/requests", _requests, "requests.html.j2"),
        ("/champion", _champion, "champion.html.j2"),
    ):
        app.get(path, response_class=HTMLResponse)(handler(show, template))

    @app.get("/page.js")
    def page_js() -> Response:
        return Response(script, media_type="text/javascript")

    @app.get("/page.css")
    def page_css() -> Response:
        return Response(sheet, media_type="text/css")

    @app.get("/health")
    def health() -> Response:
        return PlainTextResponse("ready\n")

    app.add_middleware(Limits, bucket=bucket or Bucket())
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(), www_redirect=False)
    threading.Thread(target=_warm, args=(shop,), name="warm", daemon=True).start()
    return app


def _warm(shop: Shop) -> None:
    """Load what the first request will ask for."""
    try:
        dataset = shop.dataset_name("")
        name = shop.retriever_name("")
        with shop.lock:
            shop.loaded(dataset).reward(name)
    except OspoError as error:  # the page says the same when it is asked
        LOGGER.info("nothing loaded in advance: %s", error)


def _answer(
    shop: Shop,
    request: Request,
    show: Callable[[Shop, Asked], dict[str, Any]],
    template: str,
) -> Response:
    """A page. What went wrong is a line on it: 400 where the address names what there is not, 200
    where the project is not that far yet.
    """
    begun = time.perf_counter()
    asked, values = Asked(), {}
    try:
        asked = Asked.of(dict(request.query_params))
        values = show(shop, asked)
    except OspoError as error:
        values = {"problem": error}
    values = _frame(shop, asked) | values | {"seconds": time.perf_counter() - begun}
    body = page(template, here=request.url.path, **values)
    return HTMLResponse(body, 400 if isinstance(values["problem"], AskedError) else 200)


def _frame(shop: Shop, asked: Asked) -> dict[str, Any]:
    """What every page needs, whatever else went wrong."""
    return {
        "asked": asked,
        "datasets": shop.datasets,
        "retrievers": shop.retrievers,
        "choices": [],
        "notice": "",
        "problem": None,
        "trial": None,
        "listed": [],
        "found": None,
        "versions": [],
        "kinds": KINDS,
        "slices": SLICES,
    }


def _known(shop: Shop, asked: Asked) -> Asked:
    """``asked`` with its data set named. Raises InputError where it is unknown."""
    return Asked(**vars(asked) | {"dataset": shop.dataset_name(asked.dataset)})


def _try(shop: Shop, asked: Asked) -> dict[str, Any]:
    asked = _known(shop, asked)
    choices, notice = _choices(shop, asked.dataset)
    values: dict[str, Any] = {"asked": asked, "choices": choices, "notice": notice}
    try:
        named = Asked(**vars(asked) | {"retriever": shop.retriever_name(asked.retriever)})
        values["asked"] = named
        values["listed"] = _listed(shop.loaded(named.dataset).data, named.request)
        trial = attempt(named, shop)
    except OspoError as error:
        return values | {"problem": error}
    if trial is None:
        return values
    return values | {
        "trial": trial,
        "toggles": [_toggles(named, trial, side) for side in trial.sides],
        "state": _state(named, trial),
    }


def _choices(shop: Shop, dataset: str) -> tuple[list[Choice], str]:
    """The policies to choose from; without the registry those that need none, and why."""
    try:
        return shop.policies.choices(dataset), ""
    except OspoError as error:
        return shop.policies.unregistered(dataset), str(error)


def _listed(data: PreparedData, chosen: str) -> list[tuple[str, str]]:
    """Held-out requests to pick from, as (id, words); the chosen one is among them."""
    ids = data.requests.frame["request_id"]
    rows = [int(row) for row in data.rows("test")[:LISTED]]
    others = [] if any(ids[row] == chosen for row in rows) else (ids == chosen).arg_true().to_list()
    requests = [data.requests[row] for row in [*others, *rows]]
    return [
        (r.request_id, f"{r.query} (bought {len(r.history)})" if r.history else r.query)
        for r in requests
    ]


def _state(asked: Asked, trial: Trial) -> Asked:
    """The state as links carry it: a prepared request by its id alone."""
    judged_here = trial.row is not None
    side = trial.sides[0]
    return Asked(
        **vars(asked)
        | {
            "request": trial.request.request_id if judged_here else "",
            "q": "" if judged_here else trial.request.query,
            "history": "" if judged_here else history_text(trial.request.history),
            "shown": "",
            "key": "",
            "text": side.answer if side.edited else "",
            "off": off_value(frozenset(p.place for p in side.phrases if not p.on), side.answer),
        }
    )


def _toggles(asked: Asked, trial: Trial, side: Side) -> list[str]:
    """The addresses at which each phrase is switched on or off; "" for the side that is compared
    with.
    """
    if side is not trial.sides[0]:
        return [""] * len(side.phrases)
    off = {phrase.place for phrase in side.phrases if not phrase.on}
    state = _state(asked, trial)
    return [
        state.link(off=off_value(frozenset(off ^ {phrase.place}), side.answer))
        for phrase in side.phrases
    ]


def _requests(shop: Shop, asked: Asked) -> dict[str, Any]:
    asked = _known(shop, asked)
    queries = shop.loaded(asked.dataset).data.requests.frame.select("request_id", "query")
    try:
        found = browse(asked, shop.retrievers[0], queries)
    except OspoError as error:
        return {"asked": asked, "problem": error}
    return {"asked": asked, "found": found}


def _champion(shop: Shop, asked: Asked) -> dict[str, Any]:
    asked = _known(shop, asked)
    choices, notice = _choices(shop, asked.dataset)
    versions = [judged(choice, asked.dataset) for choice in choices if choice.version is not None]
    return {"asked": asked, "notice": notice, "versions": versions}
