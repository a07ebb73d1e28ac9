"""Every key of params.yaml: changed, the steps that read it get another fingerprint, the others keep
theirs.

The table of expectations below was written from the code that trains and evaluates, not from
``ospo.steps.parameters``.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from ospo.config import ALGORITHMS, Config, load_config
from ospo.steps import algorithm_step, evaluation_step, sft_step
from ospo.steps import real as real_module
from ospo.steps.real import real_step

ONLINE = {"grpo", "dr_grpo", "dapo", "grpo_lambda", "shapley_tokens", "ospo"}
OFFLINE = {"rft", "dpo"}
TRAINING = {"sft"} | ONLINE | OFFLINE
EVALUATIONS = {"evaluation", "real-esci", "real-hm"}
CREDIT = {"shapley_tokens", "ospo"}
EVERY = TRAINING | EVALUATIONS

# Key, or section with a dot at its end → the steps that read it. The longest entry that fits counts.
READERS: dict[str, set[str]] = {
    "seed": EVERY,
    "answer": TRAINING,  # evaluation reads each policy's own kind from its folder
    "context": TRAINING,  # likewise
    "training.": TRAINING,
    "policy": EVERY,
    "algorithms": EVALUATIONS,
    "tracking.": set(),
    "sample.": set(),
    "data.esci.": {"real-esci"},
    "data.hm.": {"real-hm"},
    "data.esci.raw": set(),  # what lies there counts, not where it lies
    "data.hm.raw": set(),
    "data.split.": {"real-esci", "real-hm"},
    "data.pool.": {"real-esci", "real-hm"},
    "retrievers.training": TRAINING | EVALUATIONS,  # SFT looks at validation requests
    "retrievers.dtype": TRAINING | EVALUATIONS,
    "retrievers.unseen": EVALUATIONS,
    "retrievers.flat_up_to": EVALUATIONS,  # searches of whole catalogues
    "retrievers.tantivy.": TRAINING | EVALUATIONS,
    "retrievers.engine.": set(),  # no score depends on how long an engine may take
    "retrievers.engine.query": TRAINING | EVALUATIONS,
    "reward.": TRAINING | EVALUATIONS,
    # Examples of an evaluation show the credit of phrases, but no advantages.
    "credit.segments": {"ospo"} | EVALUATIONS,  # shapley_tokens: always tokens
    "credit.unions": CREDIT | EVALUATIONS,
    "credit.estimator": CREDIT | EVALUATIONS,
    "credit.window": CREDIT | EVALUATIONS,
    "credit.budget": CREDIT | EVALUATIONS,
    "credit.redistribution": {"ospo"},  # shapley_tokens: always to-go
    "credit.alpha": {"ospo"},
    "credit.discount": {"ospo"},
    "credit.clip": {"ospo"},
    "evaluation.": EVALUATIONS,
    "presets.": set(),  # of presets that are not chosen
    "presets.nano.model.": TRAINING,
    "presets.nano.sft.": {"sft"},
    "presets.nano.rft.": {"rft"},
    "presets.nano.dpo.": {"dpo"},
    "presets.nano.rl.": ONLINE,
    "presets.nano.rl.steps": ONLINE | OFFLINE,  # the budget of completions
    "presets.nano.rl.prompts_per_step": ONLINE | OFFLINE,
    "presets.nano.rl.generations": ONLINE | OFFLINE,
    "presets.nano.rl.temperature": ONLINE | OFFLINE | EVALUATIONS,
    "presets.nano.rl.max_prompt_tokens": EVERY,
    "presets.nano.rl.max_completion_tokens": EVERY,
    "presets.nano.rl.checkpoint_every": TRAINING,
    "presets.nano.rl.validation_requests": ONLINE | {"sft"},
    "presets.nano.rl.optimizer": ONLINE | {"dpo"},
    "presets.nano.rl.gradient_checkpointing": ONLINE | {"dpo"},
}


def readers(key: str) -> set[str]:
    """The expected steps. KeyError for a key that the table does not know."""
    fits = [name for name in READERS if key == name or (name[-1] == "." and key.startswith(name))]
    if not fits:
        raise KeyError(f"{key}: say in READERS which steps read it")
    return READERS[max(fits, key=len)]


def keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all parameters; the gains of labels are one."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict) and name != "gains":
            found += keys(value, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def changed(config: Config, key: str) -> Config:
    """``config`` with another value at ``key``; fingerprints are made of values, valid or not."""

    def replaced(section: Any, parts: list[str]) -> Any:
        name, *rest = parts
        if isinstance(section, dict):
            return section | {name: replaced(section[name], rest) if rest else other(section[name])}
        old = getattr(section, name)
        return section.model_copy(update={name: replaced(old, rest) if rest else other(old)})

    def other(value: Any) -> Any:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value + 1
        if isinstance(value, list):
            return [*value, "another"]
        return {**value, "E": 0.9} if isinstance(value, dict) else f"{value}x"

    if key == "policy":
        return config.model_copy(update={"policy": "smollm2-135m"})
    return replaced(config, key.split("."))


@pytest.fixture
def config(workspace: Path) -> Config:
    return load_config(ROOT / "params.yaml")


FILES = {"raw.csv": "0"}
POLICIES = {"sft": "a", "ospo": "b"}


def fingerprints(config: Config) -> dict[str, str]:
    """Step → fingerprint, on the same data and after the same earlier steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydantic, of values that it would refuse
        steps = {
            "sft": sft_step(config, "hm"),
            **{name: algorithm_step(config, "hm", name, sft="0") for name in ALGORITHMS},
            "evaluation": evaluation_step(config, "hm", POLICIES),
            "real-esci": real_step(config, "esci", FILES, POLICIES),
            "real-hm": real_step(config, "hm", FILES, POLICIES),
        }
    return {name: step.fingerprint for name, step in steps.items()}


