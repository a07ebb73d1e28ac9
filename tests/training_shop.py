"""What the training tests share: a tiny policy, a reward with known truth, configs that train in
seconds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT

from ospo.config import Config, load_config
from ospo.data.dataset import PreparedData
from ospo.policy.weights import create_policy, save_policy
from ospo.training.teacher import Teacher

SMALL = [
    "presets.nano.model.vocab_size=600",
    "presets.nano.model.hidden_size=32",
    "presets.nano.model.layers=2",
    "presets.nano.model.heads=2",
    "presets.nano.model.autocast=none",
    "presets.nano.sft.steps=4",
    "presets.nano.sft.batch_size=4",
    "presets.nano.rl.steps=4",
    "presets.nano.rl.prompts_per_step=2",
    "presets.nano.rl.generations=4",
    "presets.nano.rl.max_completion_tokens=8",
    "presets.nano.rl.learning_rate=1.0e-3",
    "presets.nano.rl.checkpoint_every=2",
    "presets.nano.rl.validate_every=0",
    "credit.segments=delimiters",
    "answer=rewrite",  # their policies start untrained, and a reward by hand sees the answer alone
]


def small_config(*overrides: str) -> Config:
    """params.yaml with a policy of a few thousand weights and a few short steps."""
    return load_config(ROOT / "params.yaml", [*SMALL, *overrides])


def make_policy(config: Config, data: PreparedData, folder: Path) -> Path:
    """An untrained policy directory with a tokenizer of the dataset's words."""
    teacher = Teacher(data, config.preset.sft.teacher_noise, config.seed)
    network, tokenizer = create_policy(config.preset.model, teacher.tokenizer_texts(), config.seed)
    save_policy(network, tokenizer, config.preset.model, folder, answer=config.answer)
    return folder


class LetterReward:
    """A reward with known truth: the share of an answer's letters that are vowels. A plain callable,
    as users have them.
    """

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """(B,) float64 in [0, 1]."""
        return np.array(
            [sum(c in "aeiou" for c in t) / max(1, len(t)) for t in texts], dtype=np.float64
        )


def weights(folder: Path) -> dict[str, Any]:
    """Tensors of a saved policy."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
