"""What the commands do, as functions: ``ospo.prepare``, ``train``, ``evaluate``, ``rewrite``,
``explain`` and ``export``.

All work in the current folder, as the commands do: ``params.yaml`` says what, ``data``, ``runs``
and ``mlflow.db`` hold the results. ``params`` names another parameter file; ``overrides`` are
``KEY=VALUE`` texts that replace values of it. A problem that the user can mend is an
:class:`ospo.errors.OspoError`, one line with the fix.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ospo.config import Algorithm, Config, load_config
from ospo.errors import InputError
from ospo.paths import EVALUATION_REPORT, PARAMS, PREPARED

if TYPE_CHECKING:
    from ospo.registry.export import Exported
    from ospo.reports.explain import Explanation
    from ospo.retrieval.base import Retriever
    from ospo.steps import StepResult

LOGGER = logging.getLogger("ospo.api")
__all__ = ["Evaluation", "evaluate", "explain", "export", "prepare", "rewrite", "train"]


@dataclass(frozen=True)
class Evaluation:
    """Figures ``{"test": {policy: {retriever: mean nDCG@10 in [0, 1]}}, "validation": …}``, the
    folder of all tables, and of the trained policies' evaluation its step.
    """

    summary: Mapping[str, Any]
    directory: Path
    step: "StepResult | None" = None


def _config(dataset: str | None, params: str | Path, overrides: Sequence[str]) -> Config:
    config = load_config(params, list(overrides), dataset)
    if dataset is not None:
        config.dataset(dataset)
    return config


def prepare(
    dataset: str,
    out: str | Path | None = None,
    *,
    raw: str | Path | None = None,
    params: str | Path = PARAMS,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Turn the raw files of a data set into catalogue, requests, pools and qrels (four parquet
    tables) in the folder ``out`` (default: ``data/prepared/DATASET``), whole or not at all.

    ``raw``: folder of the raw files; default: the one in params.yaml. Returns what was read, kept
    and dropped (``stats.json``). Raises InputError for bad files. (``dvc repro vectors@DATASET``
    does the same, and only where something changed.)
    """
    from ospo.data.prepare import prepare as prepare_data

    config = load_config(params, list(overrides))  # as DVC's stages: the same for all data sets
    config.dataset(dataset)
    return prepare_data(dataset, raw, PREPARED / dataset if out is None else out, config)


def train(
    dataset: str,
    algorithm: Algorithm | None = "ospo",
    *,
    params: str | Path = PARAMS,
    overrides: Sequence[str] = (),
) -> "StepResult":
    """Train a policy on prepared data: SFT (``algorithm`` None), or an algorithm from the SFT
    policy, which is trained first where it is missing or stale.

    Resumes an interrupted run and skips an unchanged one. Returns the step: ``model`` (the policy's
    folder), ``run_id`` (in MLflow), ``skipped``, ``seconds``. Raises OspoError.
    """
    from ospo import steps

    config = _config(dataset, params, overrides)
    with steps.dataset_lock(dataset):
        if algorithm is None:
            return steps.run_sft(config, dataset)
        return steps.run_rl(config, dataset, algorithm)


def evaluate(
    dataset: str | None = None,
    policies: Mapping[str, Sequence[str | Path]] | None = None,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    trec: str | Path | None = None,
    force: bool = False,
    params: str | Path = PARAMS,
    overrides: Sequence[str] = (),
) -> Evaluation:
    """Score search texts on held-out requests under the training retriever and the unseen ones.

    Without ``policies``: the trained ones of ``dataset``, as a step that is skipped where nothing
    changed. ``policies``: name → folders of a policy, or files of answers, one per training seed;
    then ``data`` is a folder of prepared data (default: the data set's) and ``out`` the folder that
    is written (default: ``reports/evaluation``). ``trec``: a folder for qrels and run files in TREC
    format, replaced with ``force``. Raises OspoError.
    """
    from ospo.data.dataset import load_prepared
    from ospo.files import read_json

    config = _config(dataset, params, overrides)
    target = None if trec is None else Path(trec)
    if target is not None and target.exists() and not force:  # said before minutes of work
        raise InputError(target, "", "exists", "name another folder, or add --force")
    if policies:
        from ospo.evaluation.evaluate import evaluate as evaluate_policies

        if data is None and dataset is None:
            raise InputError("evaluate", "data", "is missing", "name a data set or prepared data")
        folder = EVALUATION_REPORT if out is None else Path(out)
        prepared = load_prepared(PREPARED / str(dataset) if data is None else data)
        listed = {name: list(places) for name, places in policies.items()}
        done = Evaluation(evaluate_policies(config, prepared, listed, folder), folder)
        _write_trec(config, folder, target, prepared.directory, force)
        return done
    if data is not None or out is not None:
        raise InputError("evaluate", "data, out", "need policies", "name the policies to evaluate")
    if dataset is None:
        raise InputError("evaluate", "dataset", "is missing", "name one of params.yaml's")
    from ospo import steps

    with steps.dataset_lock(dataset):
        result = steps.run_evaluation(config, dataset)
    _write_trec(config, result.directory, target, PREPARED / dataset, force)
    summary = read_json(result.directory / "summary.json")
    return Evaluation(summary, result.directory, result)


