"""Rules in the registry: what answers where no trained policy is better than a rule.

Such a rule is a version like any other, the champion while nothing is better, so that whatever
loads ``@champion`` answers by it.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from ospo.config import Config
from ospo.files import MANIFEST, sha256_file, write_manifest
from ospo.policy.rules import RULES, Rule, write_rule
from ospo.registry.champions import make_champion
from ospo.registry.packaging import log_model
from ospo.registry.store import (
    CHAMPION,
    RULE_TAG,
    Version,
    connect,
    find_version,
    model_name,
    versions_of,
)
from ospo.serving.requests import MAX_NEW_TOKENS
from ospo.tracking.facts import git_commit, git_dirty
from ospo.tracking.store import record_name

BEST_TAG = "rule_to_beat"  # the best rule, which may be one that cannot answer by itself


def rule_note(version: Version, dataset: str) -> str:
    """One line on what answers where ``version`` is a rule; "" where it is a trained policy."""
    rule = version.tags.get(RULE_TAG)
    if rule is None:
        return ""
    best = version.tags.get(BEST_TAG, rule)
    beaten = RULES[best].label if best in RULES else f"rule {best}"
    needs = "" if best == rule else ", which needs the search engine"
    return (
        f"no trained policy is better than the {beaten.replace('rule: ', 'rule ')} on "
        f"{dataset}{needs}; answering by the rule '{rule}' (version {version.version})"
    )


def answer_by_rule(
    config: Config,
    dataset: str,
    rule: Rule,
    candidate: Version,
    *,
    best: str,
    figures: Mapping[str, float],
    decision: Mapping[str, Any],
    report: Path | None = None,
    root: str | Path = ".",
) -> Version:
    """Make a rule the champion, registering it where it is not yet.

    ``candidate``: the version that was not better; the rule's version names its run and data.
    ``best``: the best rule; ``figures``: {retriever: nDCG@10} of ``rule``; ``report``: the page of
    that evaluation, which the version carries. Raises ValueError for a rule that cannot answer from
    the request alone.
    """
    if not rule.standalone:
        raise ValueError(f"the rule {rule.name!r} needs a search of the catalogue")
    name = model_name(dataset)
    with (
        tempfile.TemporaryDirectory(prefix="ospo-register-") as folder,
        connect(config, root) as client,
    ):
        staged = Path(folder) / "policy"
        write_rule(rule, staged)
        write_manifest(staged)
        digest = sha256_file(staged / MANIFEST)
        known = versions_of(client, dataset)
        found = next((v for v in known if v.tags.get("policy_sha256") == digest), None)
        number = (
            found.version
            if found
            else _create(client, config, dataset, rule, candidate, staged, report, Path(root))
        )
        changing = {
            BEST_TAG: best,
            "data_md5": candidate.tags.get("data_md5", ""),
            **{record_name(f"ndcg_at_10.{key}"): f"{value:.6f}" for key, value in figures.items()},
        }
        for key, value in changing.items():
            client.set_model_version_tag(name, str(number), key, value)
        if found is None or CHAMPION not in found.aliases:
            make_champion(client, dataset, number, decision)
        return find_version(client, dataset, number)


def _create(
    client: MlflowClient,
    config: Config,
    dataset: str,
    rule: Rule,
    candidate: Version,
    staged: Path,
    report: Path | None,
    root: Path,
) -> int:
    """Log the rule as a model and make it a version; its number."""
    rl = config.preset.rl
    settings: dict[str, int | str] = {
        "answer": "rewrite",
        "max_prompt_tokens": rl.max_prompt_tokens,
        "max_new_tokens": min(rl.max_completion_tokens, MAX_NEW_TOKENS),
    }
    tags = {
        RULE_TAG: rule.name,
        "policy_sha256": sha256_file(staged / MANIFEST),
        "git_commit": git_commit(root),
        "git_dirty": git_dirty(root),
        "dataset": dataset,
        "algorithm": f"rule: {rule.name}",
        **{key: str(value) for key, value in settings.items()},
    }
    card = (
        f"No policy, but a rule ({dataset}): {rule.words}. It answers while no trained policy is "
        "better than the best rule in a paired test on held-out requests."
    )
    uri = log_model(staged, settings, candidate.run_id, staged.parent, report)
    made = client.create_model_version(
        model_name(dataset),
        source=uri,
        run_id=candidate.run_id,
        tags=tags,
        description=card,
        model_id=uri.rpartition("/")[2],
    )
    return int(made.version)
