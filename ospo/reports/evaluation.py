"""One self-contained HTML file about one dataset's evaluation, made of evaluation directories
alone.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ospo.errors import InputError
from ospo.evaluation.analysis import Analysis, analyse
from ospo.evaluation.measures import MEASURES
from ospo.evaluation.selection import label, ordered
from ospo.evaluation.slices import SLICES
from ospo.files import atomic_file, read_json
from ospo.metrics import read_metrics
from ospo.paths import RUNS
from ospo.reports.charts import Dot, Line, dot_chart, line_chart, smooth
from ospo.reports.headline import judged, verdict
from ospo.reports.pages import write_page
from ospo.reports.wording import ALPHA, find, kept_text, marks, shown, signed

REPORTS = Path("reports")


def _cards(analysis: Analysis) -> list[dict[str, str]]:
    training, *unseen = analysis.retrievers
    best = analysis.best
    gain = find(analysis, best, "raw", training)
    n = f"n = {analysis.requests:,}"
    cards = [
        {
            "name": f"nDCG@10, {label(best)}",
            "value": f"{analysis.means[best][training].value:.3f}",
            "note": f"raw query {analysis.means['raw'][training].value:.3f}; {n}",
        }
    ]
    if gain:
        total = len(analysis.comparisons)
        note = judged(gain, total).partition(", ")[2] + f"; {n}"
        cards.append(
            {
                "name": "Gain over the raw query",
                "value": signed(gain.difference.value),
                "note": note,
            }
        )
        for entry in analysis.robustness[best]:
            if entry.retriever in unseen:
                kept = (
                    f"keeps {kept_text(entry.kept.value)} of the gain"
                    if entry.kept
                    else "no gain to keep a share of"
                )
                cards.append(
                    {
                        "name": f"Under {entry.retriever}, unseen",
                        "value": signed(entry.gain.value),
                        "note": f"{kept}; {n}",
                    }
                )
    return cards


def _curves(
    details: Mapping[str, Any], directory: Path
) -> tuple[Markup | None, list[dict[str, Any]]]:
    """Learning curves of the policies that kept a log beside their model: chart and a table of a
    few points.

    Of several seeds the mean is drawn, over the steps that all of them logged.
    """
    lines, table = [], []
    order = [name for name in ordered(details["policies"]) if details["policies"][name]["model"]]
    for name in order:
        logs = [
            _log_points(log) for log in _logs(details["policies"][name], directory.parent / name)
        ]
        steps = sorted(set.intersection(*(set(log) for log in logs))) if logs else []
        if len(steps) > 1:
            y = [sum(log[step] for log in logs) / len(logs) for step in steps]
            smoothed = smooth(y, max(1, len(y) // 10))
            lines.append(Line(label(name), steps, smoothed, y, order.index(name)))
            picks = sorted({round(i * (len(steps) - 1) / 4) for i in range(5)})
            table.append(
                {"policy": label(name), "points": [(steps[i], f"{smoothed[i]:.3f}") for i in picks]}
            )
    if not lines:
        return None, []
    description = "; ".join(
        f"{line.name} from {line.y[0]:.3f} at step {line.x[0]} to {line.y[-1]:.3f} at step "
        f"{line.x[-1]}"
        for line in lines
    )
    chart = line_chart(
        "Mean reward of sampled answers during training",
        description,
        lines,
        "step",
        "nDCG (training)",
    )
    return chart, table


def _logs(policy: Mapping[str, Any], run: Path) -> list[list[dict[str, float]]]:
    """Training logs of a policy's seeds: beside each model, or in the run of that name beside the
    evaluation.
    """
    models = [Path(entry["model"]) for entry in policy.get("runs", [policy])]
    if len(models) == 1 and run.is_dir():
        return [read_metrics(run / "metrics.jsonl")]
    return [read_metrics(model.parent / "metrics.jsonl") for model in models]


def _log_points(log: list[dict[str, float]]) -> dict[int, float]:
    return {int(row["step"]): row["ndcg"] for row in log if _finite(row.get("ndcg"))}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _robustness_chart(analysis: Analysis) -> Markup | None:
    learned = [policy for policy in analysis.policies if policy != "raw"]
    if not learned:
        return None
    rows, spoken = [], []
    for e, retriever in enumerate(analysis.retrievers):
        gains = [analysis.robustness[policy][e].gain for policy in learned]
        seen = "training" if e == 0 else "unseen"
        rows.append(
            (f"{retriever} ({seen})", [Dot(g.value, g.low, g.high, s) for s, g in enumerate(gains)])
        )
        each = ", ".join(
            f"{label(p)} {signed(g.value)}" for p, g in zip(learned, gains, strict=True)
        )
        spoken.append(f"{retriever}: {each}")
    return dot_chart(
        "Gain over the raw query under each retriever",
        "; ".join(spoken),
        rows,
        [label(policy) for policy in learned],
        f"nDCG@10 minus the raw query's, 95 % intervals, n = {analysis.requests:,}",
    )


def _slice_tables(analysis: Analysis) -> list[dict[str, Any]]:
    tables = []
    for name, title in SLICES.items():
        parts = [entry for entry in analysis.slices if entry.slice == name]
        if not parts:
            continue
        rows = [
            (
                f"{shown(entry.value, 40)} (n = {entry.requests:,})",
                [Dot(entry.gain.value, entry.gain.low, entry.gain.high)],
            )
            for entry in parts
        ]
        spoken = "; ".join(f"{text}: {signed(dots[0].value)}" for text, dots in rows)
        chart = dot_chart(
            f"{title}: gain of {label(analysis.best)}", spoken, rows, ["gain"], "gain in nDCG@10"
        )
        tables.append({"title": title, "chart": chart, "rows": parts})
    return tables


def _examples(directory: Path, policy: str) -> dict[str, list[dict[str, Any]]]:
    file = directory / "examples.json"
    examples = read_json(file) if file.is_file() else []
    if examples and "lost" not in examples[0]:
        raise InputError(
            file, "lost", "is missing: written by an older version", "run the evaluation again"
        )
    mine = [example for example in examples if example["policy"] == policy]
    return {
        kind: [example for example in mine if example["kind"] == kind]
        for kind in ("improved", "worse")
    }


def _measure_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """Every measure's mean, scope by scope and retriever by retriever."""
    names = {
        "pool": "within candidate pools, greedy answers",
        "catalogue": "over the whole catalogue, greedy answers",
        "sampled": "within candidate pools, sampled answers",
        "swapped": "within candidate pools, answers given to other requests (control)",
    }
    found, tables = analysis.measures, []
    for scope, title in names.items():
        cells = [(r, policy) for r in analysis.retrievers for policy in found.policies(scope)]
        # Recall beyond the pool's size is 1 for everyone: such a column shows nothing.
        columns = [
            name for name in MEASURES if any(found.value(scope, p, r, name) < 1 for r, p in cells)
        ]
        rows = [(r, p, [found.value(scope, p, r, name) for name in columns]) for r, p in cells]
        if cells:
            tables.append({"title": title, "measures": columns, "rows": rows})
    return tables


