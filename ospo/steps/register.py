"""The registration of the better policy, and its comparison with the champion."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ospo import tracking
from ospo.config import ALGORITHMS, Config
from ospo.files import read_json
from ospo.paths import PREPARED, RUNS
from ospo.steps.inputs import data_md5
from ospo.steps.replace import begin_anew, replace
from ospo.steps.step import finished, policy_directory
from ospo.training.looks import kept_start

if TYPE_CHECKING:
    from ospo.registry import Version


def run_registration(config: Config, dataset: str) -> dict[str, Any]:
    """Register the better RL policy as a version of ``ospo-rewriter-<dataset>``; returns what
    became of it: name, version, policy, whether that is the SFT policy as it was (``same_as_sft``),
    aliases, decision.

    The better one is chosen on validation requests. It is a challenger: it becomes the champion
    only if the paired comparison on held-out requests allows it (:mod:`ospo.registry.promotion`),
    with the best rule and the champion there is: no policy is better than a bad one. A
    policy that is registered already is not registered again.
    """
    from ospo import registry
    from ospo.evaluation.guard import chosen_guard

    finished(dataset, "evaluation")
    summary = read_json(RUNS / dataset / "evaluation" / "summary.json")
    policy = _better(config, summary)
    state = finished(dataset, policy)
    model_dir = policy_directory(dataset, policy)
    candidate = registry.Candidate(
        algorithm=policy,
        model_dir=model_dir,
        run_id=state["run_id"],
        summary=summary["test"],
        data_md5=tracking.dataset_digest(data_md5(dataset)),
        tags={
            "fingerprint": state["fingerprint"],
            "same_as_sft": str(kept_start(RUNS / dataset / policy)).lower(),
        },
        control=summary.get("control", {}).get(policy, {}),
        guard=chosen_guard(RUNS / dataset / "evaluation", policy, config.seed),
        report=_page(dataset),
    )
    version = registry.register(config, dataset, candidate, champion_if_first=False)
    decision = _decision(version)
    if not version.aliases or (registry.CHALLENGER in version.aliases and not decision):
        guarded = candidate.guard is not None
        served = registry.policy_directory(config, version) if guarded else model_dir
        decision = _challenge(config, dataset, policy, served, guarded)
        version = next(
            v for v in registry.models(config, (dataset,)) if v.version == version.version
        )
    return _entry(version, policy, decision)


def registered_policy(
    config: Config, dataset: str, summary: dict[str, Any], fingerprints: Mapping[str, str]
) -> dict[str, Any] | None:
    """What ``run_registration`` would return without registering or comparing anything; None where
    it would do one of them. fingerprints: policy → of the step that trained it.
    """
    from ospo import registry

    policy = _better(config, summary)
    for version in registry.models(config, (dataset,)):
        if version.tags.get("fingerprint") == fingerprints[policy]:
            decision = _decision(version)
            waits = registry.CHALLENGER in version.aliases and not decision
            return None if waits or not version.aliases else _entry(version, policy, decision)
    return None


def _page(dataset: str) -> Path:
    """The page of the evaluation step, which every version made from it carries."""
    return RUNS / dataset / "evaluation" / "report.html"


def _better(config: Config, summary: dict[str, Any]) -> str:
    """The trained policy that is best on validation requests."""
    from ospo.evaluation.selection import best_policy

    trained = [name for name in config.policies if name in ALGORITHMS]
    return best_policy(summary, config.retrievers.training, trained)


def _decision(version: "Version") -> str:
    """Why the version has its alias; "" where that was not decided yet."""
    noted = version.tags.get("decision")
    return str(json.loads(noted)["reason"]) if noted else ""


def _entry(version: "Version", policy: str, decision: str) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "policy": policy,
        "same_as_sft": version.tags.get("same_as_sft") == "true",
        "aliases": list(version.aliases),
        "decision": decision,
    }


def _challenge(config: Config, dataset: str, policy: str, model_dir: Path, guarded: bool) -> str:
    """Compare the newly registered challenger with the best rule and the champion on the same
    requests; the reason. ``guarded``: ``model_dir`` has a guard, which the evaluation step's
    figures of the policy do not know.
    """
    from ospo import registry
    from ospo.data.dataset import load_prepared
    from ospo.evaluation.evaluate import evaluate
    from ospo.evaluation.leaks import LeakError
    from ospo.registry import promotion

    policies, champion = {policy: model_dir}, None
    if any(registry.CHAMPION in known.aliases for known in registry.models(config, (dataset,))):
        champion = "champion"
        policies[champion] = registry.whole_champion(config, dataset)[1]
    elif not guarded:
        evaluation = RUNS / dataset / "evaluation"
        return promotion.consider(
            config, dataset, evaluation, challenger=policy, champion=None, report=_page(dataset)
        ).reason
    directory = RUNS / dataset / "promotion"
    try:
        evaluate(config, load_prepared(PREPARED / dataset), policies, begin_anew(directory))
    except LeakError as error:
        # The champion was trained on what is held out now (the data changed): no fair comparison,
        # no promotion.
        reason = f"not compared: {error}"
        registry.note(config, dataset, None, decision={"promoted": False, "reason": reason})
        return reason
    replace(directory)
    return promotion.consider(
        config, dataset, directory, challenger=policy, champion=champion, report=_page(dataset)
    ).reason
