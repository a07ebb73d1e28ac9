"""The table that ``make demo`` ends with, and the same figures as JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from ospo.evaluation.analysis import Analysis
from ospo.evaluation.selection import (
    Summary,
    control_label,
    guard_label,
    label,
    ordered,
    reported_policy,
)
from ospo.files import read_json, write_json


def dataset_table(dataset: str, summary: Summary, training: str) -> Table:
    """One dataset's table: one row per policy, one column per retriever, the training one first,
    the best of each bold; below them the control of the policy that registration would take.
    """
    figures = summary["test"]
    retrievers = list(
        dict.fromkeys([training, *(name for row in figures.values() for name in row)])
    )
    table = Table(title=f"{escape(dataset)}: nDCG@10 on held-out requests", title_justify="left")
    table.add_column("policy")
    for name in retrievers:
        seen = "training" if name == training else "unseen"
        table.add_column(f"{escape(name)}\n({seen})", justify="right")
    best = {name: max(row[name] for row in figures.values() if name in row) for name in retrievers}
    for policy in ordered(figures):
        cells = []
        for name in retrievers:
            value = figures[policy].get(name)
            text = "–" if value is None else f"{value:.4f}"
            cells.append(f"[bold]{text}[/bold]" if value == best[name] else text)
        table.add_row(escape(label(policy)), *cells)
    controls = summary.get("control", {})
    policy = reported_policy(summary, training) if controls else ""
    if row := summary.get("guard", {}).get(policy):
        table.add_row(escape(guard_label(policy)), *(f"{row[name]:.4f}" for name in retrievers))
    if row := controls.get(policy):
        table.add_section()
        table.add_row(escape(control_label(policy)), *(f"{row[name]:.4f}" for name in retrievers))
        before = figures["raw"][training]
        gain, swapped = figures[policy][training] - before, row[training] - before
        if gain > 0:
            share = f"{max(0.0, swapped / gain):.0%}".replace("%", " %")
            table.caption = f"the control has {share} of the gain on {escape(training)}"
            table.caption_justify = "left"
    return table


def policy_words(registered: Mapping[str, Any]) -> str:
    """Which policy a registered version is, as :func:`ospo.steps.run_registration` says it."""
    policy = str(registered["policy"])
    if registered["same_as_sft"]:
        return f"{policy} (the SFT policy as it was: training found no better one)"
    return policy


def demo_table(summaries: Mapping[str, Summary], training: str) -> Group:
    """The tables of all datasets, for ``rich``'s console. ``summaries`` is {dataset: summary.json's
    value}.
    """
    return Group(
        *(dataset_table(dataset, summary, training) for dataset, summary in summaries.items())
    )


def comparison_tables(analysis: Analysis) -> Group:
    """What the differences between policies are, one table per reference: the mean difference
    under each retriever with its 95 % interval, and p (Holm-corrected over all of them).
    """
    tables = []
    for reference in dict.fromkeys(c.reference for c in analysis.comparisons):
        table = Table(title=f"against {escape(label(reference))}", title_justify="left")
        table.add_column("policy")
        for name in analysis.retrievers:
            table.add_column(escape(name), justify="right")
        found = {
            (c.policy, c.retriever): c for c in analysis.comparisons if c.reference == reference
        }
        for policy in dict.fromkeys(policy for policy, _ in found):
            cells = []
            for name in analysis.retrievers:
                change, p = found[policy, name].difference, found[policy, name].p_holm
                shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
                cells.append(
                    f"{change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]\n{shown}"
                )
            table.add_row(escape(label(policy)), *(escape(cell) for cell in cells))
        tables.append(table)
    if tables:
        units = f"{analysis.requests:,} requests of {analysis.groups:,} shoppers"
        if analysis.groups == analysis.requests:
            units = f"{analysis.requests:,} requests"
        tables[-1].caption = f"{units}, {analysis.seeds} training seed(s); 95 % intervals"
        tables[-1].caption_justify = "left"
    return Group(*tables)


def write_demo_report(
    path: str | Path,
    summaries: Mapping[str, Summary],
    *,
    registered: Mapping[str, Any],
    seconds: float,
    commit: str,
) -> dict[str, Any]:
    """Write ``{dataset: {policy: {retriever: ndcg_at_10}}}`` with ``registered``, ``seconds`` and
    ``commit``.

    Returns what was written. Raises ValueError for a dataset whose name is one of those keys.
    """
    facts = {"seconds": round(seconds, 1), "commit": commit}
    if clash := {"registered", *facts} & summaries.keys():
        raise ValueError(f"a dataset is called {clash.pop()!r}, which is a key of the report")
    value = _measured(summaries, registered) | facts
    write_json(path, value)
    return value


def holds(
    path: str | Path, summaries: Mapping[str, Summary], registered: Mapping[str, Any]
) -> bool:
    """Whether the report at ``path`` is of these figures and versions."""
    if not Path(path).is_file():
        return False
    found = read_json(path)
    return {k: v for k, v in found.items() if k not in ("seconds", "commit")} == _measured(
        summaries, registered
    )


def _measured(summaries: Mapping[str, Summary], registered: Mapping[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        dataset: {
            policy: {retriever: round(value, 6) for retriever, value in row.items()}
            for policy, row in summary["test"].items()
        }
        for dataset, summary in summaries.items()
    }
    return figures | {"registered": dict(registered)}
