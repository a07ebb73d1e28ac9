"""Making a trained policy a registered version."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from ospo.config import Config
from ospo.errors import InputError
from ospo.files import MANIFEST, sha256_file, write_manifest
from ospo.policy.guard import Guard, read_guard, write_guard
from ospo.policy.kind import read_answer_kind
from ospo.policy.rules import RAW
from ospo.registry.answer_note import FIGURE, RAW_FIGURE
from ospo.registry.card import model_card
from ospo.registry.champions import make_champion
from ospo.registry.packaging import copy_policy, log_model
from ospo.registry.store import (
    CHALLENGER,
    CHAMPION,
    Version,
    connect,
    find_version,
    model_name,
    versions_of,
)
from ospo.serving.requests import MAX_NEW_TOKENS
from ospo.tracking.facts import git_commit, git_dirty
from ospo.tracking.store import TrackingError, record_name

_LOGGED_NAME = "rewriter"  # what packaging.log_model calls a model


@dataclass(frozen=True)
class Candidate:
    """A trained policy that may become a version.

    - ``algorithm``: what trained it, its name in ``summary`` ({policy: {retriever: nDCG@10}} on the
      test split); ``control``: {retriever: nDCG@10} of its answers given to other requests
      (``ospo.evaluation.control``), where that was evaluated; ``guard``: the one chosen for it.
    - ``model_dir``: its files; ``run_id``: the MLflow run that trained it.
    - ``data_md5``: of the data it was trained on; ``tags``: more tags of the version.
    - ``report``: the page of its evaluation, which the version carries.
    - ``guarded``: {retriever: nDCG@10} under the guard, where one was chosen: what is served.
    """

    algorithm: str
    model_dir: Path
    run_id: str
    summary: Mapping[str, Mapping[str, float]]
    data_md5: str
    tags: Mapping[str, str] = field(default_factory=dict)
    control: Mapping[str, float] = field(default_factory=dict)
    guard: Guard | None = None
    report: Path | None = None
    guarded: Mapping[str, float] = field(default_factory=dict)

    @property
    def figures(self) -> Mapping[str, float]:
        """{retriever: nDCG@10} of the policy as it is served."""
        return self.guarded or self.summary[self.algorithm]


def register(
    config: Config,
    dataset: str,
    candidate: Candidate,
    *,
    champion_if_first: bool = True,
    root: str | Path = ".",
) -> Version:
    """Make a policy a version of ``ospo-rewriter-<dataset>`` with alias ``challenger``.

    ``champion_if_first``: without a champion this becomes it at once. A policy whose files are
    registered already is not registered again: that version is returned with the tags of this
    candidate, as challenger unless it is the champion. Raises InputError for a directory without a
    policy, RegistryError where MLflow does not answer.
    """
    if candidate.run_id.startswith("pending:"):
        raise TrackingError(
            "the policy's run is not in MLflow yet. Fix: start the server (`make up`), then `ospo "
            "sync`"
        )
    model_dir = candidate.model_dir
    if not any((model_dir / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(model_dir, "", "holds no policy", "train it first")
    with (
        tempfile.TemporaryDirectory(prefix="ospo-register-") as folder,
        connect(config, root) as client,
    ):
        staged = Path(folder) / "policy"
        copy_policy(model_dir, staged)
        if candidate.guard is not None:  # beside the one it was trained with, where it has one
            trained = read_guard(staged) or Guard()
            write_guard(staged, trained.also(candidate.guard))
            write_manifest(staged)
        known = versions_of(client, dataset)
        if same := _registered(client, known, sha256_file(staged / MANIFEST)):
            for key, value in _changing(candidate).items():
                client.set_model_version_tag(same.name, str(same.version), key, value)
            return find_version(client, dataset, same.version)
        _remove_orphans(client, candidate.run_id)
        made = _create(client, config, dataset, candidate, staged, Path(root))
        client.set_registered_model_alias(made.name, CHALLENGER, made.version)
        if champion_if_first and not any(CHAMPION in item.aliases for item in known):
            decision = {"promoted": True, "reason": "the first registered version"}
            make_champion(client, dataset, int(made.version), decision)
        return find_version(client, dataset, int(made.version))


def _registered(client: MlflowClient, known: list[Version], digest: str) -> Version | None:
    """The version whose files are these, as challenger where it has no alias."""
    for item in known:
        if item.tags.get("policy_sha256") == digest:
            if item.aliases:
                return item
            client.set_registered_model_alias(item.name, CHALLENGER, str(item.version))
            return replace(item, aliases=(CHALLENGER,))
    return None


def _create(
    client: MlflowClient,
    config: Config,
    dataset: str,
    candidate: Candidate,
    staged: Path,
    root: Path,
) -> ModelVersion:
    """Log the staged policy as a model and make it a version, with its tags and description."""
    rl, name = config.preset.rl, model_name(dataset)
    answer = read_answer_kind(staged)
    settings: dict[str, int | str] = {
        "answer": answer.kind,
        "max_prompt_tokens": rl.max_prompt_tokens,
        "max_new_tokens": min(rl.max_completion_tokens, MAX_NEW_TOKENS),
    }
    facts = {
        "policy_sha256": sha256_file(staged / MANIFEST),
        "data_md5": candidate.data_md5,
        "git_commit": git_commit(root),
        "git_dirty": git_dirty(root),
    }
    tags = {
        **facts,
        "dataset": dataset,
        "preset": config.policy,
        "algorithm": candidate.algorithm,
        **{key: str(value) for key, value in settings.items()},
        **_changing(candidate),
    }
    card = model_card(
        dataset,
        candidate.algorithm,
        config,
        candidate.summary,
        facts,
        answer,
        candidate.control,
        candidate.guarded,
    )
    if (kept := read_guard(staged)) and kept.needs == "own":
        card += (
            "\n\nIt answers requests that follow an earlier purchase of the requested type, as its "
            "training requests do; others stay as they are."
        )
    if candidate.guard is not None:
        card += (
            "\n\nIt has a guard, chosen on validation requests: where it is unsure or has nothing "
            "to go on, the request stays as it is."
        )
    if candidate.report is not None and candidate.report.is_file():
        card += (
            f"\n\nThe evaluation that these figures are of: `artifacts/{candidate.report.name}` "
            "among the model's artifacts."
        )
    model_uri = log_model(staged, settings, candidate.run_id, staged.parent, candidate.report)
    _ensure_model(client, name)
    return client.create_model_version(
        name,
        source=model_uri,
        run_id=candidate.run_id,
        tags=tags,
        description=card,
        model_id=model_uri.rpartition("/")[2],
    )


def _changing(candidate: Candidate) -> dict[str, str]:
    """Tags that another evaluation of the same files changes."""
    return {
        **_figure_tags(FIGURE, candidate.figures),
        **_figure_tags(RAW_FIGURE, candidate.summary.get(RAW, {})),
        **candidate.tags,
    }


def _figure_tags(prefix: str, figures: Mapping[str, float]) -> dict[str, str]:
    return {record_name(f"{prefix}{name}"): f"{value:.6f}" for name, value in figures.items()}


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(
            name, description="Rewrites a shopper's request into a better search text."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _remove_orphans(client: MlflowClient, run_id: str) -> None:
    """Remove models of this run that a killed registration logged and made no version of."""
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    if not logged:
        return
    used = {item.source for item in client.search_model_versions(f"run_id = '{run_id}'")}
    for model in logged:
        if model.name == _LOGGED_NAME and model.model_uri not in used:
            get_artifact_repository(model.artifact_location).delete_artifacts()
            client.delete_logged_model(model.model_id)
