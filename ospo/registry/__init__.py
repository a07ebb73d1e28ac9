"""The model registry: versions of policies, the champion among them, and the rule by which it
changes.
"""

from ospo.registry.candidates import Candidate, register
from ospo.registry.champions import note, promote, rollback, tag
from ospo.registry.store import (
    CHALLENGER,
    CHAMPION,
    RegistryError,
    Version,
    champion,
    champion_rewriter,
    model_name,
    models,
    policy_directory,
    rewrite,
    whole_champion,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "Candidate",
    "RegistryError",
    "Version",
    "champion",
    "champion_rewriter",
    "model_name",
    "models",
    "note",
    "policy_directory",
    "promote",
    "register",
    "rewrite",
    "rollback",
    "tag",
    "whole_champion",
]
