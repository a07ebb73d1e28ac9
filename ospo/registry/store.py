"""The model registry: candidates become versions, one of them is the champion that people load and
serve.

A registered model ``ospo-rewriter-<dataset>`` has versions; alias ``challenger`` marks the newest
candidate, alias ``champion`` the version in use. Every promotion is written on the version, with
its reason.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ospo.config import Config
from ospo.errors import InputError, OspoError
from ospo.files import MANIFEST, sha256_file, verify_manifest
from ospo.registry.card import model_card
from ospo.registry.packaging import copy_policy, log_model
from ospo.serving.requests import MAX_NEW_TOKENS
from ospo.tracking.facts import git_commit, git_dirty
from ospo.tracking.store import TrackingError, client_for, describe, tracking_uri, without_password

LOGGER = logging.getLogger("ospo.registry.store")
CHAMPION, CHALLENGER = "champion", "challenger"
_HISTORY_TAG = "champion_history"


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


def model_name(dataset: str) -> str:
    """The registered model's name for a data set."""
    return f"ospo-rewriter-{dataset}"


@contextmanager
def _store(config: Config, root: str | Path) -> Iterator[MlflowClient]:
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


def _versions(client: MlflowClient, dataset: str) -> list[Version]:
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


def models(
    config: Config, datasets: tuple[str, ...] = ("esci", "hm"), root: str | Path = "."
) -> list[Version]:
    """Every registered policy of the data sets, newest first within each."""
    with _store(config, root) as client:
        return [item for dataset in datasets for item in _versions(client, dataset)]


def champion(config: Config, dataset: str, root: str | Path = ".") -> Version:
    """The version in use. RegistryError where there is none."""
    with _store(config, root) as client:
        for item in _versions(client, dataset):
            if CHAMPION in item.aliases:
                return item
    raise RegistryError(
        f"{model_name(dataset)}: no champion is registered. Fix: run `make demo`; or, where "
        "candidates "
        f"were not better than the raw query (`ospo models`), `ospo promote --dataset {dataset}`"
    )


def policy_directory(config: Config, version: Version, root: str | Path = ".") -> Path:
    """The version's policy directory, checked against its checksums.

    A registry on this machine is read in place; from another the files are fetched into MLflow's
    cache folder. Raises InputError where a file is missing, damaged or altered.
    """
    with _store(config, root):
        local = Path(mlflow.artifacts.download_artifacts(version.uri)) / "artifacts" / "policy"
    if verify_manifest(local) != version.tags["policy_sha256"]:
        raise InputError(
            local / MANIFEST,
            "sha256",
            f"differs from version {version.version}'s tag policy_sha256",
            "roll back (`ospo rollback`) or register the policy again",
        )
    return local


