"""The searches that are sent to an engine, and what its answers hold."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ospo.errors import InputError
from ospo.retrieval.engine_clients import EngineClient, EngineFailure

PLACE = "{{text}}"
_EXAMPLE = 'write a body such as {"query": {"match": {"title": "{{text}}"}}}'
_LIMIT = 1 << 20


@dataclass(frozen=True)
class Hits:
    """Items of one answer, best first. ``scores``: the engine's, or ranks where it sorts by
    something else.
    """

    ids: list[str]
    scores: list[float]


class QueryTemplate:
    """The body of a search with ``{{text}}`` within one of its strings or more.

    A text takes that place as text: the body is parsed before it is filled in and written as JSON
    after, so that no quote or brace of a text leaves its string.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body
        self.sorts = "sort" in body

    def search(self, text: str, size: int, ids: Sequence[str] | None = None) -> dict[str, Any]:
        """The body for ``text``, at most ``size`` items, among ``ids`` where they are given."""
        # What is no UTF-8, half a surrogate pair, cannot be sent.
        text = text.encode("utf-8", "replace").decode("utf-8")
        body: dict[str, Any] = _filled(self._body, text)
        body |= {"size": size, "from": 0, "_source": False, "track_total_hits": False}
        if ids is not None:
            among = {"ids": {"values": list(ids)}}
            body["query"] = {"bool": {"must": [body["query"]], "filter": [among]}}
        return body


def _filled(value: Any, text: str) -> Any:
    if isinstance(value, str):
        return value.replace(PLACE, text)
    if isinstance(value, dict):
        return {key: _filled(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, text) for item in value]
    return copy.copy(value)


def read_template(file: str | Path) -> QueryTemplate:
    """The template in ``file``. Raises InputError (one line) where it is no JSON object with a
    ``query`` and ``{{text}}``.
    """
    file, field = Path(file), "retrievers.engine.query"
    try:
        with file.open("rb") as stream:
            content = stream.read(_LIMIT + 1)
        if len(content) > _LIMIT:
            raise InputError(file, "", f"is larger than {_LIMIT:,} bytes", _EXAMPLE)
        body = json.loads(content.decode("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(file, "", f"file not found; {field} names it", _EXAMPLE) from None
    except (OSError, ValueError, RecursionError) as error:
        hint = f"; {PLACE} stands within quotes" if PLACE.encode() in (content or b"") else ""
        raise InputError(file, "", f"is not JSON ({error})", _EXAMPLE + hint) from None
    if not isinstance(body, dict) or not isinstance(body.get("query"), dict):
        raise InputError(file, "query", "the body has no object of that name", _EXAMPLE)
    if PLACE not in json.dumps(_strings(body["query"]), ensure_ascii=False):
        raise InputError(file, "query", f"no value in it holds {PLACE}", _EXAMPLE)
    return QueryTemplate(body)


def _strings(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def read_answers(
    client: EngineClient, answer: Any, asked: int, sorts: bool
) -> list[Hits | EngineFailure]:
    """The hits of each of ``asked`` searches, or what became of it. Raises EngineFailure where the
    answer is none to an ``_msearch``.
    """
    responses = answer.get("responses") if isinstance(answer, Mapping) else None
    if not isinstance(responses, list):
        raise client.no_engine(answer)
    if len(responses) != asked:
        problem = f"answered {len(responses)} of {asked} searches"
        raise EngineFailure(problem, "look whether a proxy cuts its answers short", False)
    return [_read(client, response, sorts) for response in responses]


def _read(client: EngineClient, response: Any, sorts: bool) -> Hits | EngineFailure:
    if isinstance(response, Mapping) and "error" in response:
        status = response.get("status")
        return client.status_failure(status if isinstance(status, int) else 500, response)
    try:
        if response.get("timed_out"):
            return EngineFailure("answered in part only: it ran out of time", _SLOW, True)
        if failed := response.get("_shards", {}).get("failed"):
            return EngineFailure(f"answered in part only: {failed} shards failed", _SLOW, True)
        hits = response["hits"]["hits"]
        ids = [str(hit["_id"]) for hit in hits]
        if sorts:
            scores = [float(len(hits) - place) for place in range(len(hits))]
        else:
            scores = [float(hit["_score"]) for hit in hits]
    except (AttributeError, KeyError, TypeError, ValueError):
        return client.no_engine(response)
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        return EngineFailure(
            f"found item {twice!r} twice", "name one index, in which each _id stands once", False
        )
    return Hits(ids, scores)


_SLOW = "look at the engine's log and the health of its shards"
