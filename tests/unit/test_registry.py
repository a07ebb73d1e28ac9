"""The champion's place goes back one step at a time, and killed registrations leave nothing."""

import json
import os
import re
import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from registry_shop import SUMMARY, Shop, make_policy

from ospo import registry, tracking
from ospo.errors import InputError
from ospo.files import verify_manifest
from ospo.policy.guard import Guard
from ospo.registry.answer_note import answer_note
from ospo.registry.card import model_card
from ospo.registry.packaging import _requirements, copy_policy


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
    decision = json.loads(left.tags["decision"])
    assert (decision["reason"], decision["by"]) == ("rolled back to version 2", "hand")
    now = registry.champion(shop.config, "esci")
    decision = json.loads(now.tags["decision"])
    assert (decision["reason"], decision["by"]) == ("rolled back to from version 3", "hand")
    assert registry.rollback(shop.config, "esci").version == 1
    with pytest.raises(registry.RegistryError, match="version 1 is the only champion there was"):
        registry.rollback(shop.config, "esci")
    # Promoted again, it is a new champion with the same one before it.
    registry.promote(shop.config, "esci", 3)
    registry.promote(shop.config, "esci", 2)
    assert registry.rollback(shop.config, "esci").version == 3


def test_who_loses_its_place_to_a_hand_promotion_knows_it(shop: Shop) -> None:
    """Else the next run would take it for a champion that was cut off, and put it back."""
    for seed in (1, 2):
        shop.register(seed=seed)
    tested = {"promoted": True, "reason": "better", "evaluation": "e"}
    registry.promote(shop.config, "esci", 1, decision=tested)
    registry.promote(shop.config, "esci", 2)
    [lost] = [item for item in registry.models(shop.config) if item.version == 1]
    decision = json.loads(lost.tags["decision"])
    assert (decision["promoted"], decision["by"]) == (False, "hand")
    registry.promote(shop.config, "esci", 1, decision=tested)
    [lost] = [item for item in registry.models(shop.config) if item.version == 2]
    assert json.loads(lost.tags["decision"])["promoted"], "a test changes no other's decision"


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


def test_a_version_carries_the_page_of_its_evaluation(shop: Shop) -> None:
    page = shop.folder / "report.html"
    page.write_text("<p>figures</p>")
    with tracking.run(shop.config, "ospo", kind="rl", directory=shop.folder / "step") as run:
        pass
    texts = []
    for seed, report in enumerate((page, None, shop.folder / "none.html")):
        policy = make_policy(shop.config, shop.folder / f"policy-{seed}", seed=seed)
        candidate = registry.Candidate("ospo", policy, run.id, SUMMARY, "0" * 32, report=report)
        version = registry.register(shop.config, "esci", candidate)
        files = registry.policy_directory(shop.config, version).parent
        assert {path.name for path in files.iterdir()} - {"policy"} == (
            {"report.html"} if report == page else set()
        )
        if report == page:
            assert (files / "report.html").read_text() == page.read_text()
        texts.append(version.description)
    assert ["artifacts/report.html" in text for text in texts] == [True, False, False]


def test_the_same_files_get_the_figures_of_the_latest_evaluation(shop: Shop) -> None:
    with tracking.run(shop.config, "ospo", kind="rl", directory=shop.folder / "step") as run:
        pass
    policy = make_policy(shop.config, shop.folder / "policy", seed=1)
    first = {"raw": {"minilm": 0.3}, "ospo": {"minilm": 0.4}}
    second = {"raw": {"minilm": 0.2}, "ospo": {"minilm": 0.1}}
    found = [
        registry.register(
            shop.config,
            "esci",
            registry.Candidate("ospo", policy, run.id, summary, "0" * 32, tags={"x": name}),
        )
        for name, summary in (("first", first), ("second", second))
    ]
    assert [item.version for item in found] == [1, 1]
    assert [item.tags["x"] for item in found] == ["first", "second"]
    assert [item.tags["ndcg_at_10.minilm"] for item in found] == ["0.400000", "0.100000"]
    assert [item.tags["raw_ndcg_at_10.minilm"] for item in found] == ["0.300000", "0.200000"]
    assert [bool(answer_note(item, "esci")) for item in found] == [False, True]


def test_figures_of_a_guarded_policy_are_those_that_are_served(shop: Shop) -> None:
    """Worse than the raw query without its guard, better with it."""
    with tracking.run(shop.config, "ospo", kind="rl", directory=shop.folder / "step") as run:
        pass
    policy = make_policy(shop.config, shop.folder / "policy", seed=1)
    summary = {"raw": {"minilm": 0.3}, "ospo": {"minilm": 0.25}}
    candidate = registry.Candidate(
        "ospo", policy, run.id, summary, "0" * 32, guard=Guard(-1.0), guarded={"minilm": 0.35}
    )
    version = registry.register(shop.config, "esci", candidate)
    assert version.tags["ndcg_at_10.minilm"] == "0.350000"
    assert not answer_note(version, "esci")
    assert "Worse than the raw query" not in version.description
    assert "| **OSPO (this)** | 0.2500 |" in version.description
    assert "| **the same under its guard, as it is served** | 0.3500 |" in version.description


