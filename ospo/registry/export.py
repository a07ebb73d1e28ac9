"""Registered policies as plain folders: weights, tokenizer, recipe and model card, for tools that
do not know ospo.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ospo.config import Config
from ospo.errors import InputError
from ospo.files import MANIFEST, atomic_directory, read_json, write_json, write_manifest
from ospo.policy.guard import FILE as GUARD
from ospo.policy.kind import read_context
from ospo.policy.sources import POLICY_SUFFIXES, adapter_base, is_adapter
from ospo.registry.export_card import GUARDED, hub_card, modelfile
from ospo.registry.recipe import recipe_source, rules_source
from ospo.registry.store import (
    CHAMPION,
    RULE_TAG,
    RegistryError,
    Version,
    connect,
    model_name,
    policy_directory,
    versions_fix,
    versions_of,
)

MARK = "ospo_export.json"  # only a folder that holds it is replaced
_NAME = re.compile(r"(?:ospo-rewriter-)?(?P<dataset>[^@]+?)(?:@(?P<which>[\w-]+))?")


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, the version in it, and how far merging moved its
    log-probabilities (nats, 0 where nothing was merged).
    """

    folder: Path
    version: Version
    drift: float


def named_version(config: Config, name: str, root: str | Path = ".") -> Version:
    """The version that NAME[@alias] or NAME[@number] names; without either, the champion.

    NAME: a data set or its registered model. Raises RegistryError, one line, where there is none.
    """
    match = _NAME.fullmatch(name)
    known = config.datasets
    if match is None or match["dataset"] not in known:
        names = ", ".join(model_name(dataset) for dataset in known)
        raise RegistryError(f"{name!r:.80}: no such model. Fix: one of {names}, or NAME@alias")
    dataset, which = match["dataset"], match["which"] or CHAMPION
    with connect(config, root) as client:
        found = versions_of(client, dataset)
    for item in found:
        if which in item.aliases or which == str(item.version):
            return item
    have = ", ".join(f"@{'/'.join(map(str, (v.version, *v.aliases)))}" for v in found) or "none"
    raise RegistryError(
        f"{model_name(dataset)}@{which}: no such version (there are: {have}). Fix: "
        f"{versions_fix(dataset, found)}"
    )


def check_target(folder: Path, force: bool) -> None:
    """Refuse to write where something is; with ``force``, where it is anything but an export."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_dir() and not folder.is_symlink() and (folder / MARK).is_file():
        if force:
            return
        raise InputError(folder, "--to", "exists", "name another folder, or give --force")
    raise InputError(
        folder, "--to", "exists and is no earlier export, which is never replaced",
        "name another folder",
    )  # fmt: skip


def export(
    config: Config,
    name: str,
    to: str | Path,
    *,
    adapter: bool = False,
    dtype: str = "",
    force: bool = False,
    root: str | Path = ".",
) -> Exported:
    """Write the version that ``name`` names to the folder ``to``, whole or not at all.

    adapter: its adapter alone, with the name of its base. dtype: of the weights, "" as trained.
    Raises RegistryError for an unknown version, InputError for a folder that exists (without
    ``force``), a damaged policy, or an adapter that merging would change.
    """
    target = Path(to)
    check_target(target, force)
    version = named_version(config, name, root)
    if rule := version.tags.get(RULE_TAG):
        raise InputError(
            f"{version.name} version {version.version}", "", f"is the rule {rule!r}, no policy",
            "name a version with weights (`ospo models`)",
        )  # fmt: skip
    directory = policy_directory(config, version, root)
    based = is_adapter(directory)
    if adapter and not based:
        raise InputError(
            f"{version.name} version {version.version}", "--adapter", "holds full weights",
            "leave --adapter out",
        )  # fmt: skip
    base = adapter_base(directory)["source"] if based else ""
    with atomic_directory(target) as temporary:
        if adapter:
            drift = 0.0
            _copy_adapter(directory, temporary, base)
        else:
            drift = _write_weights(directory, temporary, version.tags, dtype)
        data = config.dataset(version.tags["dataset"])
        card = hub_card(version, data, base, drift, adapter)
        if (directory / GUARD).is_file():
            card += f"\n{GUARDED}\n"
        _describe(temporary, version, card, base, drift)
        check_target(target, force)  # it may have been made meanwhile
    return Exported(target, version, drift)


def _write_weights(directory: Path, target: Path, tags: Mapping[str, str], dtype: str) -> float:
    """Full weights, tokenizer and generation configuration; the drift of merging."""
    from transformers import GenerationConfig

    from ospo.policy.generate import end_ids
    from ospo.policy.merge import merged_policy

    new = int(tags["max_new_tokens"])
    network, tokenizer, drift = merged_policy(directory, int(tags["max_prompt_tokens"]), dtype)
    network.generation_config = GenerationConfig(
        bos_token_id=network.generation_config.bos_token_id,
        eos_token_id=sorted(end_ids(network, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=new,
    )
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
    answer: Any = tags.get("answer", "rewrite")
    (target / "Modelfile").write_text(modelfile(tokenizer, answer, new), encoding="utf-8")
    hits = read_context(directory)
    code = recipe_source(answer, int(tags["max_prompt_tokens"]), new, hits)
    (target / "rewrite.py").write_text(code, encoding="utf-8")
    return drift


def _copy_adapter(directory: Path, target: Path, base: str) -> None:
    """The adapter and its tokenizer, without a bundled base; the base by its name on the hub."""
    for file in sorted(directory.iterdir()):
        if file.is_file() and file.suffix in POLICY_SUFFIXES and file.name != MANIFEST:
            shutil.copyfile(file, target / file.name)
    config = target / "adapter_config.json"
    kind, _, name = base.partition(":")
    plain = name if kind == "hub" else base
    write_json(config, read_json(config) | {"base_model_name_or_path": plain})


def _describe(target: Path, version: Version, card: str, base: str, drift: float) -> None:
    """Model card, rules, the mark of an export and checksums."""
    (target / "README.md").write_text(card, encoding="utf-8")
    (target / "ospo_rules.py").write_text(rules_source(), encoding="utf-8")
    write_json(
        target / MARK,
        {"model": version.name, "version": version.version, "base": base, "drift": drift,
         "answer": version.tags.get("answer", "rewrite"),
         "policy_sha256": version.tags["policy_sha256"]},
    )  # fmt: skip
    write_manifest(target)
