"""The estimator in the installed verl's own registry, called by verl's own compute_advantage.

verl brings packages that ours must not meet: it gets a virtual environment, which borrows what is
installed here and adds what is not.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = (
    "verl==0.9.1", "tensordict", "pyvers", "ray", "codetiming", "hydra-core", "omegaconf",
    "antlr4-python3-runtime==4.9.3", "orjson", "msgpack", "jsonschema", "torchdata",
)  # fmt: skip
CODE = """
import numpy as np, torch
from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage
import test_integrations_verl as game
from ospo.integrations.verl import phrase_rewards, to_go_advantage

assert get_adv_estimator_fn("ospo_to_go") is to_go_advantage
completions, mask, rewards, credits = game.game(game.ANSWERS)
table = phrase_rewards(completions, credits, rewards, mask.shape[1])
data = DataProto.from_dict(
    tensors={"token_level_rewards": table, "response_mask": mask},
    non_tensors={"uid": game.UIDS},
)
config = AlgoConfig(adv_estimator="ospo_to_go")
out = compute_advantage(data, adv_estimator="ospo_to_go", config=config)
wanted, _ = to_go_advantage(table, mask, game.UIDS)
assert torch.equal(out.batch["advantages"], wanted)
assert (wanted[0] - wanted[0, 0]).abs().max() > 0.01
print("done")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verl") / "env"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    found = folder / "bin" / "python"
    [site] = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [str(found), "-m", "pip", "install", "-q", "--no-deps", *PACKAGES]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=900)
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr[-200:]}")
    return found


@pytest.mark.slow
def test_verl_computes_its_advantages_by_phrase_credit(python: Path) -> None:
    done = subprocess.run(
        [str(python), "-c", CODE],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'unit'}",
            "VERL_USE_EXTERNAL_MODULES": "ospo.integrations.verl_plugin",
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("done")
