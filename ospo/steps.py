"""The steps of the main job: each one call that trains or evaluates, tracks itself, and skips what has not changed.

A step lives in ``runs/<dataset>/<name>/``. Its ``step.json`` holds the fingerprint of everything that went in
(data, parameters, source code, library versions, earlier steps), the MLflow run and whether it finished:

* same fingerprint, finished: nothing to do, unless the policy's files are damaged: then it is done again;
* same fingerprint, not finished: the run was interrupted, so it goes on from its checkpoint in the same MLflow run;
* another fingerprint: the old files are removed and the step starts afresh.
"""

import hashlib
import importlib.metadata
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import polars as pl
import yaml
from filelock import FileLock, Timeout

from ospo import distributed, tracking
from ospo.config import Algorithm, Config
from ospo.errors import InputError, OspoError
from ospo.files import atomic_file, is_full, read_json, sha256_file, sha256_json, verify_manifest, write_json

LOGGER = logging.getLogger("ospo.steps")

PREPARED = Path("data/prepared")
VECTORS = Path("data/vectors")
RUNS = Path("runs")
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)

SHOWN = 200  # completions in a run's table
_TRAINING_SOURCES = (
    "credit", "retrieval", "training", "data/dataset.py", "data/prompts.py", "engine.py", "models.py", "reward.py",
)  # fmt: skip
_EVALUATION_SOURCES = (
    "credit", "evaluation", "retrieval", "data/dataset.py", "data/prompts.py", "engine.py", "models.py", "reward.py",
)  # fmt: skip
_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")


@dataclass(frozen=True)
class StepResult:
    """A finished step."""

    name: str
    dataset: str
    directory: Path
    fingerprint: str
    run_id: str
    skipped: bool
    seconds: float

    @property
    def model(self) -> Path:
        """Where a training step leaves its policy."""
        return self.directory / "model"


@dataclass(frozen=True)
class Lineage:
    """Who asked for a step: the MLflow parent run and the Prefect flow run ("" where there is none)."""

    parent_run_id: str | None = None
    prefect_run_id: str = ""


def file_md5(path: Path) -> str:
    """Hex md5 of a file's bytes: DVC's name for content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def data_md5(dataset: str) -> dict[str, str]:
    """Path → md5 of a dataset's prepared files, from dvc.lock; hashed here where they did not come through DVC."""
    lock = Path("dvc.lock")
    outs: dict[str, str] = {}
    if lock.exists():
        stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {})
        outs = {out["path"]: out["md5"] for out in stages.get(f"prepare@{dataset}", {}).get("outs", [])}
    files = sorted(PREPARED.joinpath(dataset).glob("*.parquet"))
    if files and not outs:
        outs = {path.as_posix(): file_md5(path) for path in files}
    if not files:
        raise OspoError(f"{PREPARED / dataset}: no prepared data. Fix: run `dvc repro vectors@{dataset}`")
    return outs


@lru_cache
def _source_hash(parts: tuple[str, ...]) -> str:
    root = Path(__file__).parent
    files = sorted(
        file
        for part in parts
        for file in ([root / part] if part.endswith(".py") else root.joinpath(part).rglob("*.py"))
    )
    return sha256_json([(file.relative_to(root).as_posix(), sha256_file(file)) for file in files])


def evaluation_source() -> str:
    """Hash of the code that evaluation depends on."""
    return _source_hash(_EVALUATION_SOURCES)


@lru_cache
def _library_versions() -> tuple[str, ...]:
    return tuple(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)


