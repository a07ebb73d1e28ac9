"""Fixtures shared by all tests: real samples where they are at hand, and small shops prepared by
the real path.

Not covered by any fixture: hub models, GPUs, the datasets at full size.
"""

import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

import pytest

from ospo.config import Config, load_config
from ospo.data.catalogue import generate_sample
from ospo.data.dataset import PreparedData, load_prepared
from ospo.data.prepare import prepare

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "sample.esci.queries=60",
    "sample.esci.products=400",
    "sample.hm.customers=60",
    "sample.hm.articles=400",
    "sample.hm.days=60",
    "data.hm.requests_per_customer=1",
    "data.pool.size=40",
    "data.pool.hard=20",
    "data.pool.related=10",
    "data.pool.random=10",
]
# The whole job in seconds: the policy learns nothing; it is the job that is tested.
MICRO = [
    *TINY,
    "presets.nano.model.hidden_size=32",
    "presets.nano.model.layers=1",
    "presets.nano.model.heads=2",
    "presets.nano.model.vocab_size=600",
    "presets.nano.sft.steps=3",
    "presets.nano.sft.batch_size=4",
    "presets.nano.rl.steps=2",
    "presets.nano.rl.prompts_per_step=2",
    "presets.nano.rl.generations=2",
    "presets.nano.rl.max_completion_tokens=8",
    "presets.nano.rl.checkpoint_every=1",
    "presets.nano.rl.collapse_reward=0",  # never stopped, whatever it does
    "presets.nano.rl.collapse_entropy=0",
    "retrievers.training=static",
    "retrievers.unseen=[bm25]",
    "evaluation.max_requests=10",
]


def micro_config(*overrides: str) -> Config:
    """params.yaml as MICRO makes it."""
    return load_config(ROOT / "params.yaml", [*MICRO, *overrides])


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """params.yaml with shops of about 60 requests and 400 items and pools of 40."""
    return load_config(ROOT / "params.yaml", TINY)


def _real_sample(name: str) -> Path:
    folder = Path(os.environ.get("OSPO_SHARED", ROOT.parent / "shared")) / "data" / name
    if not folder.is_dir():
        pytest.skip(f"real sample not found: {folder} (set OSPO_SHARED)")
    return folder


@pytest.fixture(scope="session")
def esci_real() -> Path:
    """Folder of real ESCI rows in the official file names."""
    return _real_sample("esci")


@pytest.fixture(scope="session")
def hm_real() -> Path:
    """Folder of real H&M rows in the official file names."""
    return _real_sample("hm")


def _raw(dataset: str, factory: pytest.TempPathFactory, config: Config) -> Path:
    folder = factory.mktemp("raw") / dataset
    generate_sample(dataset, folder, config.sample, config.seed)
    return folder


@pytest.fixture(scope="session")
def esci_raw(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config) -> Path:
    """Raw files of the tiny ESCI-format shop. Copy before changing anything."""
    return _raw("esci", tmp_path_factory, tiny_config)


@pytest.fixture(scope="session")
def hm_raw(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config) -> Path:
    """Raw files of the tiny H&M-format shop. Copy before changing anything."""
    return _raw("hm", tmp_path_factory, tiny_config)


@pytest.fixture(scope="session")
def esci_tiny(
    tmp_path_factory: pytest.TempPathFactory, esci_raw: Path, tiny_config: Config
) -> PreparedData:
    """The tiny ESCI-format shop, prepared."""
    folder = tmp_path_factory.mktemp("prepared") / "esci"
    prepare("esci", esci_raw, folder, tiny_config)
    return load_prepared(folder)


@pytest.fixture(scope="session")
def hm_tiny(
    tmp_path_factory: pytest.TempPathFactory, hm_raw: Path, tiny_config: Config
) -> PreparedData:
    """The tiny H&M-format shop, prepared."""
    folder = tmp_path_factory.mktemp("prepared") / "hm"
    prepare("hm", hm_raw, folder, tiny_config)
    return load_prepared(folder)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hm_tiny: PreparedData) -> Path:
    """An empty working directory with the tiny H&M-format shop in its place."""
    shutil.copytree(hm_tiny.directory, tmp_path / "data/prepared/hm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path
