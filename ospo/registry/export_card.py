"""The files that describe an exported policy: model card in the hub's format, Modelfile."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ospo.config import Answer, DataSet
from ospo.paths import SAMPLE
from ospo.policy.prompts import INSTRUCTIONS
from ospo.registry.store import Version

GUARDED = (
    "`ospo rewrite` and serving also have its guard, which keeps the raw query where the policy is "
    "unsure or has nothing to go on; `rewrite.py` answers without it."
)
_SYSTEM, _USER = "OSPO-SYSTEM-PLACE", "OSPO-USER-PLACE"


def hub_card(version: Version, data: DataSet, base: str, drift: float, adapter: bool) -> str:
    """README.md: YAML header, figures with intervals, the recipe, limits, licence.

    data: the data set of params.yaml that it was trained on. base: source of the base model, ""
    where the policy was trained from scratch. drift: of :func:`ospo.policy.merge.merged_policy`.
    adapter: whether the folder holds the adapter alone.
    """
    dataset = version.tags["dataset"]
    header = yaml.safe_dump(
        _header(version, data, base, adapter), sort_keys=False, allow_unicode=True
    )
    if base.startswith("path:"):  # where it lay on one machine says nothing elsewhere
        base = "a local model"
    parts = [f"---\n{header}---", f"# {version.name}, version {version.version}"]
    parts += [version.description, *_intervals(version), "## Use", *_use(version, adapter)]
    licence = (
        "The weights are under Apache-2.0."
        if _licence(data, base) == "apache-2.0"
        else f"The licence of the base model (`{base}`) and that of the data hold for the weights."
        if base
        else "The data's licence holds for these weights."
    )
    parts += ["## Data and licence", f"Trained on {_origin(dataset, data)}. {licence}"]
    if drift:
        parts.append(
            f"The adapter is merged: log-probabilities of its own answers differ from the unmerged "
            f"policy's by {drift:.4f} nats on average."
        )
    return "\n\n".join(parts) + "\n"


def _origin(dataset: str, data: DataSet) -> str:
    """What the data is, in words; a sample shop is no public data set, whatever its format."""
    if Path(data.raw) == SAMPLE / dataset:
        return f"a made-up sample shop in the format of {data.ORIGIN}"
    return data.ORIGIN or f"the data set `{dataset}` of its owner"


def _licence(data: DataSet, base: str) -> str:
    return "other" if base else data.LICENCE


def _header(version: Version, data: DataSet, base: str, adapter: bool) -> dict[str, Any]:
    dataset = version.tags["dataset"]
    header: dict[str, Any] = {
        "license": _licence(data, base),
        "language": [data.spoken] if data.spoken != "other" else [],
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["query-rewriting", "search", "ospo", version.tags["algorithm"]],
    }
    if header["license"] == "other":
        header["license_name"] = "see-data-and-licence"
    kind, _, name = base.partition(":")
    if kind == "hub":
        header["base_model"] = name
    figures = {
        key.partition(".")[2]: float(value)
        for key, value in version.tags.items()
        if key.startswith("ndcg_at_10.")
    }
    metrics = [
        {"type": "ndcg_at_10", "name": f"nDCG@10 ({retriever})", "value": value}
        for retriever, value in sorted(figures.items())
    ]
    result = {
        "task": {"type": "text-generation", "name": "Query rewriting"},
        "dataset": {"type": dataset, "name": data.ORIGIN.partition(",")[0] or dataset},
        "metrics": metrics,
    }
    header["model-index"] = [{"name": version.name, "results": [result]}]
    return header


def _intervals(version: Version) -> list[str]:
    """The comparison that decided on the version, where there was one."""
    decision = json.loads(version.tags.get("decision", "{}"))
    rows: list[str] = []
    named: list[tuple[str, Mapping[str, Any]]] = []
    if rule := decision.get("rule"):
        named.append((f"best rule ({rule['name']})", rule["figures"]))
    if decision.get("figures") and isinstance(decision.get("against"), int):
        named.append((f"version {decision['against']}", decision["figures"]))
    for against, figures in named:
        for retriever, found in figures.items():
            rows.append(
                f"| {against} | {retriever} | {found['difference']:+.4f} | {found['low']:+.4f} to "
                f"{found['high']:+.4f} | {found['p']:.4f} |"
            )
    if not rows:
        return ["No comparison with intervals was made for this version."]
    head = "| against | retriever | nDCG@10 difference | 95 % interval | p |\n|---|---|---|---|---|"
    about = f"Paired by request, {decision.get('requests', '?')} held-out requests:"
    return [about, "\n".join([head, *rows])]


def _use(version: Version, adapter: bool) -> list[str]:
    if adapter:
        return [
            "The adapter alone: `PeftModel.from_pretrained(base, DIR)`, then the prompt and the "
            "clean-up of `ospo_rules.py`."
        ]
    tags = version.tags
    room = int(tags["max_prompt_tokens"]) + int(tags["max_new_tokens"])
    return [
        "The answer alone is not the search text. `rewrite.py` beside the weights goes the whole "
        "way in plain transformers: the request in lower case and without angle brackets in the "
        "chat template, a greedy completion, the text between `<answer>` and `</answer>`, repeats "
        f"and stray punctuation removed (`answer: {tags.get('answer', 'rewrite')}`).",
        '```sh\npython rewrite.py "running shoes"\n```',
        "From other servers the completion comes as it is; `ospo_rules.py` holds what follows:",
        f"```sh\nvllm serve . --served-model-name {version.name} --max-model-len {room}\n"
        f"ollama create {version.name} -f Modelfile\n```",
    ]


def modelfile(tokenizer: Any, answer: Answer, max_new_tokens: int) -> str:
    """A Modelfile for Ollama; its template is the tokenizer's own, written as Ollama writes
    templates.
    """
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if tokenizer.bos_token:  # Ollama writes it itself
        text = text.removeprefix(tokenizer.bos_token)
    template = text.replace(_SYSTEM, "{{ .System }}").replace(_USER, "{{ .Prompt }}")
    lines = ["FROM .", f'TEMPLATE """{template}"""']
    if _SYSTEM in text:
        lines.append(f'SYSTEM """{INSTRUCTIONS[answer]}"""')
    lines += ["PARAMETER temperature 0", f"PARAMETER num_predict {max_new_tokens}"]
    if tokenizer.eos_token:
        lines.append(f"PARAMETER stop {json.dumps(tokenizer.eos_token)}")
    return "\n".join(lines) + "\n"
