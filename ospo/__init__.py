"""OSPO: Owen-Shapley Policy Optimization (arXiv 2601.08403) for search and recommendation.

``ospo.prepare``, ``train``, ``evaluate``, ``rewrite``, ``explain`` and ``export`` are what the
commands do (:mod:`ospo.api`). They are imported when they are first asked for: the package root
imports nothing heavy, so that ``import ospo.credit`` stays light.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
_OFFERED = ("evaluate", "explain", "export", "prepare", "rewrite", "train")


def __getattr__(name: str) -> Any:
    if name in _OFFERED:
        return getattr(importlib.import_module("ospo.api"), name)
    raise AttributeError(f"module 'ospo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_OFFERED])