def test_every_key_changes_exactly_the_steps_that_read_it(config: Config) -> None:
    before = fingerprints(config)
    assert set(before) == EVERY
    assert len(set(before.values())) == len(before)
    wrong = {}
    listed = keys(config.model_dump())
    for key in listed:
        after = fingerprints(changed(config, key))
        found = {name for name in after if after[name] != before[name]}
        if found != readers(key):
            wrong[key] = (
                f"should also change {sorted(readers(key) - found)}, "
                f"should not change {sorted(found - readers(key))}"
            )
    assert not wrong, json.dumps(wrong, indent=1)
    assert len(listed) > 150


def test_fingerprints_cover_what_steps_are_made_from(
    config: Config, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared data, earlier policies, code and libraries, as well as parameters."""
    sft, ospo = sft_step(config, "hm"), algorithm_step(config, "hm", "ospo", sft="0")
    evaluation = evaluation_step(config, "hm", POLICIES)
    assert algorithm_step(config, "hm", "ospo", sft="1").fingerprint != ospo.fingerprint
    other = POLICIES | {"ospo": "c"}
    assert evaluation_step(config, "hm", other).fingerprint != evaluation.fingerprint
    real = real_step(config, "hm", FILES, POLICIES).fingerprint
    assert real_step(config, "hm", FILES, other).fingerprint != real
    assert real_step(config, "hm", {"raw.csv": "1"}, POLICIES).fingerprint != real
    # DVC's lock file knows the data that DVC prepared; `ospo prepare` may have written others since.
    lock = {"stages": {"prepare@hm": {"outs": [{"path": "data/prepared/hm", "md5": "0" * 32}]}}}
    (workspace / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    assert sft_step(config, "hm").fingerprint == sft.fingerprint
    with (workspace / "data/prepared/hm/pools.parquet").open("ab") as stream:
        stream.write(b"x")
    for before, after in (
        (sft, sft_step(config, "hm")),
        (ospo, algorithm_step(config, "hm", "ospo", sft="0")),
        (evaluation, evaluation_step(config, "hm", POLICIES)),
    ):
        assert before.fingerprint != after.fingerprint
    for step in (sft, ospo, evaluation):
        assert any(name.startswith("torch ") for name in step.inputs["libraries"])
        assert len(step.inputs["source"]) == 64


def test_real_rows_count_every_file_that_preparation_reads(
    config: Config, tmp_path: Path, hm_raw: Path
) -> None:
    queries = tmp_path / "queries.jsonl"
    queries.write_text("")
    named = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"hm": config.data.hm.model_copy(update={"queries_file": str(queries)})}
            )
        }
    )
    before = real_module._raw_files(named, "hm", hm_raw)
    assert {"articles.csv", "customers.csv", "transactions_train.csv"} < set(before)
    queries.write_text('{"customer_id": "1", "article_id": "2", "query": "dress"}\n')
    assert real_module._raw_files(named, "hm", hm_raw) != before


def test_the_query_of_a_search_engine_counts_by_its_words(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "query.json"
    engine = config.retrievers.engine.model_copy(update={"query": str(file)})
    named = {"engine": engine, "training": "opensearch:http://127.0.0.1:9200/shop"}
    other = config.model_copy(update={"retrievers": config.retrievers.model_copy(update=named)})
    found = []
    for body in ("{}", '{"query": {}}', "{}"):
        file.write_text(body)
        found.append(fingerprints(other))
    assert found[0] == found[2]
    changed = {name for name in EVERY if found[0][name] != found[1][name]}
    assert changed == TRAINING | EVALUATIONS


def test_recorded_parameters_keep_the_names_of_params_yaml(config: Config) -> None:
    params = algorithm_step(config, "hm", "ospo", sft="0").params
    assert params["rl"]["word_cost"] == config.preset.rl.word_cost
    assert params["credit"] == config.credit.model_dump()
    assert params["retrievers"] == {
        "training": "minilm",
        "dtype": "auto",
        "tantivy": config.retrievers.tantivy.model_dump(),
        "engine": {"query": config.retrievers.engine.query},
    }
    assert set(sft_step(config, "hm").params["rl"]) == {
        "max_prompt_tokens",
        "max_completion_tokens",
        "checkpoint_every",
        "validation_requests",
    }
