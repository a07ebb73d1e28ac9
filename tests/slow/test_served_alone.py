"""A registered model in a virtual environment made from its logged requirements and nothing else."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import mlflow
import pytest
from registry_shop import ROOT, Shop, make_policy

from ospo import registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
QUERIES = ["red dress", "running shoes"]
PREDICT = """
import importlib.util, json, mlflow
assert importlib.util.find_spec("ospo") is None, "the model must bring its own code"
missing = [name for name in ("polars", "trl", "spacy") if importlib.util.find_spec(name) is None]
assert len(missing) == 3, "the environment holds more than the requirements"
mlflow.set_tracking_uri({uri!r})
print(json.dumps(mlflow.pyfunc.load_model({model!r}).predict({queries!r})))
"""


def requirements(shop: Shop, version: registry.Version) -> Path:
    """The requirements.txt that was logged with a version."""
    mlflow.set_tracking_uri(shop.config.tracking.uri)
    try:
        return Path(mlflow.artifacts.download_artifacts(version.uri)) / "requirements.txt"
    finally:
        mlflow.set_tracking_uri(None)


def install(python: Path, file: Path) -> None:
    """Install requirements, what they pull in as constraints.txt pins it."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["-r", str(file), "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def predict(python: Path, shop: Shop, version: registry.Version, folder: Path) -> list[str]:
    """What the model answers there, run in an empty folder."""
    folder.mkdir()
    code = PREDICT.format(uri=shop.config.tracking.uri, model=version.uri, queries=QUERIES)
    unwanted = ("PYTHONPATH", "MLFLOW_TRACKING_URI", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in unwanted}
    done = subprocess.run(
        [str(python), "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def rewritten(shop: Shop) -> list[str]:
    """What the command ``ospo rewrite`` answers with the champion."""
    command = [sys.executable, "-c", "from ospo.cli import main; main()"]
    command += ["rewrite", "--dataset", "esci", *QUERIES]
    command += ["--params", str(ROOT / "params.yaml")]
    command += ["--set", f"tracking.uri={shop.config.tracking.uri}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_the_logged_requirements_are_all_that_a_model_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shop = Shop(tmp_path)
    version = shop.register()
    python = tmp_path / "alone" / "bin" / "python"
    venv.create(tmp_path / "alone", with_pip=True)
    install(python, requirements(shop, version))
    assert predict(python, shop, version, tmp_path / "full") == rewritten(shop)

    base = make_policy(shop.config, tmp_path / "base-model", seed=5)
    adapter = shop.register(seed=1, source=f"path:{base}", lora_rank=4, lora_alpha=8)
    registry.promote(shop.config, "esci", adapter.version)
    install(python, requirements(shop, adapter))
    expected = rewritten(shop)
    for file in base.iterdir():  # the base travels with the model
        file.unlink()
    assert predict(python, shop, adapter, tmp_path / "adapter") == expected
