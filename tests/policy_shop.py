"""Policies with random weights for the tests of what is generated, loaded and refused."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ospo.config import Model
from ospo.files import MANIFEST, read_json, write_json, write_manifest
from ospo.policy.weights import create_policy, save_policy

TINY = Model(source="scratch", vocab_size=400, hidden_size=32, layers=2, heads=2)
TEXTS = ["red linen dress", "blue summer dress", "<answer>red dress, linen</answer>", "café"] * 4
# What a model may ask for in generation_config.json; Qwen2.5-7B-Instruct asks for most of it.
DEFAULTS = {
    "do_sample": True,
    "repetition_penalty": 1.3,
    "temperature": 0.6,
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.2,
    "no_repeat_ngram_size": 2,
}


def sharp(network: Any) -> None:
    """Make random weights larger, so that greedy choices have no near-ties."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)


def write_policy(
    directory: Path, texts: Iterable[str] = TEXTS, seed: int = 0, model: Model = TINY
) -> Path:
    """A scratch policy, saved."""
    network, tokenizer = create_policy(model, texts, seed)
    sharp(network)
    save_policy(network, tokenizer, model, directory)
    return directory


def edit_json(file: Path, **values: Any) -> None:
    """Change keys of a JSON file, and the directory's checksums with it."""
    write_json(file, (read_json(file) if file.is_file() else {}) | values)
    resign(file.parent)


def resign(directory: Path) -> None:
    """Write a directory's checksums again, as one who made the policy elsewhere would."""
    (directory / MANIFEST).unlink(missing_ok=True)
    write_manifest(directory)
