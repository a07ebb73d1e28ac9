"""Learning on the shops: what each algorithm makes of the same SFT policy, on held-out requests,
over several seeds.

    python -m benchmarks.learning --dataset hm|esci [--seeds 0,1,2,3,4] [--steps N] [--arm
    NAME=ALGORITHM[:KEY=VALUE,…]]

For each seed: the SFT policy, then each arm from that policy with the same prompts, reward and
budget. Held-out greedy answers are scored (nDCG@10 within pools) under the training retriever and
unseen ones after each quarter of the steps, so arms are compared after equal steps and after equal
wall-clock time (seconds of training alone). Test requests are never trained on. Each online arm
runs at every rate of ``--rates``; the one that ends best on validation requests, on average over
the seeds, is reported. Each arm of each seed is kept under ``.benchmarks/learning`` and not run
again; `--jobs` processes run side by side, one thread each. The last line of stdout is one JSON
object; ``--plot FILE`` writes the learning curves.

Statistics: differences are paired by request and averaged over seeds; the interval resamples seeds
and requests (10,000 times), so it covers the luck of both.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import finish, machine
from benchmarks.jobs import job_key, load_result, run_jobs, save_result, serve

FOLDER = Path(".benchmarks/learning")
UNSEEN = ["bm25", "static", "lsa", "hybrid"]
ARMS = {
    "rft": "rft",
    "dpo": "dpo",
    "grpo": "grpo",
    "grpo-lambda": "grpo_lambda",
    "ospo-prop": "ospo:credit.redistribution=paper-prop",
    "ospo-rank": "ospo:credit.redistribution=paper-rank",
    "ospo": "ospo",
}
QUARTERS = 4
TESTED = 250  # test requests scored at each look
TUNED = 150  # validation requests, which choose between the rates of an arm
RESAMPLES = 10_000


def arm_overrides(spec: str) -> tuple[str, list[str]]:
    """Algorithm and params overrides of an arm ``ALGORITHM[:KEY=VALUE,…]``."""
    algorithm, _, rest = spec.partition(":")
    return algorithm, [part for part in rest.split(",") if part]


def at_rates(name: str, spec: str, rates: list[str]) -> dict[str, str]:
    """Specs of an arm by name, one a learning rate; rft and dpo, which have rates of their own,
    stay as they are.
    """
    algorithm, own = arm_overrides(spec)
    if algorithm in ("rft", "dpo"):
        return {name: spec}
    key = "presets.nano.rl.learning_rate"
    return {f"{name}@{rate}": f"{algorithm}:{','.join([*own, f'{key}={rate}'])}" for rate in rates}


def best_on_validation(
    found: dict[tuple[int, str], Any], seeds: list[int], names: list[str]
) -> str:
    """The name with the highest mean validation score under the training retriever at the end."""
    return max(
        names,
        key=lambda name: np.mean([found[seed, name]["validation"][-1, 0].mean() for seed in seeds]),
    )


# --- one arm of one seed, in a process of its own
# -------------------------------------------------------------------


def run_arm(dataset: str, seed: int, spec: str, overrides: list[str], out: Path, sft: Path) -> None:
    """Train one arm (``spec`` "sft": the SFT policy) and write its result: scores of test answers
    by time.
    """
    import torch

    from ospo.config import load_config
    from ospo.data.dataset import load_prepared
    from ospo.evaluation.completions import rewrite
    from ospo.retrieval import build_retriever
    from ospo.reward.search import SearchReward
    from ospo.training.run import TrainingRun
    from ospo.training.sft import train_sft
    from ospo.training.train import train

    torch.set_num_threads(1)
    algorithm, own = arm_overrides(spec)
    config = load_config("params.yaml", [f"seed={seed}", *overrides, *own])
    data = load_prepared(Path("data/prepared") / dataset)
    tested = len(data.rows("test")[:TESTED])
    rows = np.concatenate([data.rows("test")[:TESTED], data.rows("validation")[:TUNED]])
    names = [config.retrievers.training, *UNSEEN]
    rewards = {
        n: SearchReward(build_retriever(n, config, data), data, config.reward.k, 200_000)
        for n in names
    }
    rl = config.preset.rl

    def scores(model: Path | None) -> tuple[np.ndarray, list[str]]:
        """(retrievers, test and validation requests) scores, and the answers."""
        requests = [data.requests[row] for row in rows.tolist()]
        if model is None:
            answers = [request.query for request in requests]
        else:
            answers = rewrite(
                model,
                requests,
                64,
                max_prompt_tokens=rl.max_prompt_tokens,
                max_new_tokens=rl.max_completion_tokens,
                cache=None,
            )
        return np.stack([rewards[n](answers, rows.tolist()) for n in names]), answers

    if spec == "sft":
        if not (sft / "model").is_dir():
            train_sft(TrainingRun(config, data, sft))
        table, answers = scores(sft / "model")
        both = np.stack([scores(None)[0], table])
        save_result(
            out,
            {"values": both[..., :tested], "validation": both[..., tested:]},
            {"answers": answers[:40]},
        )
        return
    logged: list[dict[str, float]] = []
    shots: list[tuple[int, np.ndarray]] = []
    last: list[str] = []

    def look(step: int, model: Path) -> None:
        table, answers = scores(model)
        shots.append((step, table))
        last[:] = answers[:40]

    reward = SearchReward(
        build_retriever(names[0], config, data), data, config.reward.k, config.reward.cache_texts
    )
    run = out / "run"
    every = max(1, rl.steps // QUARTERS)
    learning = TrainingRun(
        config,
        data,
        run,
        sft / "model",
        reward,
        on_log=lambda step, metrics: logged.append({"step": step} | metrics),
        callbacks=[snapshots(sft / "model", config.preset.model, every, run, look)],
    )
    train(learning, algorithm)
    if not shots or shots[-1][0] != rl.steps:
        look(
            rl.steps, run / "model"
        )  # stopped early, or the last quarter is not a whole number of steps
    save_result(
        out,
        {
            "values": np.stack([table[:, :tested] for _, table in shots]),
            "validation": np.stack([table[:, tested:] for _, table in shots]),
            "steps": np.array([step for step, _ in shots]),
            "seconds": np.array([row["seconds/step"] for row in logged]),
            "train": np.array([row.get("ndcg", np.nan) for row in logged]),
        },
        {"answers": last, "logged": len(logged), "collapsed": (run / "collapse.json").is_file()},
    )


def snapshots(sft: Path, model: Any, every: int, run: Path, look: Any) -> Any:
    """A callback that hands the policy to ``look(step, directory)`` every ``every`` steps."""
    from transformers import AutoTokenizer, TrainerCallback

    from ospo.policy.weights import save_policy

    tokenizer = AutoTokenizer.from_pretrained(sft)

    class Snapshots(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % every == 0:
                network = kwargs["model"]
                was = network.training
                network.eval()
                save_policy(network, tokenizer, model, run / "shot")
                look(state.global_step, run / "shot")
                network.train(was)

    return Snapshots()


# --- all of them, and what they say
# ---------------------------------------------------------------------------------


def paired(differences_SR: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean of (seeds, requests) differences with a 95 % interval that resamples seeds and
    requests.
    """
    rng = np.random.default_rng(seed)
    seeds, requests = differences_SR.shape
    draws = np.empty(RESAMPLES)
    for b in range(RESAMPLES):
        picked_R = differences_SR[rng.integers(0, seeds, seeds)].mean(axis=0)
        draws[b] = picked_R[rng.integers(0, requests, requests)].mean()
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"mean": float(differences_SR.mean()), "low": float(low), "high": float(high)}


