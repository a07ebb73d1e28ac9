"""A GPU's share of the work: training steps, credit and evaluation there, and whether ``paper``
starts.

    python -m benchmarks.gpu [--policy smollm2-135m] [--steps 6] [--parts step,credit,…]

Each part is measured in a process of its own, steps again on the processors of the same machine
(``ratio``), credit and evaluation beside one text at a time. ``share_of_peak`` compares with a
large bfloat16 product, measured first, like the device's copies. Operations are counted: 2 per
parameter and token forward; backward 4 where all weights are trained, 2 where adapters are (the
base has no gradient); tokens are the completions' and one prompt per group. ``paper`` is started
under FSDP 2 in one process, with a small stand-in in place of its 7B model, and with vLLM where
that is installed. Nothing else depends on a GPU; without one the command says so. The last line of
stdout is one JSON object.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import finish, machine, progress, start
from ospo.errors import OspoError

PARTS = ("step", "credit", "evaluation", "paper")
BASELINE = ("step",)  # parts that the processors do too; the others have theirs in themselves
PEAK_SIDE, COPY_BYTES = 8192, 1 << 30
ACCELERATE = "configs/accelerate/gpu-8-fsdp.yaml"


def timed(run: Callable[[], Any], repeats: int = 10) -> float:
    """Median seconds of ``run``, the device's work included, after three runs not counted."""
    import torch

    seconds = []
    for number in range(repeats + 3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number >= 3:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def ceilings() -> dict[str, float]:
    """What the device can do: 1e12 operations per second of a bfloat16 product, and 1e12 bytes per
    second of a copy, reads and writes together.
    """
    import torch

    a, b = (
        torch.randn(PEAK_SIDE, PEAK_SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    source = torch.randint(0, 255, (COPY_BYTES,), device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "tflops": 2 * PEAK_SIDE**3 / timed(lambda: a @ b) / 1e12,
        "copy_tb_per_second": 2 * COPY_BYTES / timed(lambda: target.copy_(source)) / 1e12,
    }


def memory() -> float | None:
    """Most device memory that was taken, in GB; None without a GPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def step(policy: str, steps: int) -> dict[str, Any]:
    """GRPO's and OSPO's steps: median seconds by phase, tokens, operations of the update."""
    from benchmarks.step import PHASES, WARM_UP, settings_of, step_rows, warm_start
    from ospo.policy.generate import Generator
    from ospo.retrieval import build_retriever

    out: dict[str, Any] = {}
    with warm_start(settings_of(policy, steps + WARM_UP, 4), "esci") as (config, data, folder):
        retriever = build_retriever(config.retrievers.training, config, data)
        rl, generator = config.preset.rl, Generator.load(folder / "sft/model", config.preset.model)
        parameters = sum(weights.numel() for weights in generator.model.parameters())
        some = [data.requests[row] for row in data.rows("train")[:64].tolist()]
        prompt = statistics.mean(
            len(generator.render(request, rl.max_prompt_tokens).ids) for request in some
        )
        del generator
        for algorithm in ("grpo", "ospo"):
            sft, place = folder / "sft/model", folder / algorithm
            rows = step_rows(config, data, algorithm, sft, retriever, place)
            seconds = {p: statistics.median(row[f"seconds/{p}"] for row in rows) for p in PHASES}
            count = rl.prompts_per_step * rl.generations
            sampled = count * statistics.mean(row["length"] for row in rows)
            tokens = sampled + rl.prompts_per_step * prompt
            out[algorithm] = {
                "seconds": {phase: round(value, 4) for phase, value in seconds.items()},
                "completions": count,
                "sampled_tokens_per_second": round(sampled / seconds["generate"], 1),
                "updated_tokens_per_second": round(tokens / seconds["update"], 1),
                "operations_per_second": parameters
                * (4 if config.preset.model.lora_rank else 6)
                * tokens
                / seconds["update"],
            }
    rate = 1 / out["ospo"]["seconds"]["step"]
    ratio = round(out["ospo"]["seconds"]["step"] / out["grpo"]["seconds"]["step"], 3)
    return out | {"ospo_over_grpo": ratio, "rate": rate, "memory_gb": memory()}


def credit(policy: str, steps: int) -> dict[str, Any]:
    """Coalitions of made-up completions from an empty cache, and one at a time."""
    from benchmarks.coalitions import coalitions, made_up_completions
    from benchmarks.step import shop
    from ospo.config import load_config
    from ospo.policy.text import search_text
    from ospo.retrieval import build_retriever
    from ospo.retrieval.dense import MiniLMRetriever
    from ospo.reward.search import SearchReward

    config = load_config("params.yaml", ["retrievers.training=minilm"])
    with tempfile.TemporaryDirectory() as name:
        data = shop(config, "esci", Path(name))
        retriever = build_retriever("minilm", config, data)
        assert isinstance(retriever, MiniLMRetriever)
        segmentations, rows = made_up_completions(config, data)
        game = coalitions(config, segmentations, rows, config.credit.budget)
        texts = list(dict.fromkeys(map(search_text, game.texts)))

        def value() -> None:
            retriever.forget()
            SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)(
                game.texts, game.rows
            )

        value()
        seconds = min(_seconds(value) for _ in range(3))
        some = texts[:100]
        retriever.forget()
        alone = _seconds(lambda: [retriever.encode([text]) for text in some]) / len(some)
        together = min(_seconds(lambda: retriever.encode(texts)) for _ in range(3))
    tokens = int(sum(retriever.token_counts(texts)))
    return {
        "coalitions": len(game.texts),
        "ms_per_coalition": round(1e3 * seconds / len(game.texts), 4),
        "texts_per_second": round(len(texts) / together, 1),
        "ratio_one_text_at_a_time": round(alone * len(texts) / together, 1),
        "operations_per_second": tokens * retriever.operations_per_token / together,
        "rate": len(game.texts) / seconds,
        "memory_gb": memory(),
    }


def evaluation(policy: str, steps: int) -> dict[str, Any]:
    """Vectors of a catalogue and greedy answers in batches of 64, and one at a time."""
    from benchmarks.step import settings_of, warm_start
    from ospo.policy.decoding import Decoding
    from ospo.policy.generate import Generator
    from ospo.retrieval import build_retriever
    from ospo.retrieval.dense import MiniLMRetriever

    with warm_start(settings_of(policy, 1, 4), "esci") as (config, data, folder):
        items = data.catalogue["text"].to_list()
        retriever = build_retriever("minilm", config, data)
        assert isinstance(retriever, MiniLMRetriever)
        seconds = min(_seconds(lambda: retriever.encode(items)) for _ in range(2))
        generator = Generator.load(folder / "sft/model", config.preset.model)
        rl = config.preset.rl
        decoding = Decoding(rl.max_completion_tokens)
        rows = data.rows("test")[: 64 * max(1, steps // 2)].tolist()
        prompts = [generator.render(data.requests[row], rl.max_prompt_tokens) for row in rows]
        generator(prompts[:64], decoding)

        def answer(size: int, count: int) -> float:
            return _seconds(
                lambda: [
                    generator(prompts[at : at + size], decoding) for at in range(0, count, size)
                ]
            )

        together = answer(64, len(prompts)) / len(prompts)
        alone = answer(1, 8) / 8
    return {
        "items": len(items),
        "items_per_second": round(len(items) / seconds, 1),
        "answers_per_second": round(1 / together, 1),
        "ratio_one_answer_at_a_time": round(alone / together, 1),
        "rate": 1 / together,
        "memory_gb": memory(),
    }


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def paper(policy: str, steps: int) -> dict[str, Any]:
    """Whether ``paper``'s preset takes two steps of OSPO: under FSDP 2, and with vLLM."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        stand_in(Path(name) / "model")
        for kind in ("fsdp", "vllm"):
            if kind == "vllm" and importlib.util.find_spec("vllm") is None:
                out[kind] = "vLLM is not installed"
                continue
            command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
            if kind == "fsdp":
                command += ["--config_file", ACCELERATE]
            command += ["-m", "benchmarks.gpu", "--work", "paper", "--policy", kind, name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = done.stdout.strip().splitlines()
            if done.returncode or not lines:
                progress(done.stderr[-3000:])
                out[kind] = f"failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}"
            else:
                out[kind] = json.loads(lines[-1])
    return out


def stand_in(directory: Path) -> None:
    """A small Qwen2 with random weights and a tokenizer of its own, with a chat template."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from ospo.config import load_config
    from ospo.policy.weights import create_policy

    words = ["red dress for a beach holiday", "black boots", "linen shirt"] * 50
    _, tokenizer = create_policy(load_config("params.yaml", ["policy=nano"]).preset.model, words, 0)
    torch.manual_seed(0)
    network = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=1024,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            dtype=torch.bfloat16,
        )
    )
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def start_paper(kind: str, folder: Path) -> dict[str, Any]:
    """Two OSPO steps of ``paper`` with the stand-in: what the launched process does."""
    from accelerate import PartialState

    from benchmarks.step import shop
    from ospo.config import load_config
    from ospo.retrieval import build_retriever
    from ospo.reward.search import SearchReward
    from ospo.training.rl import train_rl
    from ospo.training.run import TrainingRun
    from ospo.training.sft import train_sft

    at = "presets.paper."
    config = load_config(
        "params.yaml",
        [
            "policy=paper",
            f"{at}model.source=path:{folder / 'model'}",
            f"{at}model.quantization=none",  # bitsandbytes' weights do not shard under FSDP 2
            f"{at}rl.optimizer=adamw_torch",
            f"{at}rl.use_vllm={'true' if kind == 'vllm' else 'false'}",
            f"{at}rl.steps=2",
            f"{at}rl.warmup=0",
            f"{at}rl.max_completion_tokens=32",
            f"{at}sft.steps=2",
        ],
    )
    data = shop(config, "esci", folder)
    sft = folder / f"sft-{kind}"
    train_sft(TrainingRun(config, data, sft))
    retriever = build_retriever(config.retrievers.training, config, data)
    reward = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
    rows: list[dict[str, float]] = []
    train_rl(
        TrainingRun(
            config,
            data,
            folder / f"ospo-{kind}",
            sft / "model",
            reward,
            on_log=lambda number, metrics: rows.append(metrics),
        ),
        "ospo",
    )
    return {
        "distributed": str(PartialState().distributed_type).rpartition(".")[2],
        "steps": len([row for row in rows if "seconds/step" in row]),
        "policy": (folder / f"ospo-{kind}/model").is_dir(),
        "memory_gb": memory(),
    }


def apart(part: str, policy: str, steps: int, gpu: bool) -> dict[str, Any]:
    """A part's figures from a process of its own, with or without the GPU."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--work", part]
    command += ["--policy", policy, "--steps", str(steps)]
    environment = os.environ | ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"benchmarks.gpu: {part} failed with exit code {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts, and their baselines."""
    peak = ceilings()
    result: dict[str, Any] = {"policy": arguments.policy, "ceilings": peak}
    for part in arguments.parts.split(","):
        progress(f"{part} on the GPU")
        figures = apart(part, arguments.policy, arguments.steps, gpu=True)
        if part in BASELINE:
            progress(f"{part} on the processors: {figures}")
            below = apart(part, arguments.policy, 1, gpu=False)
            figures |= {"ratio": round(figures["rate"] / below["rate"], 1)}
            figures |= {"processors": below}
        for one in (figures, *(figures[name] for name in ("grpo", "ospo") if name in figures)):
            if operations := one.pop("operations_per_second", None):
                one["share_of_peak"] = round(operations / peak["tflops"] / 1e12, 4)
        result[part] = figures
        progress(f"{part}: {json.dumps(figures)}")
    return result


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--work", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work == "paper" and arguments.folder is not None:
        finish(start_paper(arguments.policy, arguments.folder))
        return
    if arguments.work:
        work = {"step": step, "credit": credit, "evaluation": evaluation, "paper": paper}
        finish(work[arguments.work](arguments.policy, arguments.steps))
        return
    import torch

    if not torch.cuda.is_available():
        raise OspoError("benchmarks.gpu: no GPU here. Fix: run it on a machine with one")
    finish(measure(arguments) | machine())


if __name__ == "__main__":
    start(main)
