"""Which version is the champion: promotion, rollback, and the decisions written on versions."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from ospo.config import Config
from ospo.registry.store import (
    CHALLENGER,
    CHAMPION,
    HISTORY_TAG,
    RegistryError,
    Version,
    champion,
    champion_history,
    connect,
    find_version,
    model_name,
    versions_of,
)

BY_HAND = {"by": "hand"}  # in decisions that a person took, which no test takes back


def promote(
    config: Config,
    dataset: str,
    version: int | None = None,
    *,
    decision: Mapping[str, Any] | None = None,
    root: str | Path = ".",
) -> Version:
    """Make a version (default: the challenger) the champion; ``decision`` is written on it as its
    reason. Without one a person promotes it, which is written on the version that loses its place
    as well.

    Raises RegistryError where there is no such version.
    """
    by_hand = {"promoted": True, "reason": "promoted by hand", **BY_HAND}
    with connect(config, root) as client:
        number = find_version(client, dataset, version).version
        if decision is None:
            for item in versions_of(client, dataset):
                if CHAMPION in item.aliases and item.version != number:
                    reason = f"version {number} was promoted by hand"
                    loses = {"promoted": False, "reason": reason, **BY_HAND}
                    _record_decision(client, dataset, item.version, loses)
        make_champion(client, dataset, number, decision or by_hand)
        return find_version(client, dataset, number)


def note(
    config: Config,
    dataset: str,
    version: int | None,
    *,
    decision: Mapping[str, Any],
    root: str | Path = ".",
) -> None:
    """Write a decision against promotion on a version (default: the challenger), which stays what
    it is.
    """
    with connect(config, root) as client:
        _record_decision(client, dataset, find_version(client, dataset, version).version, decision)


def tag(
    config: Config,
    dataset: str,
    version: int,
    key: str,
    value: Mapping[str, Any],
    root: str | Path = ".",
) -> None:
    """Write a tag with a JSON value on a version."""
    with connect(config, root) as client:
        client.set_model_version_tag(
            model_name(dataset), str(version), key, json.dumps(value, sort_keys=True)
        )


def make_champion(
    client: MlflowClient, dataset: str, version: int, decision: Mapping[str, Any]
) -> None:
    """Write the decision on a version and give it the champion's place."""
    _record_decision(client, dataset, version, decision)
    _set_champion(
        client,
        dataset,
        [*(number for number in champion_history(client, dataset) if number != version), version],
    )


def _set_champion(client: MlflowClient, dataset: str, history: list[int]) -> None:
    """Make the last of ``history`` the champion; it is the challenger no longer."""
    name, version = model_name(dataset), history[-1]
    client.set_registered_model_alias(name, CHAMPION, str(version))
    client.set_registered_model_tag(name, HISTORY_TAG, json.dumps(history))
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == str(version):
        client.delete_registered_model_alias(name, CHALLENGER)


def _record_decision(
    client: MlflowClient, dataset: str, version: int, decision: Mapping[str, Any]
) -> None:
    """Write a decision for or against promotion on the version: as tag for programs, in its
    description for people.
    """
    name, at = model_name(dataset), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    client.set_model_version_tag(
        name, str(version), "decision", json.dumps({"at": at, **decision}, sort_keys=True)
    )
    before = client.get_model_version(name, str(version)).description or ""
    verdict = "Champion" if decision["promoted"] else "Not champion"
    client.update_model_version(
        name, str(version), f"{before}\n\n**{verdict}** since {at}: {decision['reason']}."
    )


def rollback(config: Config, dataset: str, root: str | Path = ".") -> Version:
    """Give the champion's place back to the champion before it. RegistryError where there
    was none.
    """
    current = champion(config, dataset, root)
    with connect(config, root) as client:
        known = {item.version for item in versions_of(client, dataset)} - {current.version}
        former = [number for number in champion_history(client, dataset) if number in known]
        if not former:
            raise RegistryError(
                f"{model_name(dataset)}: version {current.version} is the only champion there was. "
                "Fix: `ospo promote` another version"
            )
        reason = f"rolled back to version {former[-1]}"
        decision = {"promoted": False, "reason": reason, **BY_HAND}
        _record_decision(client, dataset, current.version, decision)
        reason = f"rolled back to from version {current.version}"
        again = {"promoted": True, "reason": reason, **BY_HAND}
        _record_decision(client, dataset, former[-1], again)
        _set_champion(client, dataset, former)
        return find_version(client, dataset, former[-1])