def usable_champion(config: Config, dataset: str, root: str | Path = ".") -> tuple[Version, Path]:
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
    with _store(config, root) as client:
        known = {item.version: item for item in _versions(client, dataset)}
        former = [
            known[number] for number in reversed(_history(client, dataset)[:-1]) if number in known
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


def _history(client: MlflowClient, dataset: str) -> list[int]:
    """The versions that were champion, the present one last."""
    tags = client.get_registered_model(model_name(dataset)).tags
    return [int(number) for number in json.loads(tags.get(_HISTORY_TAG, "[]"))]


def register(
    config: Config,
    dataset: str,
    *,
    policy: str,
    model_dir: str | Path,
    run_id: str,
    summary: Mapping[str, Mapping[str, float]],
    data_md5: str,
    tags: Mapping[str, str] | None = None,
    champion_if_first: bool = True,
    root: str | Path = ".",
) -> Version:
    """Make a policy a version of ``ospo-rewriter-<dataset>`` with alias ``challenger``.

    ``policy``: its name in ``summary`` ({policy: {retriever: nDCG@10}} on the test split).
    ``run_id``: the MLflow run that trained it. ``champion_if_first``: without a champion this
    becomes it at once. A policy whose files are registered already is not registered again: that
    version is returned, as challenger unless it is the champion. Raises InputError for a directory
    without a policy, RegistryError where MLflow does not answer.
    """
    if run_id.startswith("pending:"):
        raise TrackingError(
            "the policy's run is not in MLflow yet. Fix: start the server (`make up`), then `ospo "
            "sync`"
        )
    model_dir = Path(model_dir)
    if not any((model_dir / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(model_dir, "", "holds no policy", "train it first")
    with (
        tempfile.TemporaryDirectory(prefix="ospo-register-") as folder,
        _store(config, root) as client,
    ):
        staged = Path(folder) / "policy"
        copy_policy(model_dir, staged)
        digest = sha256_file(staged / MANIFEST)
        for item in _versions(client, dataset):
            if item.tags.get("policy_sha256") == digest:
                if item.aliases:
                    return item
                client.set_registered_model_alias(
                    item.name, CHALLENGER, str(item.version)
                )  # a candidate once more
                return replace(item, aliases=(CHALLENGER,))
        rl = config.preset.rl
        settings = {
            "max_prompt_tokens": rl.max_prompt_tokens,
            "max_new_tokens": min(rl.max_completion_tokens, MAX_NEW_TOKENS),
        }
        facts = {
            "policy_sha256": digest,
            "data_md5": data_md5,
            "git_commit": git_commit(Path(root)),
            "git_dirty": git_dirty(Path(root)),
        }
        all_tags = {
            **facts,
            "dataset": dataset,
            "policy": config.policy,
            "algorithm": policy,
            **{key: str(value) for key, value in settings.items()},
            **{f"ndcg_at_10.{name}": f"{value:.6f}" for name, value in summary[policy].items()},
            **(tags or {}),
        }
        model_uri = log_model(dataset, staged, settings, run_id, Path(folder))
        name = model_name(dataset)
        first = champion_if_first and not any(
            CHAMPION in item.aliases for item in _versions(client, dataset)
        )
        _ensure_model(client, name)
        made = client.create_model_version(
            name,
            source=model_uri,
            run_id=run_id,
            tags=all_tags,
            description=model_card(dataset, policy, config, summary, facts),
            model_id=model_uri.rpartition("/")[2],
        )
        client.set_registered_model_alias(name, CHALLENGER, made.version)
        if first:
            _promote(
                client,
                dataset,
                int(made.version),
                {"promoted": True, "reason": "the first registered version"},
            )
        return _wanted(client, dataset, int(made.version))


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(
            name, description="Rewrites a shopper's request into a better search text."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def promote(
    config: Config,
    dataset: str,
    version: int | None = None,
    *,
    decision: Mapping[str, Any] | None = None,
    root: str | Path = ".",
) -> Version:
    """Make a version (default: the challenger) the champion; ``decision`` is written on it as its
    reason.

    Raises RegistryError where there is no such version.
    """
    with _store(config, root) as client:
        number = _wanted(client, dataset, version).version
        _promote(
            client, dataset, number, decision or {"promoted": True, "reason": "promoted by hand"}
        )
        return _wanted(client, dataset, number)


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
    with _store(config, root) as client:
        _record_decision(client, dataset, _wanted(client, dataset, version).version, decision)


def tag(
    config: Config,
    dataset: str,
    version: int,
    key: str,
    value: Mapping[str, Any],
    root: str | Path = ".",
) -> None:
    """Write a tag with a JSON value on a version."""
    with _store(config, root) as client:
        client.set_model_version_tag(
            model_name(dataset), str(version), key, json.dumps(value, sort_keys=True)
        )


def _wanted(client: MlflowClient, dataset: str, version: int | None) -> Version:
    known = _versions(client, dataset)
    for item in known:
        if item.version == version if version else CHALLENGER in item.aliases:
            return item
    what = f"version {version}" if version else "challenger"
    have = ", ".join(str(item.version) for item in known) or "none"
    raise RegistryError(
        f"{model_name(dataset)}: no {what} is registered (versions: {have}). Fix: name one of "
        "`ospo models`"
    )


def _promote(client: MlflowClient, dataset: str, version: int, decision: Mapping[str, Any]) -> None:
    _record_decision(client, dataset, version, decision)
    _crown(
        client,
        dataset,
        [*(number for number in _history(client, dataset) if number != version), version],
    )


def _crown(client: MlflowClient, dataset: str, history: list[int]) -> None:
    """Make the last of ``history`` the champion, which is nobody's challenger."""
    name, version = model_name(dataset), history[-1]
    client.set_registered_model_alias(name, CHAMPION, str(version))
    client.set_registered_model_tag(name, _HISTORY_TAG, json.dumps(history))
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
    with _store(config, root) as client:
        known = {item.version for item in _versions(client, dataset)} - {current.version}
        former = [number for number in _history(client, dataset) if number in known]
        if not former:
            raise RegistryError(
                f"{model_name(dataset)}: version {current.version} is the only champion there was. "
                "Fix: `ospo promote` another version"
            )
        decision = {"promoted": False, "reason": f"rolled back to version {former[-1]}"}
        _record_decision(client, dataset, current.version, decision)
        _crown(client, dataset, former)
        return _wanted(client, dataset, former[-1])


def rewrite(
    config: Config,
    dataset: str,
    inputs: list[Any],
    params: Mapping[str, Any] | None = None,
    root: str | Path = ".",
) -> list[str]:
    """Search texts of the champion for query strings or objects with query and history. For ``ospo
    rewrite``.
    """
    from ospo.serving.rewriter import Rewriter

    version, directory = usable_champion(config, dataset, root)
    settings = {key: int(version.tags[key]) for key in ("max_prompt_tokens", "max_new_tokens")}
    rewriter = Rewriter.load(directory, verify=False, **settings)  # usable_champion has verified it
    LOGGER.info("%s version %d", version.name, version.version)
    return rewriter.rewrite(inputs, params)
