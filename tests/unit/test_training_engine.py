"""Training whose reward is a search engine: it waits for one that is away, and loses nothing where
it stays away. Against the double of tests/engine_double.py.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
from engine_double import Double, Shop, serving
from training_shop import ROOT, make_policy, small_config, weights

from ospo.data.dataset import PreparedData
from ospo.retrieval import build_retriever
from ospo.retrieval import engine as module
from ospo.retrieval.base import RetrieverError
from ospo.reward.search import SearchReward
from ospo.training.callbacks import last_checkpoint
from ospo.training.rl import train_rl
from ospo.training.run import TrainingRun

CONFIG = small_config(
    f"retrievers.engine.query={ROOT / 'configs/engine-query.json'}",
    "retrievers.engine.wait=0.3",
    "presets.nano.rl.checkpoint_every=100",
)


@pytest.fixture
def double(esci_tiny: PreparedData, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.05)
    with serving(Double(Shop(esci_tiny.catalogue))) as running:
        yield running


@pytest.fixture(scope="module")
def policy(esci_tiny: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(CONFIG, esci_tiny, tmp_path_factory.mktemp("policy") / "model")


def train(double: Double, data: PreparedData, policy: Path, out: Path) -> None:
    retriever = build_retriever(f"opensearch:{double.url}/products", CONFIG, data)
    train_rl(
        TrainingRun(CONFIG, data, out, policy, SearchReward(retriever, data, 10, 1000)), "ospo"
    )


def away(double: Double, after: int, times: int) -> None:
    """From the request after the next ``after``, ``times`` requests are answered with HTTP 503."""
    left = [after, times]

    def behave(*_: object) -> tuple[int, str, bytes] | None:
        at = 0 if left[0] else 1
        left[at] -= 1
        return (503, "text/plain", b"no") if at and left[1] >= 0 else None

    double.behave = behave


def test_training_waits_for_an_engine_that_is_away(
    double: Double,
    esci_tiny: PreparedData,
    policy: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(double, esci_tiny, policy, tmp_path / "whole")
    asked = len(double.requests)
    away(double, asked // 2, 3)
    train(double, esci_tiny, policy, tmp_path / "waited")
    assert caplog.text.count("trying again") == 3
    assert caplog.text.count("is back after") == 1
    _same(tmp_path / "whole", tmp_path / "waited")
    # And where it stays away, a checkpoint keeps the steps done, and nothing counts as 0.
    away(double, asked // 2, 10**6)
    with pytest.raises(RetrieverError, match=r"HTTP 503.*checkpoint-\d is taken.*then resumes"):
        train(double, esci_tiny, policy, tmp_path / "stopped")
    assert last_checkpoint(tmp_path / "stopped/checkpoints") is not None
    double.behave = None
    train(double, esci_tiny, policy, tmp_path / "stopped")
    _same(tmp_path / "whole", tmp_path / "stopped")


def _same(one: Path, other: Path) -> None:
    first, second = weights(one / "model"), weights(other / "model")
    assert all(torch.equal(first[key], second[key]) for key in first)
    frames = [pl.read_parquet(folder / "completions.parquet") for folder in (one, other)]
    assert frames[0].equals(frames[1])
    assert frames[0]["reward"].max() > 0
