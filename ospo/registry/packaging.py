"""A policy made ready for the registry: its files with checksums, its code, its requirements, as an
MLflow model.
"""

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version as package_version
from pathlib import Path

import mlflow

import ospo
from ospo.files import MANIFEST, read_json, verify_manifest, write_json, write_manifest

BUNDLE_BYTES = (
    1 << 30
)  # a base model up to this size travels with its adapter; a larger one is named only
_KEPT = (
    ".json",
    ".safetensors",
    ".jinja",
    ".model",
    ".txt",
)  # what a policy is made of; no pickles among them
_REQUIREMENTS = ("mlflow", "torch", "transformers", "safetensors", "numpy", "pydantic", "PyYAML")
_EXAMPLES = {
    "esci": ["running shoes", "gift for a coffee lover"],
    "hm": [
        "something for the weekend",
        json.dumps(
            {
                "query": "summer top",
                "history": [{"name": "Linen shirt", "type": "Shirt", "colour": "White"}],
            }
        ),
    ],
}


def copy_policy(model_dir: Path, target: Path) -> None:
    """Copy what a policy is made of, bundle a small base model with its adapter, and write the
    checksums.

    Raises InputError where the policy's own checksums say that a file is damaged.
    """
    if (model_dir / MANIFEST).is_file():
        verify_manifest(model_dir)
    for source in sorted(model_dir.rglob("*")):
        if source.is_file() and source.suffix in _KEPT and source.name != MANIFEST:
            to = target / source.relative_to(model_dir)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, to)
    adapter = target / "adapter_config.json"
    if adapter.is_file():
        info = read_json(target / "base.json")
        # Where the base lay on this machine says nothing elsewhere.
        write_json(adapter, read_json(adapter) | {"base_model_name_or_path": info["source"]})
        if info["source"] != "scratch":
            from ospo.policy.weights import base_directory

            base = Path(base_directory(info["source"]))
            files = [path for path in base.rglob("*") if path.is_file() and path.suffix in _KEPT]
            if base.is_dir() and sum(path.stat().st_size for path in files) <= BUNDLE_BYTES:
                for path in files:
                    to = target / "base" / path.relative_to(base)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to)
    write_manifest(target)


def _requirements(adapter: bool) -> list[str]:
    names = [*_REQUIREMENTS, *(["peft"] if adapter else [])]
    return [f"{name}=={package_version(name).partition('+')[0]}" for name in names]


def log_model(
    dataset: str, staged: Path, settings: Mapping[str, int], run_id: str, folder: Path
) -> str:
    """Log the pyfunc with its code, so that it loads where ospo is not installed; returns
    its URI.
    """
    code = folder / "ospo"
    shutil.copytree(
        Path(ospo.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="rewriter",
            python_model=str(
                code / "serving" / "pyfunc.py"
            ),  # the copy: MLflow notes this path in the model
            artifacts={"policy": str(staged)},
            code_paths=[str(code)],
            model_config=dict(settings),
            pip_requirements=_requirements((staged / "adapter_config.json").is_file()),
            input_example=(
                _EXAMPLES[dataset],
                {"max_new_tokens": settings["max_new_tokens"], "temperature": 0.0, "seed": 0},
            ),
        )
    return str(info.model_uri)