@contextmanager
def dataset_lock(
    dataset: str, patience: float = 0.0, told: Callable[[str], object] = lambda line: None
) -> Iterator[None]:
    """Hold the dataset's runs for this process; the lock goes with the process, however that ends.

    Where another process works on them it is waited for, at most ``patience`` seconds; ``told`` gets one line about
    that. OspoError where they do not become free. Of a run in several processes the main one holds them for all.
    """
    if not distributed.is_main():
        yield
        return
    RUNS.joinpath(dataset).mkdir(parents=True, exist_ok=True)
    lock = FileLock(RUNS / dataset / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if patience > 0:
            told(f"runs/{dataset}: another run is working on it; waiting for it to end")
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise OspoError(
                f"runs/{dataset}: another run is working on it. Fix: wait for it to end, or stop it, then run again"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _run_step(
    config: Config,
    dataset: str,
    name: str,
    *,
    kind: str,
    inputs: dict[str, Any],
    params: dict[str, Any],
    lineage: Lineage,
    work: Callable[[Path, "tracking.Run"], None],
) -> StepResult:
    """Run, resume or skip one step; see the module's docstring.

    In several processes all come to the same decision from the same files, before the main one changes any.
    """
    directory = RUNS / dataset / name
    state_file = directory / "step.json"
    fingerprint = sha256_json({"inputs": inputs, "params": params})
    state = read_json(state_file) if state_file.exists() else {}
    if state.get("fingerprint") == fingerprint and state.get("finished") and (damage := _damage(directory, kind)):
        LOGGER.warning("%s; the step is done again", damage)
        state = {}
    distributed.together()
    if state.get("fingerprint") == fingerprint and state.get("finished"):
        return StepResult(name, dataset, directory, fingerprint, state["run_id"], True, state["seconds"])
    if not distributed.is_main():
        distributed.together()
        work(directory, distributed.Follower())  # type: ignore[arg-type]
        distributed.together()
        return StepResult(name, dataset, directory, fingerprint, "", False, 0.0)
    run_id = state.get("run_id") if state.get("fingerprint") == fingerprint else None
    if run_id is None and directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tracking.run(
        config,
        f"{name}-{dataset}",
        kind=kind,
        directory=directory,
        parent_id=lineage.parent_run_id,
        run_id=run_id,
        params=params,
        tags={"ospo.dataset": dataset, "ospo.fingerprint": fingerprint},
        data_md5={dataset: tracking.dataset_digest(data_md5(dataset))},
        prefect_flow_run_id=lineage.prefect_run_id or None,
    ) as run:
        write_json(state_file, {"fingerprint": fingerprint, "run_id": run.id, "finished": False})
        run.log_dataset(dataset, PREPARED / dataset, data_md5(dataset), context=kind)
        distributed.together()
        with _full_disk_told(directory):
            work(directory, run)
    seconds = round(time.monotonic() - started, 1)
    write_json(state_file, {"fingerprint": fingerprint, "run_id": run.id, "finished": True, "seconds": seconds})
    distributed.together()
    return StepResult(name, dataset, directory, fingerprint, run.id, False, seconds)


def _damage(directory: Path, kind: str) -> str:
    """What is wrong with the files of a finished step's policy; "" where they are whole, or the step makes none."""
    if kind not in ("sft", "rl"):
        return ""
    try:
        verify_manifest(directory / "model")
    except InputError as error:
        return str(error).partition(" Fix: ")[0].removesuffix(".")
    return ""


@contextmanager
def _full_disk_told(directory: Path) -> Iterator[None]:
    """A full disk is one clear line. What was half written is removed; the last good checkpoint stays."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        from ospo.training.callbacks import last_checkpoint

        last = last_checkpoint(directory / "checkpoints")
        kept = f"{last.name} is whole" if last else "there is no checkpoint yet"
        raise OspoError(
            f"{directory}: the disk is full; {kept}. Fix: free some space (`ospo doctor` says how much there is), then "
            "run the same command again: it goes on from there"
        ) from error


def _training_inputs(dataset: str) -> dict[str, Any]:
    return {"data": data_md5(dataset), "source": _source_hash(_TRAINING_SOURCES), "libraries": _library_versions()}


def _log_policy(run: "tracking.Run", config: Config, directory: Path) -> None:
    """The trained policy (adapter, or a small policy's whole weights) and the resolved configuration as artifacts."""
    run.log_artifact(directory / "model", "policy")
    run.log_dict("config.json", config.model_dump())


def run_sft(config: Config, dataset: str, lineage: Lineage = Lineage()) -> StepResult:
    """Train the SFT policy every algorithm starts from."""
    preset = config.preset
    params = {
        "seed": config.seed,
        "policy": config.policy,
        "model": preset.model.model_dump(),
        "sft": preset.sft.model_dump(),
        "max_prompt_tokens": preset.rl.max_prompt_tokens,
    }

    def work(directory: Path, run: "tracking.Run") -> None:
        from ospo.data.dataset import load_prepared
        from ospo.training.sft import train_sft

        train_sft(config, load_prepared(PREPARED / dataset), directory, run.log_metrics)
        _log_policy(run, config, directory)

    return _run_step(
        config, dataset, "sft", kind="sft", inputs=_training_inputs(dataset), params=params, lineage=lineage, work=work
    )


def run_rl(config: Config, dataset: str, algorithm: Algorithm, lineage: Lineage = Lineage()) -> StepResult:
    """Train with one algorithm from the SFT checkpoint, which is trained first where it is missing or stale."""
    if algorithm not in ALGORITHMS:
        raise OspoError(f"algorithm {algorithm!r} is not known. Fix: name one of {', '.join(ALGORITHMS)}")
    sft = run_sft(config, dataset, lineage)
    preset = config.preset
    params: dict[str, Any] = {
        "seed": config.seed,
        "policy": config.policy,
        "algorithm": algorithm,
        "model": preset.model.model_dump(),
        "rl": preset.rl.model_dump(),  # off-line algorithms too: it sizes the budget of completions
        "reward": config.reward.model_dump(),
        "retriever": {"training": config.retrievers.training, "dtype": config.retrievers.dtype},
    }
    if algorithm in ("rft", "dpo"):
        params[algorithm] = getattr(preset, algorithm).model_dump()
    if algorithm in ("ospo", "shapley_tokens"):
        params["credit"] = config.credit.model_dump()

    def work(directory: Path, run: "tracking.Run") -> None:
        from ospo.data.dataset import load_prepared
        from ospo.retrieval import build_retriever
        from ospo.reward import SearchReward
        from ospo.training.train import train

        def log_table(step: int, rows: list[dict[str, Any]]) -> None:
            run.log_table(f"completions/step-{step:05d}.json", rows)

        data = load_prepared(PREPARED / dataset)
        retriever = build_retriever(config.retrievers.training, config, data)
        reward = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
        train(config, data, algorithm, sft.model, reward, directory, run.log_metrics, log_table)
        for name in ("trainer_args.json", "completions.parquet", "collapse.json"):
            if (directory / name).is_file():
                run.log_artifact(directory / name)
        if (directory / "completions.parquet").is_file():
            # The last completions as a table that MLflow shows; all of them are in the file.
            run.log_table("tables/completions.json", pl.read_parquet(directory / "completions.parquet").tail(SHOWN))
        _log_policy(run, config, directory)

    inputs = _training_inputs(dataset) | {"sft": sft.fingerprint}
    return _run_step(config, dataset, algorithm, kind="rl", inputs=inputs, params=params, lineage=lineage, work=work)


def run_evaluation(config: Config, dataset: str, lineage: Lineage = Lineage()) -> StepResult:
    """Score every policy's search texts under the training retriever and each unseen one, on held-out requests."""
    policies = {name: _finished(dataset, name) for name in config.policies}
    params = {
        "seed": config.seed,
        "evaluation": config.evaluation.model_dump(),
        "retrievers": config.retrievers.model_dump(),
        "reward": config.reward.model_dump(),
    }

    def work(directory: Path, run: "tracking.Run") -> None:
        from ospo.data.dataset import load_prepared
        from ospo.evaluation import evaluate
        from ospo.evaluation.report import write_report
        from ospo.evaluation.wording import summary_markdown

        models = {"raw": None} | {name: RUNS / dataset / name / "model" for name in policies}
        trained = [f"ospo train --dataset {dataset} --algorithm {name}" for name in policies if name in ALGORITHMS]
        commands = [
            f"dvc repro vectors@{dataset}", f"ospo sft --dataset {dataset}", *trained,
            f"ospo evaluate --dataset {dataset}", f"ospo report --dataset {dataset}",
        ]  # fmt: skip
        summary = evaluate(config, load_prepared(PREPARED / dataset), models, directory, commands=commands)
        for policy, figures in summary["test"].items():
            run.log_metrics(0, {f"{policy}/{retriever}/ndcg_at_10": value for retriever, value in figures.items()})
        report = directory / "report.html"
        resamples = config.evaluation.resamples
        facts = {"MLflow run": run.id}
        analysis = write_report(directory, report, resamples=resamples, seed=config.seed, facts=facts)
        with atomic_file(directory / "summary.md") as temporary:
            temporary.write_text(summary_markdown(analysis, dataset), encoding="utf-8")
        for name in ("evaluation.parquet", "summary.json", "report.html"):
            run.log_artifact(directory / name)
        rows = [{"policy": policy, **figures} for policy, figures in summary["test"].items()]
        run.log_table("tables/ndcg_at_10.json", rows)
        run.log_dict("config.json", config.model_dump())

    inputs = {
        "data": data_md5(dataset),
        "source": evaluation_source(),
        "policies": {name: state["fingerprint"] for name, state in policies.items()},
    }
    return _run_step(
        config, dataset, "evaluation", kind="evaluation", inputs=inputs, params=params, lineage=lineage, work=work
    )


def run_registration(config: Config, dataset: str) -> dict[str, Any]:
    """Register the better RL policy as a version of ``ospo-rewriter-<dataset>``; returns what became of it.

    The better one is chosen on validation requests. It is a challenger: it becomes the champion only if the paired
    comparison on held-out requests allows it (:mod:`ospo.promotion`), with the champion there is, or else with the raw
    query: no policy is better than a bad one. A policy that is registered already is not registered again.
    """
    from ospo import registry
    from ospo.evaluation.robustness import best_policy

    _finished(dataset, "evaluation")
    summary = read_json(RUNS / dataset / "evaluation" / "summary.json")
    trained = [name for name in config.policies if name in ALGORITHMS]
    policy = best_policy(summary, config.retrievers.training, trained)
    state = _finished(dataset, policy)
    model_dir = RUNS / dataset / policy / "model"
    version = registry.register(
        config,
        dataset,
        policy=policy,
        model_dir=model_dir,
        run_id=state["run_id"],
        summary=summary["test"],
        data_md5=tracking.dataset_digest(data_md5(dataset)),
        tags={"fingerprint": state["fingerprint"]},
        champion_if_first=False,
    )
    noted = version.tags.get("decision")
    decision = str(json.loads(noted)["reason"]) if noted else ""
    if not version.aliases or (registry.CHALLENGER in version.aliases and not decision):
        decision = _challenge(config, dataset, policy, model_dir)
        version = next(v for v in registry.models(config, (dataset,)) if v.version == version.version)
    return {
        "name": version.name,
        "version": version.version,
        "policy": policy,
        "aliases": list(version.aliases),
        "decision": decision,
    }


def _challenge(config: Config, dataset: str, policy: str, model_dir: Path) -> str:
    """Compare the newly registered challenger with the champion, or the raw query, on the same requests; the reason."""
    from ospo import promotion, registry
    from ospo.data.dataset import load_prepared
    from ospo.evaluation import evaluate
    from ospo.evaluation.leaks import LeakError

    if not any(registry.CHAMPION in known.aliases for known in registry.models(config, (dataset,))):
        evaluation = RUNS / dataset / "evaluation"
        return promotion.consider(config, dataset, evaluation, challenger=policy, champion=promotion.RAW).reason
    _, champion_dir = registry.usable_champion(config, dataset)
    directory = RUNS / dataset / "promotion"
    try:
        evaluate(config, load_prepared(PREPARED / dataset), {policy: model_dir, "champion": champion_dir}, directory)
    except LeakError as error:
        # The champion was trained on what is held out now (the data changed): no fair comparison, no promotion.
        reason = f"not compared: {error}"
        registry.note(config, dataset, None, decision={"promoted": False, "reason": reason})
        return reason
    return promotion.consider(config, dataset, directory, challenger=policy).reason


@contextmanager
def pipeline_run(config: Config, dataset: str, lineage: Lineage = Lineage()) -> Iterator[str]:
    """The MLflow parent run of a dataset's whole job; yields its id.

    A pipeline interrupted and started again with the same data and parameters goes on in the same parent run.
    """
    tracking.sync(config, RUNS / dataset)
    directory = RUNS / dataset / "pipeline"
    params = config.model_dump(include={"seed", "policy", "retrievers", "reward", "credit", "evaluation"})
    inputs = {"data": data_md5(dataset), "source": _source_hash(("",)), "preset": config.preset.model_dump()}
    fingerprint = sha256_json({"inputs": inputs, "params": params})
    state_file = directory / "step.json"
    state = read_json(state_file) if state_file.exists() else {}
    run_id = state.get("run_id") if state.get("fingerprint") == fingerprint else None
    with tracking.run(
        config,
        f"pipeline-{dataset}",
        kind="pipeline",
        directory=directory,
        run_id=run_id,
        params=params,
        tags={"ospo.dataset": dataset},
        data_md5={dataset: tracking.dataset_digest(data_md5(dataset))},
        prefect_flow_run_id=lineage.prefect_run_id or None,
    ) as run:
        write_json(state_file, {"fingerprint": fingerprint, "run_id": run.id})
        yield run.id


def _finished(dataset: str, name: str) -> dict[str, Any]:
    """The state of a finished step. OspoError where it has not finished."""
    file = RUNS / dataset / name / "step.json"
    state = read_json(file) if file.exists() else {}
    if not state.get("finished"):
        command = "sft" if name == "sft" else f"train --algorithm {name}"
        raise OspoError(f"{file.parent}: no finished {name} policy. Fix: run `ospo {command} --dataset {dataset}`")
    return state