def at_seconds(result: Any, seconds: float) -> np.ndarray:
    """(retrievers, requests) test scores after ``seconds`` of training, interpolated between the
    looks.
    """
    spent = np.concatenate([[0.0], np.cumsum(result["seconds"])])
    times = spent[np.minimum(result["steps"], len(spent) - 1)]
    right = int(np.searchsorted(times, seconds))
    if right >= len(times):
        return result["values"][-1]
    left = right - 1
    before = result["start"] if left < 0 else result["values"][left]
    begin = 0.0 if left < 0 else times[left]
    share = (seconds - begin) / (times[right] - begin)
    return (1 - share) * before + share * result["values"][right]


def summary(
    results: dict[tuple[int, str], Any], seeds: list[int], arms: list[str], ours: str
) -> dict[str, Any]:
    """Figures of the finished seeds: means by policy and retriever, and ours against GRPO and the
    raw query.
    """
    names = ["minilm", *UNSEEN]
    final: dict[str, np.ndarray] = {  # (seeds, retrievers, requests)
        "raw": np.stack([results[s, "sft"]["values"][0] for s in seeds]),
        "sft": np.stack([results[s, "sft"]["values"][1] for s in seeds]),
    }
    curves: dict[str, Any] = {}
    for arm in arms:
        final[arm] = np.stack([results[s, arm]["values"][-1] for s in seeds])
        curves[arm] = {
            "steps": results[seeds[0], arm]["steps"].tolist(),
            "test": np.mean(
                [[v[0].mean() for v in results[s, arm]["values"]] for s in seeds], axis=0
            ).tolist()
            if len({len(results[s, arm]["values"]) for s in seeds}) == 1
            else None,
            "seconds_a_step": float(
                np.median(np.concatenate([results[s, arm]["seconds"] for s in seeds]))
            ),
        }
    out: dict[str, Any] = {
        "ndcg": {
            p: dict(zip(names, t.mean(axis=(0, 2)).tolist(), strict=True)) for p, t in final.items()
        },
        "ndcg_by_seed": {p: t[:, 0].mean(axis=1).tolist() for p, t in final.items()},
        "curves": curves,
    }
    if ours in arms and "grpo" in arms:
        out["ours"] = ours
        for other in ("grpo", "raw", "sft"):
            out[f"ours_minus_{other}"] = {
                n: paired(final[ours][:, i] - final[other][:, i]) for i, n in enumerate(names)
            }
        gain = out["ours_minus_raw"]["minilm"]["mean"]
        out["kept"] = {n: out["ours_minus_raw"][n]["mean"] / gain for n in UNSEEN}
        # Equal wall-clock: after as many seconds of training as the faster of the two took for all
        # its steps.
        differences = []
        for s in seeds:
            pair = {}
            for arm in (ours, "grpo"):
                result = dict(results[s, arm]) | {"start": results[s, "sft"]["values"][1]}
                pair[arm] = result
            seconds = min(float(pair[arm]["seconds"].sum()) for arm in pair)
            differences.append(
                at_seconds(pair[ours], seconds)[0] - at_seconds(pair["grpo"], seconds)[0]
            )
        out["ours_minus_grpo_equal_seconds"] = paired(np.stack(differences))
    return out


