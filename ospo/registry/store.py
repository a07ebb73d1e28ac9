"""The model registry: registered versions of policies, and the one of them that is in use.

A registered model ``ospo-rewriter-<dataset>`` has versions; alias ``challenger`` marks the newest
candidate, alias ``champion`` the version that people load and serve.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ospo.config import Config
from ospo.errors import InputError, OspoError
from ospo.files import MANIFEST, verify_manifest
from ospo.policy.decoding import TokenLimits
from ospo.tracking.store import client_for, describe, tracking_uri, without_password

if TYPE_CHECKING:  # torch, which listing versions does not need
    from ospo.serving.answering import Answering

LOGGER = logging.getLogger("ospo.registry")
CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY_TAG = "champion_history"
RULE_TAG = "rule"  # of a version that is a rule and no trained policy


class RegistryError(OspoError):
    """Nothing fitting is registered, or the registry does not answer; one line with the fix."""


@dataclass(frozen=True)
class Version:
    """A registered policy."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    description: str
    run_id: str
    created: int  # milliseconds since the epoch

    @property
    def uri(self) -> str:
        """What ``mlflow.pyfunc.load_model`` takes, pinned to this version."""
        return f"models:/{self.name}/{self.version}"

    @property
    def decision(self) -> dict[str, Any]:
        """The decision for or against its promotion; {} where there is none yet."""
        found: dict[str, Any] = json.loads(self.tags.get("decision") or "{}")
        return found

    @property
    def limits(self) -> TokenLimits:
        """How long its prompts and answers may be, whatever the preset of now says."""
        return TokenLimits(int(self.tags["max_prompt_tokens"]), int(self.tags["max_new_tokens"]))


def model_name(dataset: str) -> str:
    """The registered model's name for a data set."""
    return f"ospo-rewriter-{dataset}"


@contextmanager
def connect(config: Config, root: str | Path) -> Iterator[MlflowClient]:
    """A client whose failures to connect are one clear line; mlflow's global address is set and put
    back.
    """
    uri = tracking_uri(config, Path(root))
    client = client_for(uri)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(
        uri
    )  # its functional interface knows no other way, and it sets the environment too
    try:
        yield client
    except MlflowException as error:
        raise RegistryError(
            f"MLflow at {without_password(uri)} did not do it ({describe(error)}). "
            "Fix: start the server (`make up`) or correct tracking.uri"
        ) from error
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it, which its stub does not say


def _version(found: ModelVersion, aliases: Mapping[str, str]) -> Version:
    """``aliases``: alias → version, from the registered model: a searched version does not carry
    them.
    """
    held = tuple(
        sorted(alias for alias, version in aliases.items() if str(version) == str(found.version))
    )
    return Version(
        found.name,
        int(found.version),
        held,
        dict(found.tags),
        found.description or "",
        found.run_id or "",
        found.creation_timestamp,
    )


def versions_of(client: MlflowClient, dataset: str) -> list[Version]:
    """All versions of a data set's model, newest first; none where it is not registered."""
    name = model_name(dataset)
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
    found = [
        _version(item, aliases)
        for item in client.search_model_versions(f"name = '{name}'", max_results=10_000)
    ]
    return sorted(found, key=lambda item: -item.version)


def models(config: Config, datasets: tuple[str, ...] = (), root: str | Path = ".") -> list[Version]:
    """Every registered policy of the data sets (none named: of all in params.yaml), newest first
    within each.
    """
    with connect(config, root) as client:
        return [
            item for dataset in datasets or config.datasets for item in versions_of(client, dataset)
        ]


def champion(config: Config, dataset: str, root: str | Path = ".") -> Version:
    """The version in use. RegistryError where there is none."""
    with connect(config, root) as client:
        for item in versions_of(client, dataset):
            if CHAMPION in item.aliases:
                return item
    raise RegistryError(
        f"{model_name(dataset)}: no champion is registered. Fix: run `make demo`; or, where "
        "candidates "
        f"were not better than the best rule (`ospo models`), `ospo promote --dataset {dataset}`"
    )


