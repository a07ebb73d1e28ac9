"""Which parameters each step reads: one table, from which fingerprints and recorded parameters are
made.

A name stands for a key of params.yaml or for a whole section; ``preset`` is the chosen preset. A
step whose result or records depend on a parameter must list it here: what is missing leaves a stale
result in place, what is listed and not read repeats work. ``tracking`` and the places of raw files
(``data.*.raw``, whose contents count) are no step's parameters.
"""

from pathlib import Path
from typing import Any

from ospo.config import ALGORITHMS, Config
from ospo.config.retrievers import engine_address
from ospo.files import sha256_file

REAL, FRESH = "real", "fresh"

# Every training step: what an answer is, the preset's weights, how long prompts and answers may be,
# and when checkpoints are written.
_TRAINING = (
    "seed",
    "answer",
    "context",
    "training",
    "policy",
    "preset.model",
    "preset.rl.max_prompt_tokens",
    "preset.rl.max_completion_tokens",
    "preset.rl.checkpoint_every",
)
# What scores a text during training. The size up to which a catalogue is searched exactly is not
# read: training ranks candidate pools. How long an engine may take changes no score.
_REWARD = (
    "reward",
    "retrievers.training",
    "retrievers.dtype",
    "retrievers.tantivy",
    "retrievers.engine.query",
)
_CREDIT = (
    "credit.segments",
    "credit.unions",
    "credit.estimator",
    "credit.window",
    "credit.budget",
)
_REDISTRIBUTION = ("credit.redistribution", "credit.alpha", "credit.discount", "credit.clip")
# The SFT policy's own completions: as many as an online algorithm would sample.
_OFFLINE = (
    "preset.rl.steps",
    "preset.rl.prompts_per_step",
    "preset.rl.generations",
    "preset.rl.temperature",
)
_OWN = {
    "rft": ("preset.rft",),
    "dpo": ("preset.dpo", "preset.rl.optimizer", "preset.rl.gradient_checkpointing"),
}
# Any evaluation: how answers are generated, what scores them, and the credit of its examples. What
# a policy's answers are is written in its folder.
_EVALUATION = (
    "seed",
    "policy",
    "algorithms",
    "preset.rl.max_prompt_tokens",
    "preset.rl.max_completion_tokens",
    "preset.rl.temperature",
    "evaluation",
    "retrievers.unseen",
    "retrievers.flat_up_to",
    *_REWARD,
    *_CREDIT,
)
_PIPELINE = (
    "seed",
    "answer",
    "context",
    "training",
    "policy",
    "algorithms",
    "preset",
    "evaluation",
    "retrievers",
    "reward",
    "credit",
)


def read_keys(step: str, dataset: str, shop: str = "") -> tuple[str, ...]:
    """Keys and sections that ``step`` reads: sft, an algorithm's name, evaluation, real, fresh or
    pipeline. shop: the format whose sample shop the data set may be, "" where it has none.
    """
    preparation = (f"data.{dataset}", "data.split", "data.pool")
    if step == "sft":
        return *_TRAINING, "preset.sft", "preset.rl.validation_requests", *_REWARD
    if step == "evaluation":
        return _EVALUATION
    if step == REAL:
        return *_EVALUATION, *preparation
    if step == FRESH:
        return *_EVALUATION, *preparation, *([f"sample.{shop}"] if shop else [])
    if step == "pipeline":
        return _PIPELINE
    return _algorithm_keys(step)


def _algorithm_keys(algorithm: str) -> tuple[str, ...]:
    spec = ALGORITHMS[algorithm]
    if not spec.online:
        return *_TRAINING, *_REWARD, *_OFFLINE, *_OWN[algorithm]
    keys = [*_TRAINING, "preset.rl", *_REWARD]
    if spec.credit:
        keys += [key for key in _CREDIT if not (key == "credit.segments" and spec.segments)]
        keys += _REDISTRIBUTION if spec.redistribution is None else ()
    return tuple(keys)


def parameters(config: Config, step: str, dataset: str) -> dict[str, Any]:
    """The values that ``step`` reads, nested as in params.yaml, the chosen preset's sections at the
    top: ``{"seed": 0, "model": {…}, "rl": {…}}``.
    """
    values = config.model_dump(exclude={"presets"}) | {"preset": config.preset.model_dump()}
    found: dict[str, Any] = {}
    kind = config.dataset(dataset).format if step in (FRESH, REAL) else ""
    for key in read_keys(step, dataset, kind if kind in values["sample"] else ""):
        value: Any = values
        for part in key.split("."):
            value = value[part]
        if isinstance(value, dict):
            # Where the raw files lie is no parameter: what they hold counts.
            raw = key == f"data.{dataset}"
            value = {name: item for name, item in value.items() if not (raw and name == "raw")}
        _put(found, key.removeprefix("preset."), value)
    if "retrievers.engine.query" in read_keys(step, dataset):
        found["retrievers"]["engine"] |= _query_digest(config)
    return found


def _query_digest(config: Config) -> dict[str, str]:
    """What lies in the file of the engines' query counts, where an engine is named."""
    names = (config.retrievers.training, *config.retrievers.unseen)
    file = Path(config.retrievers.engine.query)
    if not any(map(engine_address, names)) or not file.is_file():
        return {}
    return {"query_sha256": sha256_file(file)}


def _put(found: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        found = found.setdefault(section, {})
    if isinstance(value, dict):
        found.setdefault(name, {}).update(value)
    else:
        found[name] = value
