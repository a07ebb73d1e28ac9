"""What an MLflow run says of itself: its description (what, on which data, the headline figure with
its interval), and the figures that a table of runs is sorted by.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ospo import tracking
from ospo.config import Config
from ospo.evaluation.analysis import Analysis
from ospo.evaluation.selection import label
from ospo.evaluation.statistics import Interval
from ospo.files import read_json
from ospo.metrics import read_metrics
from ospo.paths import PREPARED, RUNS
from ospo.reports.headline import markdown_headline
from ospo.reports.wording import find, gain_text, interval_text
from ospo.steps.step import read_state

NOTE = "note.md"  # beside a policy: how its run begins its description
FINAL = "final/"  # metrics: means of the last tenth of a training run
_SHOWN = (("ndcg", "nDCG@10 of sampled answers to training requests"), ("loss", "loss"))
_Z = 1.96  # of a 95 % interval


def about(what: str, dataset: str, config: Config) -> str:
    """How a run's description begins: what it is, on which data, with which preset."""
    return f"**{what}** on {data_text(dataset)}; preset `{config.policy}`."


def data_text(dataset: str) -> str:
    """A prepared data set with its sizes: ``**hm** (train 36, validation 7, test 17 requests; 400
    products)``.
    """
    stats = PREPARED / dataset / "stats.json"
    kept = read_json(stats).get("kept", {}) if stats.is_file() else {}
    parts = [f"{name} {kept[name]:,}" for name in ("train", "validation", "test") if name in kept]
    sizes = f"{', '.join(parts)} requests" if parts else ""
    items = f"{kept['items']:,} products" if "items" in kept else ""
    said = "; ".join(part for part in (sizes, items) if part)
    return f"**{dataset}** ({said})" if said else f"**{dataset}**"


def last_tenth(log: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """Mean of each metric over the last tenth of the steps that have it (one at least), with a 95 %
    normal interval over these steps; values that are not finite are left out.
    """
    values: dict[str, list[float]] = {}
    for row in log:
        for key, value in row.items():
            if key != "step" and math.isfinite(value):
                values.setdefault(key, []).append(value)
    found = {}
    for key, series in values.items():
        last = np.asarray(series[-math.ceil(len(series) / 10) :])
        mean = float(last.mean())
        half = _Z * float(last.std(ddof=1)) / math.sqrt(len(last)) if len(last) > 1 else math.nan
        found[key] = Interval(mean, mean - half, mean + half)
    return found


def log_training(run: tracking.Recorder, directory: Path, beginning: str) -> None:
    """Record how a training run ended: ``final/…`` and the description, whose beginning is kept in
    ``note.md`` for what its evaluation adds.
    """
    log = read_metrics(directory / "metrics.jsonl")
    final = last_tenth(log)
    if final:
        means = {tracking.record_name(FINAL + key): found.value for key, found in final.items()}
        run.log_metrics(int(log[-1]["step"]), means)
    text = beginning
    shown = next(((key, name) for key, name in _SHOWN if key in final), None)
    if shown:
        found, steps = final[shown[0]], sum(shown[0] in row for row in log)
        text += f"\n\nAt the end of training (mean of the last {math.ceil(steps / 10)} of {steps} "
        text += f"steps), {shown[1]}: **{found.value:.3f}**"
        text += f", 95 % interval {interval_text(found)}" if math.isfinite(found.low) else ""
        text += "."
    (directory / NOTE).write_text(text, encoding="utf-8")
    run.describe(text)


def evaluated(config: Config, dataset: str, directory: Path, analysis: Analysis) -> None:
    """Add an evaluation's figures to the runs that trained its policies: nDCG@10 by retriever as
    ``evaluation/<retriever>/ndcg_at_10``, and the gain with its interval in the description.
    """
    for policy in analysis.policies:
        folder = RUNS / dataset / policy
        run_id = read_state(folder).get("run_id")
        if not run_id:
            continue
        means = analysis.means[policy]
        names = {r: tracking.record_name(f"evaluation/{r}/ndcg_at_10") for r in means}
        before = folder / NOTE
        text = before.read_text(encoding="utf-8") if before.is_file() else f"**{label(policy)}**"
        tracking.amend(
            config,
            run_id,
            directory=directory,
            metrics={names[r]: mean.value for r, mean in means.items()},
            note=f"{text}\n\n{evaluation_text(analysis, policy)}",
        )


def evaluation_text(analysis: Analysis, policy: str) -> str:
    """A policy's nDCG@10 on held-out requests under the training retriever, with its interval, and
    its gain over the raw query.
    """
    training = analysis.retrievers[0]
    mean, gain = analysis.means[policy][training], find(analysis, policy, "raw", training)
    text = (
        f"On {analysis.requests:,} held-out requests under {training}, nDCG@10: "
        f"**{mean.value:.3f}**, 95 % interval {interval_text(mean)}"
    )
    return f"{text}; over the raw query {gain_text(gain)}." if gain else f"{text}."


def describe_evaluation(run: tracking.Recorder, beginning: str, analysis: Analysis) -> None:
    """The description of an evaluation's run: what it is of, and its report's first words."""
    run.describe("\n\n".join([beginning, *markdown_headline(analysis)]))


def pipeline_note(config: Config, dataset: str, beginning: str) -> str:
    """The description of a finished pipeline's run: the evaluation's words, and links to the
    comparison of its RL policies, to its steps and to the report.
    """
    states = {
        name: str(read_state(RUNS / dataset / name).get("run_id", ""))
        for name in (*config.policies, "evaluation")
    }
    places = tracking.places(config, states)
    compared = [places[name] for name in config.algorithms if name in places]
    links = []
    if len(compared) > 1:
        asked = {"runs": [p.run for p in compared], "experiments": [compared[0].experiment]}
        query = "&".join(f"{key}={quote(json.dumps(ids))}" for key, ids in asked.items())
        query += f"&{tracking.TRAINING_VIEW}"
        named = " and ".join(label(name) for name in config.algorithms if name in places)
        links.append(f"[Compare {named}](#/compare-runs?{query})")
    if "evaluation" in places:
        links.append(f"[Report]({places['evaluation'].report})")
    links += [f"[{label(name)}]({place.link})" for name, place in places.items()]
    words = RUNS / dataset / "evaluation" / "summary.md"
    summary = [words.read_text(encoding="utf-8")] if words.is_file() else []
    # Links first: MLflow folds a long description.
    return "\n\n".join([beginning, *([" · ".join(links)] if links else []), *summary])