def policy_directory(config: Config, version: Version, root: str | Path = ".") -> Path:
    """The version's policy directory, checked against its checksums.

    A registry on this machine is read in place; from another the files are fetched into MLflow's
    cache folder. Raises InputError where a file is missing, damaged or altered.
    """
    with connect(config, root):
        local = Path(mlflow.artifacts.download_artifacts(version.uri)) / "artifacts" / "policy"
    if verify_manifest(local) != version.tags["policy_sha256"]:
        raise InputError(
            local / MANIFEST,
            "sha256",
            f"differs from version {version.version}'s tag policy_sha256",
            "roll back (`ospo rollback`) or register the policy again",
        )
    return local


def whole_champion(config: Config, dataset: str, root: str | Path = ".") -> tuple[Version, Path]:
    """(version, policy directory) of the champion; where its files are damaged, of the champion
    before it.

    Raises RegistryError where there is no champion, and the first InputError where no former
    champion is whole.
    """
    current = champion(config, dataset, root)
    try:
        return current, policy_directory(config, current, root)
    except InputError as error:
        problem = error
    with connect(config, root) as client:
        known = {item.version: item for item in versions_of(client, dataset)}
        former = [
            known[number]
            for number in reversed(champion_history(client, dataset)[:-1])
            if number in known
        ]
    for version in former:
        try:
            directory = policy_directory(config, version, root)
        except InputError:
            continue
        LOGGER.error(
            "%s; version %d, the champion before it, is used instead", problem, version.version
        )
        return version, directory
    raise problem


def champion_history(client: MlflowClient, dataset: str) -> list[int]:
    """The versions that were champion, the present one last."""
    tags = client.get_registered_model(model_name(dataset)).tags
    return [int(number) for number in json.loads(tags.get(HISTORY_TAG, "[]"))]


def find_version(client: MlflowClient, dataset: str, version: int | None) -> Version:
    """The version of that number, None: the challenger. RegistryError where there is none."""
    known = versions_of(client, dataset)
    for item in known:
        if item.version == version if version else CHALLENGER in item.aliases:
            return item
    what = f"version {version}" if version else "challenger"
    have = ", ".join(str(item.version) for item in known) or "none"
    raise RegistryError(
        f"{model_name(dataset)}: no {what} is registered (versions: {have}). Fix: "
        f"{versions_fix(dataset, known)}"
    )


def versions_fix(dataset: str, known: Sequence[Version]) -> str:
    """What to do where a version is not among those ``known``."""
    if known:
        return "name one of `ospo models`"
    return f"register one: `ospo register --dataset {dataset}`, after `ospo evaluate`"


def rewrite(
    config: Config,
    dataset: str,
    inputs: list[Any],
    params: Mapping[str, Any] | None = None,
    root: str | Path = ".",
) -> list[str]:
    """Search texts of the champion for query strings or objects with query and history."""
    return champion_rewriter(config, dataset, root).rewrite(inputs, params)


def champion_rewriter(config: Config, dataset: str, root: str | Path = ".") -> "Answering":
    """The champion, loaded; ``answer`` says what its answers are."""
    return open_rewriter(config, dataset, root=root)[1]


def open_rewriter(
    config: Config, dataset: str, version: int | None = None, root: str | Path = "."
) -> tuple[Version, "Answering"]:
    """A version (default: the champion) and what it answers by, loaded.

    Raises RegistryError where there is none, InputError where its files are damaged.
    """
    from ospo.serving.answering import load_rewriter

    if version is None:
        chosen, directory = whole_champion(config, dataset, root)
    else:
        with connect(config, root) as client:
            chosen = find_version(client, dataset, version)
        directory = policy_directory(config, chosen, root)
    limits = chosen.limits
    rewriter = load_rewriter(
        directory,
        max_prompt_tokens=limits.prompt,
        max_new_tokens=limits.answer,
        verify=False,  # verified above
    )
    LOGGER.info("%s version %d", chosen.name, chosen.version)
    return chosen, rewriter
