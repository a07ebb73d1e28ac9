"""What this project's own passes save in an OSPO step on a CPU: sampling by the decoder, the update
by the packed pass, against transformers' and TRL's with shared prompts.

    python -m benchmarks.passes [--policy smollm2-135m] [--dataset esci] [--steps 4] [--repeats 2]

Both train from the same checkpoint at a learning rate of practically zero under the same seed; runs
alternate, and the median step counts. Processor seconds are given beside wall seconds: on a busy
machine only they can be compared. The last line of stdout is one JSON object.
"""

import argparse
import itertools
import statistics
import time
from typing import Any

from benchmarks import finish, machine, progress, start
from benchmarks.step import PHASES, settings_of, warm_start
from ospo.retrieval import build_retriever
from ospo.reward.search import SearchReward
from ospo.training.ospo import OSPOTrainer
from ospo.training.rl import train_rl
from ospo.training.run import TrainingRun

ARMS = {"library": False, "own": True}
WARM_UP = 1  # steps in which kernels, spaCy and caches are set up


def measure(policy: str, dataset: Any, steps: int, repeats: int) -> dict[str, Any]:
    """Median seconds per step by phase and processor seconds per step, by arm; their ratios."""
    spent: dict[str, dict[str, list[float]]] = {
        arm: {phase: [] for phase in (*PHASES, "processor")} for arm in ARMS
    }
    with warm_start(settings_of(policy, steps + WARM_UP, 4), dataset) as (config, data, folder):
        retriever = build_retriever(config.retrievers.training, config, data)
        for repeat, (arm, own) in itertools.product(range(repeats), ARMS.items()):
            OSPOTrainer.own_passes = own
            reward = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
            rows: list[tuple[dict[str, float], float]] = []
            run = TrainingRun(
                config,
                data,
                folder / f"{arm}-{repeat}",
                folder / "sft/model",
                reward,
                on_log=lambda step, metrics, rows=rows: rows.append(  # type: ignore[misc]
                    (metrics, time.process_time())
                ),
            )
            train_rl(run, "ospo")
            for (_, before), (metrics, after) in itertools.pairwise(rows[WARM_UP - 1 :]):
                for phase in PHASES:
                    spent[arm][phase].append(metrics[f"seconds/{phase}"])
                spent[arm]["processor"].append(after - before)
            progress(f"{arm} {repeat}: {spent[arm]}")
    medians = {
        arm: {phase: round(statistics.median(values), 3) for phase, values in phases.items()}
        for arm, phases in spent.items()
    }
    return medians | {
        f"ratio_{phase}": round(medians["library"][phase] / medians["own"][phase], 2)
        for phase in ("step", "generate", "update", "processor")
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", choices=("nano", "smollm2-135m"), default="smollm2-135m")
    parser.add_argument("--dataset", choices=("esci", "hm"), default="esci")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    result = measure(arguments.policy, arguments.dataset, arguments.steps, arguments.repeats)
    finish({"policy": arguments.policy, "dataset": arguments.dataset} | result | machine())


if __name__ == "__main__":
    start(main)