def _commands(details: Mapping[str, Any]) -> list[str]:
    """What makes the evaluation again: as recorded, or with the policies named where they lie."""
    if details.get("commands"):
        return list(details["commands"])
    dataset = shown(details["dataset"], 60)
    named = [
        f"--policy '{shown(name, 60)}={shown(run['model'], 200)}'"
        for name, policy in details["policies"].items()
        for run in policy.get("runs", [policy])
        if run["model"]
    ]
    out = "--out evaluation"
    return [
        f"ospo evaluate --data data/prepared/{dataset} {' '.join([*named, out])}",
        f"ospo report --evaluation evaluation --out {dataset}.html",
    ]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [
            pair
            for key in sorted(value)
            for pair in _flat(value[key], f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, shown(value, 200))]


def write_report(
    evaluations: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    facts: Mapping[str, str] | None = None,
) -> Analysis:
    """Write the report of one dataset's evaluation (several directories: the same evaluation under
    several seeds).

    facts: lines for the lineage table that an evaluation cannot know, such as the MLflow run or the
    registered model. Returns the analysis that the page shows. Raises InputError for a missing or
    empty evaluation.
    """
    listed = [evaluations] if isinstance(evaluations, str | Path) else list(evaluations)
    directories = [Path(directory) for directory in listed]
    for directory in directories:
        if not (directory / "details.json").is_file():
            raise InputError(
                directory, "", "holds no evaluation (no details.json)", _evaluation_fix(directory)
            )
    analysis = analyse(directories, resamples=resamples, seed=seed)
    values = _values(analysis, directories[0])
    write_page(out, "report.html.j2", **values, facts=dict(facts or {}))
    return analysis


def _evaluation_fix(directory: Path) -> str:
    """The command that writes an evaluation where one is missing."""
    if directory.parent.parent == RUNS:
        return f"run `ospo evaluate --dataset {directory.parent.name}`, then this again"
    return (
        f"run `ospo evaluate --dataset NAME --policy NAME=PATH --out {directory}`, then this again"
    )


def _values(analysis: Analysis, directory: Path) -> dict[str, Any]:
    """What the page's template is filled with."""
    details = read_json(directory / "details.json")
    lineage = details["lineage"]
    curves, curve_table = _curves(details, directory)
    return {
        "analysis": analysis,
        "details": details,
        "verdict": verdict(analysis),
        "cards": _cards(analysis),
        "marks": {
            p: {r: marks(analysis, p, r) for r in analysis.retrievers} for p in analysis.policies
        },
        "curves": curves,
        "curve_table": curve_table,
        "robustness_chart": _robustness_chart(analysis),
        "slices": _slice_tables(analysis),
        "examples": _examples(directory, analysis.best),
        "measure_tables": _measure_rows(analysis),
        "sampled": _sampled(lineage["params"]),
        "counts": {policy: details["answers"][policy] for policy in analysis.policies},
        "data_files": lineage["data"],
        "preparation": _flat(lineage["stats"]),
        "params": _flat(lineage["params"]),
        "packages": _flat(lineage["packages"]) + _flat(lineage["machine"]),
        "commands": _commands(details),
        "alpha": ALPHA,
    }


def _sampled(params: Mapping[str, Any]) -> str:
    """How many answers a point of the learning curves is the mean of; "" where it is not known."""
    rl = params.get("presets", {}).get(params.get("policy"), {}).get("rl", {})
    if not {"prompts_per_step", "generations"} <= rl.keys():
        return ""
    prompts, answers = rl["prompts_per_step"], rl["generations"]
    return f"n = {prompts} requests × {answers} answers per step"


def publish_report(evaluation: Path, name: str) -> Path:
    """Copy the page that an evaluation step wrote beside its tables to ``reports/NAME.html``;
    returns where it is.
    """
    page = REPORTS / f"{name}.html"
    with atomic_file(page) as temporary:
        shutil.copyfile(evaluation / "report.html", temporary)
    return page
