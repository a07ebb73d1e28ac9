"""The champion's place goes back one step at a time, and killed registrations leave nothing."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from registry_shop import SUMMARY, Shop, make_policy

from ospo import registry, tracking


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Shop(tmp_path)


def champion(shop: Shop) -> int:
    return registry.champion(shop.config, "esci").version


def test_rollback_goes_to_the_champion_before_step_by_step(shop: Shop) -> None:
    for seed in (1, 2, 3):
        shop.register(seed=seed)
        registry.promote(shop.config, "esci", seed)
    assert registry.rollback(shop.config, "esci").version == 2
    assert champion(shop) == 2
    [left] = [item for item in registry.models(shop.config) if item.version == 3]
    assert json.loads(left.tags["decision"])["reason"] == "rolled back to version 2"
    assert registry.rollback(shop.config, "esci").version == 1
    with pytest.raises(registry.RegistryError, match="version 1 is the only champion there was"):
        registry.rollback(shop.config, "esci")
    # Promoted again, it is a new champion with the same one before it.
    registry.promote(shop.config, "esci", 3)
    registry.promote(shop.config, "esci", 2)
    assert registry.rollback(shop.config, "esci").version == 3


def test_tags_tell_the_preset_from_the_algorithm(shop: Shop) -> None:
    version = shop.register("ospo", seed=1)
    assert (version.tags["preset"], version.tags["algorithm"]) == ("nano", "ospo")
    assert "policy" not in version.tags
    assert "Preset `nano`, trained with OSPO" in version.description


def test_a_killed_registration_leaves_no_orphan(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = make_policy(shop.config, shop.folder / "policy", seed=1)
    with tracking.run(shop.config, "ospo", kind="rl", directory=shop.folder / "step") as run:
        pass
    candidate = registry.Candidate("ospo", model_dir, run.id, SUMMARY, data_md5="0" * 32)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.register(shop.config, "esci", candidate)
    models = shop.folder / "mlartifacts"
    [orphan] = models.glob("*/*/artifacts/MLmodel")
    version = registry.register(shop.config, "esci", candidate)
    [kept] = models.glob("*/*/artifacts/MLmodel")
    assert kept != orphan
    registry.policy_directory(shop.config, version)
    other = make_policy(shop.config, shop.folder / "other", seed=2)
    registry.register(
        shop.config, "esci", registry.Candidate("ospo", other, run.id, SUMMARY, data_md5="0")
    )
    assert len(list(models.glob("*/*/artifacts/MLmodel"))) == 2, "versions keep their models"
    registry.policy_directory(shop.config, version)
