"""What a rewriter accepts: plain query strings, or JSON objects with a query and a purchase
history, within limits.

Everything here comes from outside and is taken as data: it is cut, cleaned and put into the
prompt's user part by ``ospo.policy.prompts``, never into its instructions.
"""

import json
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from ospo.data.request import Purchase, Request
from ospo.errors import OspoError, printable
from ospo.policy.decoding import Decoding

MAX_INPUTS = 1024  # inputs of one call
MAX_CHARACTERS = 20_000  # of one input, JSON included
MAX_QUERY = 2_000
MAX_PURCHASES = 100
MAX_HITS = 20  # titles of first hits
MAX_FIELD = 500  # characters of a purchase's field
KEPT_PURCHASES = 20  # the last ones; no prompt holds more
MAX_NEW_TOKENS = 256
MAX_TEMPERATURE = 2.0
MAX_SEED = 2**31 - 1
PARAMETERS = ("max_new_tokens", "temperature", "seed")
_FIELDS = ("name", "type", "colour")


class RequestError(OspoError):
    """An input or a parameter that is not accepted; one line that names it and says what is."""


def _short(value: Any) -> str:
    return printable(repr(value)[:60])


def _text(value: Any, where: str, limit: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RequestError(f"{where}: must be a string, got {type(value).__name__} {_short(value)}")
    if len(value) > limit:
        raise RequestError(f"{where}: {len(value)} characters, at most {limit} are accepted")
    # Half a surrogate pair is no text that a tokenizer can encode.
    return value.encode("utf-8", "replace").decode("utf-8")


def _hits(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_HITS:
        raise RequestError(f"{where}.hits: must be a list of at most {MAX_HITS} titles, best first")
    return tuple(
        _text(title, f"{where}.hits[{number}]", MAX_FIELD) for number, title in enumerate(value)
    )


def _history(value: Any, where: str) -> tuple[Purchase, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RequestError(
            f"{where}.history: must be a list of purchases, got {type(value).__name__}"
        )
    if len(value) > MAX_PURCHASES:
        raise RequestError(
            f"{where}.history: {len(value)} purchases, at most {MAX_PURCHASES} are accepted"
        )
    purchases = []
    for number, item in enumerate(value):
        place = f"{where}.history[{number}]"
        if not isinstance(item, Mapping):
            raise RequestError(
                f"{place}: must be an object with name, type and colour, got {type(item).__name__}"
            )
        if unknown := [key for key in item if key not in _FIELDS]:
            raise RequestError(
                f"{place}: unknown key {_short(unknown[0])}; known: {', '.join(_FIELDS)}"
            )
        purchases.append(
            Purchase(**{key: _text(item.get(key), f"{place}.{key}", MAX_FIELD) for key in _FIELDS})
        )
    return tuple(purchases[-KEPT_PURCHASES:])


def _object(text: str, where: str) -> Mapping[str, Any] | None:
    """The JSON object that ``text`` is, or None for a plain query that merely starts with a
    brace.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if text.lstrip("{ \t\r\n").startswith('"'):
            raise RequestError(
                f"{where}: begins like a JSON object but is none; check quotes and braces"
            ) from None
        return None
    return value if isinstance(value, dict) else None


def parse_request(value: Any, number: int = 0) -> Request:
    """An input → Request. ``value``: a query, a JSON object as a string, or the object itself.

    Raises RequestError for anything else, for unknown keys and over the limits of this module.
    """
    where = f"input {number}"
    if isinstance(value, str):
        if len(value) > MAX_CHARACTERS:
            raise RequestError(
                f"{where}: {len(value)} characters, at most {MAX_CHARACTERS} are accepted"
            )
        found = _object(value, where) if value.lstrip().startswith("{") else None
        if found is None:
            return Request(query=_text(value, where, MAX_QUERY))
        value = found
    if not isinstance(value, Mapping):
        raise RequestError(
            f"{where}: must be a query string or a JSON object, got {type(value).__name__}"
        )
    if unknown := [key for key in value if key not in ("query", "history", "hits")]:
        raise RequestError(
            f"{where}: unknown key {_short(unknown[0])}; known: query, history, hits"
        )
    if "query" not in value:
        raise RequestError(f"{where}: the object has no query")
    return Request(
        query=_text(value["query"], f"{where}.query", MAX_QUERY),
        history=_history(value.get("history"), where),
        hits=_hits(value.get("hits"), where),
    )


def parse_requests(values: Any) -> list[Request]:
    """A list of inputs → Requests. RequestError names the first that is not accepted."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise RequestError(f"inputs must be a list of query strings, got {type(values).__name__}")
    if len(values) > MAX_INPUTS:
        raise RequestError(f"{len(values)} inputs in one call, at most {MAX_INPUTS} are accepted")
    return [parse_request(value, number) for number, value in enumerate(values)]


def parse_options(
    params: Mapping[str, Any] | None, default_new_tokens: int, most_new_tokens: int = MAX_NEW_TOKENS
) -> Decoding:
    """Parameters of a call → how its answers are drawn: greedy, or at ``temperature`` under
    ``seed``.

    RequestError for an unknown parameter or a value outside its limits.
    """
    values = check_parameters(params)
    tokens = _number(values, "max_new_tokens", default_new_tokens, 1, most_new_tokens, True)
    temperature = _number(values, "temperature", 0.0, 0.0, MAX_TEMPERATURE, False)
    seed = _number(values, "seed", 0, 0, MAX_SEED, True)
    return Decoding(int(tokens), float(temperature), int(seed))


def check_parameters(params: Any) -> dict[str, Any]:
    """``params`` as a dictionary of known parameters with numbers or None as values; RequestError
    otherwise.
    """
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise RequestError(f"params must be an object, got {type(params).__name__}")
    if unknown := [key for key in params if key not in PARAMETERS]:
        raise RequestError(
            f"unknown parameter {_short(unknown[0])}; known: {', '.join(PARAMETERS)}"
        )
    for key, value in params.items():
        number = isinstance(value, Real) and not isinstance(value, bool) and value == value
        if value is not None and not number:
            raise RequestError(
                f"{key}: must be a number, got {type(value).__name__} {_short(value)}"
            )
    return dict(params)


def _number(
    values: Mapping[str, Any], key: str, default: float, low: float, high: float, whole: bool
) -> float:
    value = values.get(key)
    if value is None:
        return default
    # Compared as it is: a whole number of a thousand digits fits no float.
    if not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise RequestError(f"{key}: must be {kind} from {low:g} to {high:g}, got {_short(value)}")
    return value