def _write_trec(
    config: Config, evaluation: Path, out: Path | None, prepared: Path, force: bool
) -> None:
    if out is None:
        return
    from ospo.data.dataset import load_prepared
    from ospo.evaluation.trec import write_trec

    write_trec(config, load_prepared(prepared), evaluation, out, force=force)


def rewrite(
    dataset: str,
    requests: Sequence[str | Mapping[str, Any]],
    *,
    version: int | None = None,
    params: str | Path = PARAMS,
    overrides: Sequence[str] = (),
) -> list[str]:
    """Search texts of requests by the registered champion (or ``version``), or by the best rule
    where no policy is better.

    ``requests`` (N,): queries, or ``{"query", "history": [{"name", "type", "colour"}, …]}`` with
    the oldest purchase first. Returns (N,) texts. Each call loads the policy; for many calls serve
    it, for files of any size there is ``ospo rewrite --input``. Raises RegistryError, RequestError.
    """
    from ospo import registry
    from ospo.serving.requests import MAX_INPUTS

    config = _config(dataset, params, overrides)
    _, rewriter = registry.open_rewriter(config, dataset, version)
    texts: list[str] = []
    for start in range(0, len(requests), MAX_INPUTS):
        texts += rewriter.rewrite(list(requests[start : start + MAX_INPUTS]))
    return texts


def explain(
    dataset: str,
    request: str,
    text: str | None = None,
    *,
    retriever: str | None = None,
    params: str | Path = PARAMS,
    overrides: Sequence[str] = (),
) -> "Explanation":
    """What each phrase of a search text contributed to nDCG@k of a prepared request.

    ``request``: its id or its query. ``text``: default: the champion's; the query itself where
    there is no champion. ``retriever``: default: the training retriever. Raises OspoError.
    """
    from ospo import registry
    from ospo.data.dataset import load_prepared
    from ospo.evaluation.hits import FirstHits
    from ospo.policy.text import SEARCH_TEXTS
    from ospo.reports import explain as explanation
    from ospo.retrieval import build_retriever
    from ospo.serving.requests import MAX_FIELD, MAX_HITS

    config = _config(dataset, params, overrides)
    data = load_prepared(PREPARED / dataset)
    asked = data.requests[explanation.find_request(data, request)]
    rule = SEARCH_TEXTS[config.answer]
    parts: dict[str, Retriever] = {}
    if text is None:
        try:
            history = [{"name": p.name, "type": p.type, "colour": p.colour} for p in asked.history]
            champion = registry.champion_rewriter(config, dataset)
            rule = champion.answer
            given: dict[str, Any] = {"query": asked.query, "history": history}
            if champion.hits:
                [titles] = FirstHits(config, data, parts)([asked])
                given["hits"] = [title[:MAX_FIELD] for title in titles[:MAX_HITS]]
            [text] = champion.rewrite([given])
        except registry.RegistryError as error:
            LOGGER.warning("explaining the query itself (%s)", error)
    name = retriever or config.retrievers.training
    built = parts[name] if name in parts else build_retriever(name, config, data)
    return explanation.explain(config, data, built, request, text, rule)


def export(
    name: str,
    to: str | Path,
    *,
    adapter: bool = False,
    dtype: str = "",
    force: bool = False,
    params: str | Path = PARAMS,
    overrides: Sequence[str] = (),
) -> "Exported":
    """Write a registered policy as a folder of plain weights with model card and recipe.

    ``name``: a data set or model, ``NAME@alias`` or ``NAME@version``; by itself the champion.
    ``adapter``: the adapter alone. ``dtype``: float32 or bfloat16; default: as trained. ``force``:
    replace an earlier export. Returns ``folder``, ``version`` and ``drift``. Raises OspoError.
    """
    from ospo.registry.export import export as write

    config = load_config(params, list(overrides))
    return write(config, name, to, adapter=adapter, dtype=dtype, force=force)
