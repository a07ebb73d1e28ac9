"""Checks that evaluation requests were not trained on. They run with every evaluation and stop it
where they fail.
"""

from pathlib import Path

import numpy as np
import polars as pl

from ospo.data.dataset import PreparedData, prepared_language
from ospo.data.query_key import query_key
from ospo.errors import OspoError
from ospo.policy.seen import FILE, read_seen, request_key

HELD_OUT = ("validation", "test")


class LeakError(OspoError):
    """Held-out requests were seen in training: no figure computed from them would mean anything."""


def check_split(data: PreparedData) -> dict[str, int]:
    """No request id, customer or (where requests have no customer) query on two sides of the split.

    H&M's queries come from templates and repeat between customers by design: there the customer is
    what must not be shared. Returns how many keys of each kind were compared. Raises LeakError with
    counts and one example.
    """
    # A split that others made is not refused for a plural: their queries are compared unstemmed.
    language = prepared_language(data.directory, unknown="other")
    seen: dict[str, dict[str, str]] = {"request id": {}, "customer": {}, "query": {}}
    clashes: dict[str, list[str]] = {kind: [] for kind in seen}
    for request in data.requests:
        keys = {"request id": request.request_id}
        if request.customer_id:
            keys["customer"] = request.customer_id
        else:
            keys["query"] = query_key(request.query, language)
        for kind, key in keys.items():
            twice = kind == "request id" and key in seen[kind]
            if twice or seen[kind].setdefault(key, request.split) != request.split:
                clashes[kind].append(key)
    for kind, found in clashes.items():
        if found:
            raise LeakError(
                f"leak in {data.directory}: {len(found)} {kind}(s) on two sides of the split, for "
                "example "
                f"{found[0]!r:.80}. Fix: prepare the data again (ospo prepare) and train again"
            )
    return {kind: len(keys) for kind, keys in seen.items()}


def _columns(table: Path) -> list[str]:
    return pl.scan_parquet(table, glob=False).collect_schema().names()


def check_policy(data: PreparedData, rows: np.ndarray, policy: str, model_dir: Path) -> int:
    """No request among ``rows`` was used in the policy's training.

    The policy's directory says which requests it has seen (``ospo.policy.seen``); where it does
    not, the log of completions beside it does. Returns how many distinct training requests were
    compared; 0 where neither is there. Raises LeakError.
    """
    log = model_dir.parent / "completions.parquet"
    trained = read_seen(model_dir) if model_dir.is_dir() else None
    if trained is not None:
        source: Path = model_dir / FILE
        keys = {request_key(data.requests[row]): data.requests[row].request_id for row in rows}
    elif log.is_file() and "request_id" in _columns(log):
        source = log
        trained = set(
            pl.scan_parquet(log, glob=False)
            .select(pl.col("request_id").unique())
            .collect()["request_id"]
        )
        keys = {data.requests[row].request_id: data.requests[row].request_id for row in rows}
    else:
        return 0
    shared = sorted(keys[key] for key in trained & keys.keys())
    if shared:
        raise LeakError(
            f"leak: policy {policy!r} was trained on {len(shared)} of the evaluation's requests, "
            "for example "
            f"{shared[0]!r:.80} ({source}). Fix: train it again on this preparation of the data"
        )
    return len(trained)
