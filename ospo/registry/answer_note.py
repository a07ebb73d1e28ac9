"""What a reader of a version's answers must know: that a rule answers, or that the raw query is
better.
"""

import json
from collections.abc import Mapping

from ospo.registry.rules import rule_note
from ospo.registry.store import RULE_TAG, Version

FIGURE, RAW_FIGURE = "ndcg_at_10.", "raw_ndcg_at_10."
"""Prefixes of tags: nDCG@10 on held-out requests by retriever, of the version and the raw query."""


def answer_note(version: Version, dataset: str) -> str:
    """One line where a rule answers, or where the raw query is better than ``version`` on this data
    set, on fresh data if it was ever checked there; otherwise "".
    """
    if RULE_TAG in version.tags:
        return rule_note(version, dataset)
    where, pairs = _figures(version)
    worse = [
        f"{name} ({raw:.3f} against {own:.3f})" for name, (raw, own) in pairs.items() if raw > own
    ]
    if not worse:
        return ""
    return (
        f"the raw query is better than version {version.version} on {where} of {dataset}: nDCG@10 "
        f"under {', '.join(worse)}. Next: `ospo models`, then `ospo rollback --dataset {dataset}` "
        f"or `ospo train --dataset {dataset}`"
    )


def _figures(version: Version) -> tuple[str, Mapping[str, tuple[float, float]]]:
    """(which requests, {retriever: nDCG@10 of the raw query and of the version}); {} for a version
    of before these were noted.
    """
    if noted := version.tags.get("fresh"):
        fresh = json.loads(noted)
        raw, own = fresh["figures"]["raw"], fresh["figures"]["champion"]
        where = f"fresh data (of {fresh['at']})"
        return where, {name: (raw[name], own[name]) for name in own if name in raw}
    found = {
        key.removeprefix(RAW_FIGURE): float(value)
        for key, value in version.tags.items()
        if key.startswith(RAW_FIGURE)
    }
    return "held-out requests", {
        name: (raw, float(version.tags[FIGURE + name]))
        for name, raw in found.items()
        if FIGURE + name in version.tags
    }
