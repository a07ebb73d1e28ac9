"""The registration of the better policy, and its comparison with the champion."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ospo import tracking
from ospo.config import ALGORITHMS, Config
from ospo.errors import OspoError
from ospo.files import read_json
from ospo.paths import PREPARED, RUNS
from ospo.steps.evaluate import evaluation_step
from ospo.steps.inputs import data_md5
from ospo.steps.replace import begin_anew, replace
from ospo.steps.step import finished, policy_directory
from ospo.training.looks import kept_start

if TYPE_CHECKING:
    from ospo.registry import Version

_EVALUATION = "evaluation"  # the step; and the tag of a version with the fingerprint of its latest


def run_registration(config: Config, dataset: str) -> dict[str, Any]:
    """Register the better RL policy as a version of ``ospo-rewriter-<dataset>``; returns what
    became of it: name, version, policy, whether that is the SFT policy as it was (``same_as_sft``),
    aliases, decision.

    The better one is chosen on validation requests. It is a challenger: it becomes the champion
    only if the paired comparison on held-out requests allows it (:mod:`ospo.registry.promotion`),
    with the best rule and the champion there is: no policy is better than a bad one. A
    policy that is registered already is not registered again, and compared again only where the
    evaluation is another one, or where it was replaced as champion. Raises OspoError for an
    evaluation of other policies, data or parameters than there are now.
    """
    from ospo import registry
    from ospo.evaluation.guard import chosen_guard

    evaluation = _evaluation_of_today(config, dataset)
    summary = read_json(RUNS / dataset / _EVALUATION / "summary.json")
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
            _EVALUATION: evaluation,
        },
        control=summary.get("control", {}).get(policy, {}),
        guard=(guard := chosen_guard(RUNS / dataset / _EVALUATION, policy, config.seed)),
        report=_page(dataset),
        guarded=summary.get("guard", {}).get(policy, {}) if guard else {},
    )
    version = registry.register(config, dataset, candidate, champion_if_first=False)
    decision = _reason(version)
    if _undecided(version, evaluation):
        served = registry.policy_directory(config, version) if guard else model_dir
        decision = _challenge(config, dataset, policy, version, served, evaluation)
        version = next(
            v for v in registry.models(config, (dataset,)) if v.version == version.version
        )
    return _entry(version, policy, decision)


def registered_policy(
    config: Config,
    dataset: str,
    summary: dict[str, Any],
    fingerprints: Mapping[str, str],
    evaluation: str,
) -> dict[str, Any] | None:
    """What ``run_registration`` would return without registering or comparing anything; None where
    it would do one of them. fingerprints: policy → of the step that trained it; evaluation: of the
    evaluation step.
    """
    from ospo import registry

    policy = _better(config, summary)
    for version in registry.models(config, (dataset,)):
        seen = version.tags.get("fingerprint"), version.tags.get(_EVALUATION)
        if seen == (fingerprints[policy], evaluation):
            if not version.aliases or _undecided(version, evaluation):
                return None
            return _entry(version, policy, _reason(version))
    return None


def _evaluation_of_today(config: Config, dataset: str) -> str:
    """The fingerprint of the finished evaluation. OspoError where it is not of the policies, data
    and parameters of now.
    """
    state = finished(dataset, _EVALUATION)
    trained = {name: finished(dataset, name)["fingerprint"] for name in config.policies}
    if state["fingerprint"] != evaluation_step(config, dataset, trained).fingerprint:
        raise OspoError(
            f"{RUNS / dataset / _EVALUATION}: is of other policies, data, parameters or code than "
            f"there are now. Fix: run `ospo evaluate --dataset {dataset}`, with the same --set"
        )
    return str(state["fingerprint"])


def _page(dataset: str) -> Path:
    """The page of the evaluation step, which every version made from it carries."""
    return RUNS / dataset / _EVALUATION / "report.html"


def _better(config: Config, summary: dict[str, Any]) -> str:
    """The trained policy that is best on validation requests."""
    from ospo.evaluation.selection import best_policy

    trained = [name for name in config.policies if name in ALGORITHMS]
    return best_policy(summary, config.retrievers.training, trained)


def _reason(version: "Version") -> str:
    """Why the version has its alias; "" where that was not decided yet."""
    return str(version.decision.get("reason", ""))


def _undecided(version: "Version", evaluation: str) -> bool:
    """Whether a version has to be compared: it is not the champion and was never decided on, or by
    another evaluation, or it should be the champion by what was decided (it was cut off, or
    replaced since). What a person decided stays.
    """
    from ospo import registry

    if registry.CHAMPION in version.aliases:
        return False
    found = version.decision
    if not found:
        return True
    if "by" in found:
        return False
    return bool(found["promoted"]) or found.get(_EVALUATION) != evaluation


def _entry(version: "Version", policy: str, decision: str) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "policy": policy,
        "same_as_sft": version.tags.get("same_as_sft") == "true",
        "aliases": list(version.aliases),
        "decision": decision,
    }


def _challenge(
    config: Config,
    dataset: str,
    policy: str,
    version: "Version",
    model_dir: Path,
    evaluation: str,
) -> str:
    """Compare the challenger ``version`` with the best rule and the champion on the same requests;
    the reason. ``model_dir``: its files; where they are not those that the evaluation step scored,
    but have a guard of their own, it is evaluated anew. ``evaluation``: that step's fingerprint.
    """
    from ospo import registry
    from ospo.data.dataset import load_prepared
    from ospo.evaluation.evaluate import evaluate
    from ospo.evaluation.leaks import LeakError
    from ospo.registry import promotion

    policies, champion, in_use = {policy: model_dir}, None, None
    noted = {_EVALUATION: evaluation}
    same: dict[str, Any] = {
        "challenger": policy, "version": version.version, "report": _page(dataset), "noted": noted,
    }  # fmt: skip
    if any(registry.CHAMPION in known.aliases for known in registry.models(config, (dataset,))):
        champion = "champion"
        in_use, policies[champion] = registry.whole_champion(config, dataset)
    elif model_dir == policy_directory(dataset, policy):
        done = RUNS / dataset / _EVALUATION
        return promotion.consider(config, dataset, done, champion=None, **same).reason
    directory = RUNS / dataset / "promotion"
    limits = {policy: version.limits}  # both as they are served
    if champion and in_use:
        limits[champion] = in_use.limits
    data = load_prepared(PREPARED / dataset)
    try:
        evaluate(config, data, policies, begin_anew(directory), limits=limits)
    except LeakError as error:
        # The champion was trained on what is held out now (the data changed): no fair comparison,
        # no promotion.
        reason = f"not compared: {error}"
        refused = {"promoted": False, "reason": reason, **noted}
        registry.note(config, dataset, version.version, decision=refused)
        return reason
    replace(directory)
    return promotion.consider(
        config, dataset, directory, champion=champion, in_use=in_use, **same
    ).reason
