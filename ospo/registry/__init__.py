"""The model registry: versions of policies, the champion among them, and the rule by which it
changes.
"""

from ospo.registry.answer_note import answer_note
from ospo.registry.candidates import Candidate, register
from ospo.registry.champions import note, promote, rollback, tag
from ospo.registry.rules import answer_by_rule, rule_note
from ospo.registry.store import (
    CHALLENGER,
    CHAMPION,
    RegistryError,
    Version,
    champion,
    champion_rewriter,
    model_name,
    models,
    open_rewriter,
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
    "answer_by_rule",
    "answer_note",
    "champion",
    "champion_rewriter",
    "model_name",
    "models",
    "note",
    "open_rewriter",
    "policy_directory",
    "promote",
    "register",
    "rewrite",
    "rollback",
    "rule_note",
    "tag",
    "whole_champion",
]
