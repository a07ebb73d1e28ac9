"""The model registry: versions of policies, the champion among them, and the rule by which it
changes.
"""

from ospo.registry.store import (
    CHALLENGER,
    CHAMPION,
    RegistryError,
    Version,
    champion,
    model_name,
    models,
    note,
    policy_directory,
    promote,
    register,
    rewrite,
    rollback,
    tag,
    usable_champion,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "RegistryError",
    "Version",
    "champion",
    "model_name",
    "models",
    "note",
    "policy_directory",
    "promote",
    "register",
    "rewrite",
    "rollback",
    "tag",
    "usable_champion",
]
