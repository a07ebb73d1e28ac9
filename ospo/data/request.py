"""A shopper's request and the purchases before it: what preparation writes, a policy reads and a
server gets.

Plain dataclasses and nothing imported, so that a served model needs no data library.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Purchase:
    """An earlier purchase, as the policy sees it. Empty fields are left out of the prompt."""

    item_id: str = ""
    name: str = ""
    type: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Request:
    """A shopper's request.

    ``history`` is oldest first, empty for ESCI; ``customer_id`` is "" for ESCI. Prepared requests
    have every field but ``hits``; a request that is only to be answered needs ``query`` and
    ``history``. ``hits``: titles of what the search engine shows for the query as it is, best
    first, for policies that read them (``context`` in params.yaml).
    """

    request_id: str = ""
    split: str = ""
    query: str = ""
    customer_id: str = ""
    history: tuple[Purchase, ...] = ()
    target_id: str = ""
    hits: tuple[str, ...] = ()
