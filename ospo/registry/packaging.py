"""A policy made ready for the registry: its files with checksums, the code and requirements
that answering takes, as an MLflow model.
"""

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version as package_version
from pathlib import Path

import mlflow

import ospo
from ospo.files import MANIFEST, read_json, verify_manifest, write_json, write_manifest
from ospo.policy.sources import (
    BASE_FOLDER,
    POLICY_SUFFIXES,
    adapter_base,
    base_directory,
    base_is_bundled,
    is_adapter,
)

# A base model up to this size travels with its adapter; a larger one is named only.
BUNDLE_BYTES = 1 << 30
# What ospo.serving imports, directly and below it: this much of ospo travels with a model.
_CODE = (
    "__init__.py",
    "errors.py",
    "files.py",
    "hosts.py",
    "paths.py",
    "config",
    "data/__init__.py",
    "data/request.py",
    "policy",
    "serving",
)
_REQUIREMENTS = (
    "huggingface_hub",
    "jinja2",  # chat templates; transformers does not ask for it
    "mlflow",
    "numpy",
    "pydantic",
    "PyYAML",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
_EXAMPLE = [
    "running shoes",
    json.dumps(
        {
            "query": "summer top",
            "history": [{"name": "Linen shirt", "type": "Shirt", "colour": "White"}],
        }
    ),
]


def copy_policy(model_dir: Path, target: Path) -> None:
    """Copy what a policy consists of, bundle a small base model with its adapter, and write the
    checksums.

    Raises InputError where the policy's own checksums say that a file is damaged.
    """
    if (model_dir / MANIFEST).is_file():
        verify_manifest(model_dir)
    for source in sorted(model_dir.rglob("*")):
        if _belongs(source):
            to = target / source.relative_to(model_dir)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, to)
    if is_adapter(target) and not base_is_bundled(target):
        info = adapter_base(target)
        # Where the base lay on this machine says nothing elsewhere.
        config = target / "adapter_config.json"
        write_json(config, read_json(config) | {"base_model_name_or_path": info["source"]})
        base = base_directory(info["source"])
        files = [path for path in sorted(base.iterdir()) if _belongs(path)]
        if sum(path.stat().st_size for path in files) <= BUNDLE_BYTES:
            (target / BASE_FOLDER).mkdir()
            for path in files:
                shutil.copyfile(path, target / BASE_FOLDER / path.name)
    write_manifest(target)


def _belongs(file: Path) -> bool:
    """Whether a file is part of a policy: no pickles, no checksums, nothing that training left."""
    return file.is_file() and file.suffix in POLICY_SUFFIXES and file.name != MANIFEST


def _requirements(adapter: bool) -> list[str]:
    names = [*_REQUIREMENTS, *(["peft"] if adapter else [])]
    return [f"{name}=={package_version(name).partition('+')[0]}" for name in names]


def copy_code(target: Path) -> None:
    """Copy the part of ospo that a served model needs: no data libraries, no retrieval, no
    trainer.
    """
    package = Path(ospo.__file__).parent
    for name in _CODE:
        source, to = package / name, target / name
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copyfile(source, to)


def log_model(
    staged: Path,
    settings: Mapping[str, int | str],
    run_id: str,
    folder: Path,
    report: Path | None = None,
) -> str:
    """Log the pyfunc with its code, so that it loads where ospo is not installed, and the page of
    its evaluation beside the policy, where there is one; returns its URI.
    """
    page = {"report": str(report)} if report is not None and report.is_file() else {}
    code = folder / "ospo"
    copy_code(code)
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="rewriter",
            python_model=str(
                code / "serving" / "pyfunc.py"
            ),  # the copy: MLflow notes this path in the model
            artifacts={"policy": str(staged), **page},
            code_paths=[str(code)],
            model_config=dict(settings),
            pip_requirements=_requirements((staged / "adapter_config.json").is_file()),
            input_example=(
                _EXAMPLE,
                {"max_new_tokens": settings["max_new_tokens"], "temperature": 0.0, "seed": 0},
            ),
        )
    return str(info.model_uri)
