"""Which requests a policy was trained on: written into its directory, so that the knowledge travels
with the weights.

Ids alone would not do: two data sets may number their requests alike. A request is known by a
digest of its id, its query and its shopper.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ospo.data.request import Request
from ospo.errors import InputError
from ospo.files import json_or_none, write_json

if TYPE_CHECKING:  # a policy loads without the data libraries
    from ospo.data.dataset import PreparedData

FILE = "training_requests.json"


def request_key(request: Request) -> str:
    """16 hex digits that identify a request across data sets."""
    text = "\0".join((request.request_id, request.query, request.customer_id))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def request_keys(data: "PreparedData", rows: Iterable[int]) -> list[str]:
    """Keys of request rows, sorted, each once."""
    return sorted({request_key(data.requests[int(row)]) for row in rows})


def write_seen(directory: Path, keys: Iterable[str]) -> None:
    """Write the keys into a policy's directory."""
    write_json(directory / FILE, sorted(set(keys)))


def read_seen(directory: Path) -> set[str] | None:
    """The keys in a policy's directory, None where there is no such file.

    Raises InputError for a damaged file.
    """
    file = directory / FILE
    if not file.is_file():
        return None
    keys = json_or_none(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError(
            file, "", "is not a list of request keys", "restore the policy from its origin"
        )
    return set(keys)


def seen_after(data: "PreparedData", start: Path | None = None) -> list[str]:
    """Keys of what a policy has seen that was trained on ``data``, beginning as the policy in
    ``start``.
    """
    earlier = read_seen(start) if start else None
    return sorted({*request_keys(data, data.rows("train")), *(earlier or ())})
