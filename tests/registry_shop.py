"""A model registry in a folder, with tiny policies, for the tests of what is registered, promoted
and served.
"""

import json
import os
from pathlib import Path

import torch
from conftest import ROOT

from ospo import registry, tracking
from ospo.config import Config, load_config
from ospo.policy.weights import create_policy, save_policy

# Tiny matrices: two threads that wait for each other on a busy machine take a hundred times longer
# than one.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

TEXTS = [
    "red cotton shirt",
    "running shoes for men",
    "<answer>blue dress, summer</answer>",
    "linen trousers",
] * 20
SUMMARY = {  # as read from summary.json: keys in alphabetical order
    "grpo": {"bm25": 0.29, "minilm": 0.44},
    "ospo": {"bm25": 0.32, "minilm": 0.45},
    "raw": {"bm25": 0.30, "minilm": 0.40},
    "sft": {"bm25": 0.31, "minilm": 0.42},
}
QUERIES = [
    "running shoes",
    json.dumps(
        {"query": "top", "history": [{"name": "Shirt", "type": "Shirt", "colour": "White"}]}
    ),
    "日本語 e\u0301 🙂",
]


def make_config(folder: Path) -> Config:
    """params.yaml with a registry in ``folder`` and short answers."""
    overrides = [
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        "presets.nano.rl.max_completion_tokens=8",
    ]
    return load_config(ROOT / "params.yaml", overrides)


def make_policy(config: Config, directory: Path, seed: int, **changes: object) -> Path:
    """A random policy of a few thousand weights; ``changes`` are fields of its model section."""
    model = config.presets["nano"].model.model_copy(
        update={"vocab_size": 320, "hidden_size": 32, "layers": 2, "heads": 2, **changes}
    )
    network, tokenizer = create_policy(model, TEXTS, seed)
    if (
        model.lora_rank
    ):  # a fresh adapter changes nothing; an equality test could not see it missing
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    save_policy(network, tokenizer, model, directory)
    return directory


class Shop:
    """A registry in a folder, with a policy registered for each call of ``register``."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, make_config(folder)

    def register(
        self,
        policy: str = "ospo",
        seed: int = 0,
        dataset: str = "esci",
        champion_if_first: bool = True,
        **changes: object,
    ) -> registry.Version:
        """Make a policy of its own for ``seed`` and register it."""
        model_dir = make_policy(
            self.config, self.folder / f"policy-{seed}-{len(changes)}", seed, **changes
        )
        with tracking.run(self.config, policy, kind="rl", directory=self.folder / "step") as run:
            pass
        return registry.register(
            self.config,
            dataset,
            registry.Candidate(
                algorithm=policy,
                model_dir=model_dir,
                run_id=run.id,
                summary=SUMMARY,
                data_md5="0" * 32,
            ),
            champion_if_first=champion_if_first,
            root=ROOT,
        )
