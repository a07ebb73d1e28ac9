"""What a visitor asked for: the query string of the page, within limits, and back into one.

Every state of the page is such a query string, so that each can be kept and shared.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from ospo.data.request import Purchase
from ospo.errors import OspoError, printable

MAX_QUERY = 500  # characters of a request, and of a rewrite edited by hand
MAX_NAME = 200  # of a name: data set, version, retriever, request, slice
MAX_PURCHASES = 20
MAX_HISTORY = 4_000  # characters of all earlier purchases
MAX_PHRASES = 64  # places of phrases that are switched off
MAX_PAGE = 10_000
_LIMITS = {"q": MAX_QUERY, "text": MAX_QUERY, "history": MAX_HISTORY, "off": 400}
CHAMPION = "champion"
SCOPES = ("catalogue", "pool")
KINDS = ("improved", "harmed", "unchanged")


class AskedError(OspoError):
    """A query string that is not accepted; one line that names the field and the limit."""


@dataclass(frozen=True)
class Asked:
    """One state of the page.

    ``q``: the request; ``history``: earlier purchases, one per line as ``name, type, colour``;
    ``request``: id of a prepared request, whose words and history stand where ``q`` and
    ``history`` are empty or it is another request than ``shown``. ``version``, ``other``: keys of
    policies (:mod:`ospo.page.policies`). ``text``: the rewrite edited by hand; ``off``: its
    phrases that are switched off, both taken only where ``key`` is what it was made for.
    """

    dataset: str = ""
    q: str = ""
    history: str = ""
    request: str = ""
    shown: str = ""
    version: str = CHAMPION
    other: str = ""
    retriever: str = ""
    scope: str = SCOPES[0]
    text: str = ""
    off: str = ""
    key: str = ""
    policy: str = ""
    kind: str = KINDS[0]
    slice: str = ""
    value: str = ""
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Asked":
        """A query string's values. Raises AskedError for one that is too long or no choice; names
        that are not known are left out.
        """
        values: dict[str, str] = {}
        for name in cls.__dataclass_fields__:
            text = query.get(name, "")
            limit = _LIMITS.get(name, MAX_NAME)
            if len(text) > limit:
                problem = f"{name}: {len(text)} characters, at most {limit} are accepted"
                raise AskedError(f"{problem}. Fix: shorten it")
            clean = text if name == "history" else printable(text).strip()
            if clean.strip():
                # Half a surrogate pair is no text that a tokenizer can encode.
                values[name] = clean.encode("utf-8", "replace").decode("utf-8")
        number = values.pop("page", "1")
        for name, known in (("scope", SCOPES), ("kind", KINDS)):
            if values.get(name, known[0]) not in known:
                raise AskedError(f"{name}: is none of {', '.join(known)}. Fix: choose one")
        if not (number.isascii() and number.isdigit() and 1 <= int(number) <= MAX_PAGE):
            raise AskedError(f"page: is no number from 1 to {MAX_PAGE}. Fix: begin at 1")
        return cls(**values, page=int(number))

    def link(self, path: str = "/", **changes: object) -> str:
        """The address of this state with ``changes``; values that are the usual ones are left
        out.
        """
        state = replace(self, **changes)  # type: ignore[arg-type]
        usual = vars(Asked())
        given = {name: value for name, value in vars(state).items() if value != usual[name]}
        return f"{path}?{urlencode(given)}" if given else path

    def purchases(self) -> tuple[Purchase, ...]:
        """The earlier purchases, oldest first. Raises AskedError for too many."""
        lines = [printable(line).strip() for line in self.history.splitlines()]
        lines = [line for line in lines if line]
        if len(lines) > MAX_PURCHASES:
            problem = f"history: {len(lines)} purchases, at most {MAX_PURCHASES} are accepted"
            raise AskedError(f"{problem}. Fix: leave out the oldest")
        found = []
        for line in lines:
            name, kind, colour = ([*map(str.strip, line.rsplit(",", 2)), "", ""])[:3]
            found.append(Purchase(name=name, type=kind, colour=colour))
        return tuple(found)

    def switched_off(self, text: str) -> frozenset[int]:
        """The places of phrases of ``text`` that are switched off; none where they were noted for
        another text. Raises AskedError for what is no list of places.
        """
        places, _, mark = self.off.partition("~")
        if not places or mark != fingerprint(text):
            return frozenset()
        parts = places.split(".")
        if len(parts) > MAX_PHRASES or not all(p.isascii() and p.isdigit() for p in parts):
            raise AskedError("off: is no list of phrases such as 0.2. Fix: leave it out")
        return frozenset(map(int, parts))


def fingerprint(*parts: str) -> str:
    """A short mark of texts, by which an edit is told from one that was made for another text."""
    return f"{zlib.crc32(chr(0).join(parts).encode('utf-8')):08x}"


def off_value(places: frozenset[int], text: str) -> str:
    """``Asked.off`` for places of ``text``."""
    return f"{'.'.join(map(str, sorted(places)))}~{fingerprint(text)}" if places else ""


def history_text(history: tuple[Purchase, ...]) -> str:
    """Purchases as ``Asked.history`` writes them."""
    fields = ((p.name, p.type, p.colour) for p in history)
    return "\n".join(", ".join(printable(part) for part in one).rstrip(", ") for one in fields)
