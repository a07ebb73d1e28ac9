"""The same step however it is cut up: 1 × 8, 8 × 1 with accumulation, and two processes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MICRO
from training_shop import ROOT, LetterReward, make_policy, small_config, weights

from ospo.config import edit_params
from ospo.data.dataset import PreparedData
from ospo.tracking import Recorder, Run, SilentRun
from ospo.training.callbacks import read_metrics
from ospo.training.rl import train_rl
from ospo.training.run import TrainingRun

# Plain SGD: AdamW divides by the gradient's size, which turns rounding of near-zero gradients into
# steps of full size.
SAME = [
    "presets.nano.rl.optimizer=sgd",
    "presets.nano.rl.learning_rate=0.5",
    "presets.nano.rl.steps=3",
]


@pytest.fixture(scope="module")
def policy(esci_tiny: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(small_config(), esci_tiny, tmp_path_factory.mktemp("policy") / "model")


def close(a: Path, b: Path, start: Path) -> None:
    first, second, before = weights(a / "model"), weights(b / "model"), weights(start)
    moved = max(float((first[key] - before[key]).abs().max()) for key in first)
    apart = max(float((first[key] - second[key]).abs().max()) for key in first)
    assert moved > 1e-4
    assert apart < 1e-3 * moved, (apart, moved)
    rewards = [
        [row["reward"] for row in read_metrics(folder / "metrics.jsonl")] for folder in (a, b)
    ]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-6)


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "grpo_lambda", "ospo"])
def test_one_batch_of_8_equals_8_of_1(
    esci_tiny: PreparedData, policy: Path, tmp_path: Path, algorithm: str
) -> None:
    for name, split in (("whole", []), ("split", ["presets.nano.rl.gradient_accumulation=8"])):
        config = small_config(*SAME, *split)
        train_rl(TrainingRun(config, esci_tiny, tmp_path / name, policy, LetterReward()), algorithm)  # type: ignore[arg-type]
    close(tmp_path / "whole", tmp_path / "split", policy)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from training_shop import LetterReward, small_config
from ospo.data.dataset import load_prepared
from ospo.training.ospo import OSPOTrainer
from ospo.training.rl import train_rl
from ospo.training.run import TrainingRun

# Each process draws its own completions. So that one and two processes can be compared, a token is
# drawn by its completion's place in the whole batch, its position and the step; everything else is
# as it is.
import torch
from accelerate import PartialState

original, draw, now = OSPOTrainer._generate_and_score_completions, torch.multinomial, [0]


def seeded(self, inputs):
    now[0] = 10_000 * (self._step + 1)
    return original(self, inputs)


def by_place(probabilities, num_samples, **_):
    now[0] += 1
    first = PartialState().process_index * len(probabilities)
    generators = [torch.Generator().manual_seed(100 * now[0] + first + i) for i in range(len(probabilities))]
    return torch.stack([draw(row, num_samples, generator=g) for row, g in zip(probabilities, generators)])


OSPOTrainer._generate_and_score_completions, torch.multinomial = seeded, by_place
OSPOTrainer.own_passes = False  # our own decoder does not draw by torch.multinomial

data = load_prepared({prepared!r})
config = small_config(*{overrides!r})
train_rl(TrainingRun(config, data, Path(sys.argv[1]), Path({policy!r}), LetterReward()), "ospo")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_equal_one(esci_tiny: PreparedData, policy: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(
            tests=str(ROOT / "tests"),
            prepared=str(esci_tiny.directory),
            policy=str(policy),
            overrides=SAME,
        )
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    for name, processes in (("one", 1), ("two", 2)):
        launch = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--num_processes",
            str(processes),
        ]
        launch += ["--config_file", str(ROOT / "configs" / "accelerate" / "cpu-2.yaml")]
        launch += ["--main_process_port", str(free_port())]
        done = subprocess.run(
            [*launch, str(script), str(tmp_path / name)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    close(tmp_path / "one", tmp_path / "two", policy)
    arguments = json.loads((tmp_path / "two" / "trainer_args.json").read_text())["trainer"]
    assert arguments["per_device_train_batch_size"] == 4
    first, second = weights(tmp_path / "one" / "model"), weights(tmp_path / "two" / "model")
    assert all(torch.isfinite(value).all() for value in (*first.values(), *second.values()))


def test_a_process_that_records_nothing_takes_what_a_run_takes(tmp_path: Path) -> None:
    """Steps log to either without asking which it is; the type checker holds the signatures."""
    run = SilentRun()  # an abstract method left out would be a TypeError here
    run.log_metrics(1, {"loss": 1.0})
    run.log_table("t.json", [{"a": 1}])
    run.log_artifact(tmp_path / "missing")
    assert run.id == ""
    assert issubclass(Run, Recorder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launchers", [1, 2])
def test_the_command_trains_in_two_processes_as_one_tracked_run(
    esci_tiny: PreparedData, tmp_path: Path, launchers: int
) -> None:
    """docs/scaling.md's command; two launchers are two nodes that see one folder, here on
    one host.
    """
    (tmp_path / "data" / "prepared").mkdir(parents=True)
    shutil.copytree(esci_tiny.directory, tmp_path / "data" / "prepared" / "esci")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    edit_params(MICRO, tmp_path / "params.yaml")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "configs" / "accelerate" / "cpu-2.yaml")]

    def train() -> list[str]:
        """What each launcher printed."""
        shared = [*launch, "--main_process_port", str(free_port())]
        if launchers > 1:
            shared += ["--num_machines", str(launchers), "--main_process_ip", "127.0.0.1"]
        started = [
            subprocess.Popen(
                [
                    *shared,
                    "--machine_rank",
                    str(rank),
                    "-m",
                    "ospo.cli",
                    "train",
                    "--dataset",
                    "esci",
                ],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(launchers)
        ]
        said = [process.communicate(timeout=400) for process in started]
        assert [process.returncode for process in started] == [0] * launchers, said[0][1][-2000:]
        return [stdout for stdout, _ in said]

    assert "".join(train()).count("finished in") == 1
    run = tmp_path / "runs" / "esci" / "ospo"
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2]
    assert json.loads((run / "step.json").read_text())["finished"]
    assert "unchanged since the last run" in train()[0]