def svg(figures: dict[str, Any], dataset: str, file: Path) -> None:
    """Test nDCG by step, one line an arm, as a small SVG for documents."""
    width, height, left, bottom = 640, 360, 56, 44
    lines = {a: c for a, c in figures["curves"].items() if c["test"] is not None}
    start, raw = figures["ndcg"]["sft"]["minilm"], figures["ndcg"]["raw"]["minilm"]
    top_step = max(c["steps"][-1] for c in lines.values())
    every = [raw, start, *(v for c in lines.values() for v in c["test"])]
    low, high = min(every) - 0.01, max(every) + 0.01

    def x(step: float) -> float:
        return left + (width - left - 130) * step / top_step

    def y(value: float) -> float:
        return 24 + (height - bottom - 24) * (high - value) / (high - low)

    colours = [
        "#4477aa",
        "#ee6677",
        "#228833",
        "#ccbb44",
        "#66ccee",
        "#aa3377",
        "#222222",
        "#999999",
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" '
        f'font-size="12" role="img"><title>{dataset}: held-out nDCG@10 by training step</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="16">{dataset}: held-out nDCG@10 (MiniLM), mean of '
        f"{len(figures['seeds'])} seeds</text>",
        f'<text x="{(left + width - 130) / 2}" y="{height - 8}">training step</text>',
        f'<line x1="{left}" x2="{width - 130}" y1="{y(raw):.1f}" y2="{y(raw):.1f}" stroke="#888" '
        f'stroke-dasharray="3 3"/><text x="{left + 4}" y="{y(raw) - 4:.1f}" fill="#666">raw '
        "query</text>",
    ]
    for i in range(5):
        value = low + (high - low) * i / 4
        parts.append(f'<text x="8" y="{y(value) + 4:.1f}">{value:.3f}</text>')
        step = round(top_step * i / 4)
        parts.append(f'<text x="{x(step) - 8:.1f}" y="{height - 26}">{step}</text>')
    ends = sorted(lines, key=lambda arm: -lines[arm]["test"][-1])
    for arm, colour in zip(lines, colours * 3, strict=False):
        points = [(0, start), *zip(lines[arm]["steps"], lines[arm]["test"], strict=True)]
        path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points)
        thick = 3 if arm == figures.get("ours") else 1.5
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="{thick}" points="{path}"/>'
        )
        place = 40 + 18 * ends.index(arm)
        parts.append(
            f'<text x="{width - 122}" y="{place}" fill="{colour}">{arm} '
            f"{lines[arm]['test'][-1]:.3f}</text>"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def main() -> None:
    """Run what is missing, then print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=("esci", "hm"), default="esci")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument(
        "--steps", type=int, default=0, help="steps of every arm; default: the preset's"
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=SPEC",
        help="instead of the default arms",
    )
    parser.add_argument(
        "--rates", default="1.5e-4,3.0e-4", help="learning rates that each online arm is tried at"
    )
    parser.add_argument("--ours", default="ospo", help="the arm that is compared with grpo")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of every arm"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="SVG of the learning curves")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(
            lambda j: run_arm(
                j["dataset"], j["seed"], j["spec"], j["overrides"], Path(j["out"]), Path(j["sft"])
            )
        )
        return
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    arms = dict(arm.split("=", 1) for arm in arguments.arm) or ARMS
    tried = {name: at_rates(name, spec, arguments.rates.split(",")) for name, spec in arms.items()}
    overrides = list(arguments.set)
    if arguments.steps:
        overrides += [
            f"presets.nano.{part}.steps={arguments.steps}" for part in ("rl", "rft", "dpo")
        ]
    started = time.perf_counter()
    folder = FOLDER / arguments.dataset
    jobs = []
    for seed in seeds:
        for name, spec in {
            "sft": "sft",
            **{n: s for each in tried.values() for n, s in each.items()},
        }.items():
            settings = [] if name == "sft" else overrides
            key = job_key(spec, settings)
            jobs.append(
                {
                    "dataset": arguments.dataset,
                    "seed": seed,
                    "name": name,
                    "spec": spec,
                    "overrides": settings,
                    "out": str(folder / str(seed) / (name if name == "sft" else f"{name}-{key}")),
                    "sft": str(folder / str(seed) / "policy"),
                }
            )
    # SFT policies first: the arms begin from them.
    run_jobs("benchmarks.learning", [job for job in jobs if job["name"] == "sft"], arguments.jobs)
    run_jobs("benchmarks.learning", [job for job in jobs if job["name"] != "sft"], arguments.jobs)
    found = {(job["seed"], job["name"]): load_result(Path(job["out"])) for job in jobs}
    chosen = {arm: best_on_validation(found, seeds, list(each)) for arm, each in tried.items()}
    results = {
        (seed, arm): found[seed, name]
        for arm, name in {"sft": "sft", **chosen}.items()
        for seed in seeds
    }
    figures = {
        "dataset": arguments.dataset,
        "seeds": seeds,
        "arms": arms,
        "set": overrides,
        "chosen": chosen,
    }
    figures["validation"] = {
        name: float(np.mean([found[seed, name]["validation"][-1, 0].mean() for seed in seeds]))
        for each in tried.values()
        for name in each
    }
    figures |= summary(results, seeds, list(arms), arguments.ours)
    if arguments.plot:
        svg(figures, arguments.dataset, arguments.plot)
    finish(figures | {"seconds": round(time.perf_counter() - started, 1), "machine": machine()})


if __name__ == "__main__":
    main()