def test_a_card_has_the_rules_beside_the_policy(shop: Shop) -> None:
    facts = {"data_md5": "0" * 32, "git_commit": "0" * 40, "git_dirty": "false"}
    rows = ("ospo", "sft", "feedback", "history", "raw", "grpo")
    summary = {name: {"minilm": 0.1 * place} for place, name in enumerate(rows)}
    card = model_card("esci", "ospo", shop.config, summary, facts)
    shown = [line.split("|")[1].strip() for line in card.splitlines() if line.startswith("| ")]
    assert shown[1:] == ["raw query", "rule: history", "rule: feedback", "SFT", "**OSPO (this)**"]


def test_a_card_is_exact_about_where_it_is_worse(shop: Shop) -> None:
    facts = {"data_md5": "0" * 32, "git_commit": "0" * 40, "git_dirty": "false"}
    summary = {
        "raw": {"bm25": 0.30, "minilm": 0.40, "static": 0.20},
        "ospo": {"bm25": 0.30, "minilm": 0.45, "static": 0.19},
    }
    card = model_card("esci", "ospo", shop.config, summary, facts)
    assert "**Worse than the raw query under static.**" in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert rows[0] == "| nDCG@10 | minilm | bm25 | static |", "the training retriever first"
    assert rows[2] == "| raw query | 0.4000 | 0.3000 | 0.2000 |"
    assert rows[3] == "| **OSPO (this)** | 0.4500 | 0.3000 | 0.1900 |"
    better = {"raw": summary["raw"], "ospo": dict.fromkeys(summary["raw"], 0.4)}
    assert "Worse" not in model_card("esci", "ospo", shop.config, better, facts)


def test_decisions_are_added_to_the_card(shop: Shop) -> None:
    card = shop.register(seed=1, champion_if_first=False).description
    for promoted, reason in ((False, "not better"), (True, "better")):
        decision = {"promoted": promoted, "reason": reason}
        if promoted:
            registry.promote(shop.config, "esci", 1, decision=decision)
        else:
            registry.note(shop.config, "esci", 1, decision=decision)
    [version] = registry.models(shop.config)
    assert version.description.startswith(card)
    first, second = version.description.removeprefix(card).strip().split("\n\n")
    assert first.startswith("**Not champion** since ")
    assert first.endswith(": not better.")
    assert second.startswith("**Champion** since ")
    assert second.endswith(": better.")


def test_the_last_whole_champion_steps_in(shop: Shop) -> None:
    for seed in (1, 2, 3):
        shop.register(seed=seed)
        registry.promote(shop.config, "esci", seed)
    folders = {
        v.version: registry.policy_directory(shop.config, v) for v in registry.models(shop.config)
    }
    for number, expected in ((3, 2), (2, 1)):
        (folders[number] / "model.safetensors").write_bytes(b"damaged")
        version, folder = registry.whole_champion(shop.config, "esci")
        assert (version.version, folder) == (expected, folders[expected])


def test_files_of_another_version_are_found_out(shop: Shop) -> None:
    """Whole, with their own manifest, but not those that were registered."""
    first, second = shop.register(seed=1), shop.register(seed=2)
    one, two = (registry.policy_directory(shop.config, v) for v in (first, second))
    for file in one.iterdir():
        shutil.copyfile(two / file.name, file)
    with pytest.raises(InputError, match="differs from version 1's tag policy_sha256"):
        registry.policy_directory(shop.config, first)


def test_versions_are_numbers_newest_first(shop: Shop) -> None:
    tracking.setup(shop.config)
    client = MlflowClient(shop.config.tracking.uri)
    name = registry.model_name("esci")
    client.create_registered_model(name)
    for number in range(11):
        client.create_model_version(name, source=f"file:///nowhere/{number}")
    assert [v.version for v in registry.models(shop.config)] == list(range(11, 0, -1))


def test_a_connection_leaves_mlflow_as_it_was(shop: Shop) -> None:
    before = mlflow.get_tracking_uri()
    assert before != shop.config.tracking.uri
    assert registry.models(shop.config) == []
    assert mlflow.get_tracking_uri() == before
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_what_travels_with_a_policy(shop: Shop) -> None:
    folder = make_policy(shop.config, shop.folder / "policy", seed=1)
    for name in ("pytorch_model.bin", "optimizer.pt", "notes.md", ".cache"):
        (folder / name).write_bytes(b"x")
    (folder / "manifest.json").unlink()
    target = shop.folder / "staged"
    copy_policy(folder, target)
    names = {path.name for path in target.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "manifest.json"} <= names
    assert not names & {"pytorch_model.bin", "optimizer.pt", "notes.md", ".cache"}
    verify_manifest(target)
    for adapter in (False, True):
        listed = _requirements(adapter)
        assert all(re.fullmatch(r"[\w.-]+==\d[\w.]*", line) for line in listed), listed
        assert any(line.startswith("peft==") for line in listed) == adapter
