"""The learning benchmark's looks are at the policy that is trained, as it answers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import micro_config

from benchmarks.learning_arm import snapshots
from ospo.policy.kind import read_answer_kind, read_context
from ospo.policy.weights import create_policy, save_policy


@pytest.mark.parametrize("answer", ["expand", "rewrite"])
def test_a_snapshot_says_what_its_answers_are(answer: str, tmp_path: Path) -> None:
    config = micro_config(f"answer={answer}", "context=2", "presets.nano.rl.steps=4")
    model = config.preset.model
    network, tokenizer = create_policy(model, ["red dress"], 0)
    save_policy(network, tokenizer, model, tmp_path / "sft", answer=config.answer)
    looks: list[tuple[int, str, int]] = []

    def look(step: int, directory: Path) -> None:
        looks.append((step, read_answer_kind(directory).kind, read_context(directory)))

    callback: Any = snapshots(tmp_path / "sft", config, 2, tmp_path / "run", look)
    for step in range(1, 5):
        callback.on_step_end(None, SimpleNamespace(global_step=step), None, model=network)
    assert looks == [(2, answer, 2)]
