"""How figures and text from data are put into words: the same in the page, in markdown and in a
terminal.
"""

import unicodedata
from typing import Any

from ospo.evaluation.analysis import Analysis, Comparison, Control, Guarded
from ospo.evaluation.selection import control_label, guard_label, label
from ospo.evaluation.statistics import Interval

ALPHA = 0.05
CONTROL_SHARE = 0.2  # share of a gain that its control may have without a remark
_DROPPED = {
    "Cc",
    "Cs",
    "Cf",
    "Co",
    "Cn",
}  # control characters, bidirectional overrides, half surrogates, unassigned
_JOINERS = "\u200c\u200d"  # needed inside words of some scripts and emoji: kept


def shown(text: Any, limit: int = 300) -> str:
    """Text from data made printable: one line, at most ``limit`` characters. Escaping is not done
    here.
    """
    kept = (
        c if c in _JOINERS or unicodedata.category(c) not in _DROPPED else " "
        for c in str(text)[: limit * 4]
    )
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, a true minus, and no sign where it rounds to 0."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def interval_text(interval: Interval, digits: int = 3) -> str:
    """``0.123 to 0.234``, with true minuses, and no sign where a bound rounds to 0."""
    low, high = (signed(bound, digits).removeprefix("+") for bound in (interval.low, interval.high))
    return f"{low} to {high}"


def gain_text(gain: Comparison) -> str:
    """A difference in nDCG@10 with its interval: ``+0.023 (95 % interval 0.001 to 0.046)``."""
    return f"{signed(gain.difference.value)} (95 % interval {interval_text(gain.difference)})"


def p_text(p: float) -> str:
    """A p-value to two digits; small ones as a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def percent(value: float) -> str:
    """A share in per cent, with a true minus."""
    return f"{100 * value:.0f} %".replace("-", "−")


def marks(analysis: Analysis, policy: str, retriever: str) -> str:
    """Significance marks of a cell after Holm's correction: ▲/▼ against the raw query, ‡ OSPO above
    GRPO.
    """
    out = ""
    for c in analysis.comparisons:
        if (c.policy, c.retriever) == (policy, retriever) and c.p_holm < ALPHA:
            if c.reference == "raw":
                out += "▲" if c.difference.value > 0 else "▼"
            elif (c.policy, c.reference) == ("ospo", "grpo"):
                out += "‡" if c.difference.value > 0 else "§"
    return out


def find(analysis: Analysis, policy: str, reference: str, retriever: str) -> Comparison | None:
    """The comparison of two policies under a retriever, None where it was not made."""
    wanted = (policy, reference, retriever)
    return next(
        (c for c in analysis.comparisons if (c.policy, c.reference, c.retriever) == wanted), None
    )


def find_control(analysis: Analysis, policy: str, retriever: str) -> Control | None:
    """A policy's control under a retriever, None where it was not evaluated."""
    wanted = (policy, retriever)
    return next((c for c in analysis.controls if (c.policy, c.retriever) == wanted), None)


def find_guard(analysis: Analysis, policy: str, retriever: str) -> Guarded | None:
    """A policy under its guard and a retriever, None where it has no guard."""
    wanted = (policy, retriever)
    return next((g for g in analysis.guards if (g.policy, g.retriever) == wanted), None)


def guard_sentence(guarded: Guarded) -> str:
    """What a policy's guard is worth on test requests."""
    return (
        f"Its guard, chosen on validation requests, uses {percent(guarded.used)} of the answers "
        f"and keeps the raw query for the rest: nDCG@10 {guarded.mean.value:.3f}, which is "
        f"{signed(guarded.change.value)} (95 % interval {interval_text(guarded.change)}) against "
        "using them all."
    )


def control_sentence(control: Control) -> str:
    """What a policy's control says of its gain."""
    text = (
        "Control: given to other requests of the same category, its answers change nDCG@10 by "
        f"{signed(control.gain.value)}, 95 % interval {interval_text(control.gain)}"
    )
    if control.share is None:
        return f"{text}."
    if control.share.value <= 0:
        return f"{text}: none of the gain is left."
    share = f"{text}: {percent(control.share.value)} of the gain"
    if control.share.value < CONTROL_SHARE:
        return f"{share}."
    return f"{share}, which is not of the request but of how the answers look."


def headline(analysis: Analysis) -> list[str]:
    """What the report says first: a heading without figures, then one sentence each on size,
    robustness, GRPO, the control and the guard.
    """
    training, *unseen = analysis.retrievers
    best = label(analysis.best)
    raw, value = (analysis.means[policy][training].value for policy in ("raw", analysis.best))
    gain = find(analysis, analysis.best, "raw", training)
    if gain is None:
        return ["Only the raw query was evaluated", f"nDCG@10 {raw:.3f} on {training}."]
    sure = gain.p_holm < ALPHA
    if not sure:
        heading = f"{best} does not clearly change what the search finds"
    elif gain.difference.value > 0:
        heading = f"{best} finds what shoppers seek better than their own words do"
    else:
        heading = f"{best} makes the search worse than the shoppers' own words"
    sentences = [
        heading,
        f"nDCG@10 goes from {raw:.3f} to {value:.3f} on {training}, the search engine it was "
        "trained with: "
        f"{signed(gain.difference.value)}, 95 % interval {interval_text(gain.difference)}.",
    ]
    others = [
        c
        for c in analysis.comparisons
        if (c.policy, c.reference) == (analysis.best, "raw") and c.retriever in unseen
    ]
    if others:
        better = sum(c.p_holm < ALPHA and c.difference.value > 0 for c in others)
        worse = sum(c.p_holm < ALPHA and c.difference.value < 0 for c in others)
        total = len(others)
        verdicts = [
            f"clearly {word} with {n} of {total}"
            for word, n in (("better", better), ("worse", worse))
            if n
        ]
        verdicts = verdicts or [f"not clearly better or worse with any of {total}"]
        text = f"Under search engines it never saw it is {' and '.join(verdicts)}"
        shares = [
            r.kept.value
            for r in analysis.robustness[analysis.best]
            if r.kept and r.retriever in unseen
        ]
        if shares and sure:
            low, high = percent(min(shares)), percent(max(shares))
            text += f", keeping {low if low == high else f'{low} to {high}'} of that gain"
        sentences.append(text + ".")
    versus = find(analysis, "ospo", "grpo", training)
    if versus:
        verdict = "a clear difference" if versus.p_holm < ALPHA else "no clear difference"
        sentences.append(
            f"OSPO against GRPO under the same budget: {signed(versus.difference.value)}, "
            f"95 % interval {interval_text(versus.difference)}, {verdict}."
        )
    if control := find_control(analysis, analysis.best, training):
        sentences.append(control_sentence(control))
    if guarded := find_guard(analysis, analysis.best, training):
        sentences.append(guard_sentence(guarded))
    return sentences


def _cell(text: str) -> str:
    return shown(text, 40).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def summary_markdown(analysis: Analysis, dataset: str) -> str:
    """The policy × retriever table as markdown, for a flow run's artifact."""
    training = analysis.retrievers[0]
    head = " | ".join(
        f"{_cell(r)} ({'training' if r == training else 'unseen'})" for r in analysis.retrievers
    )
    lines = [
        f"nDCG@10 on {analysis.requests} held-out requests of {dataset}",
        "",
        f"| policy | {head} |",
    ]
    lines.append("|---" * (len(analysis.retrievers) + 1) + "|")
    for policy in analysis.policies:
        cells = (
            f"{analysis.means[policy][r].value:.4f} {marks(analysis, policy, r)}".strip()
            for r in analysis.retrievers
        )
        lines.append(f"| {_cell(label(policy))} | {' | '.join(cells)} |")
    under = [find_guard(analysis, analysis.best, r) for r in analysis.retrievers]
    if all(under):
        means = " | ".join(f"{guarded.mean.value:.4f}" for guarded in under if guarded)
        lines.append(f"| {_cell(guard_label(analysis.best))} | {means} |")
    swapped = [find_control(analysis, analysis.best, r) for r in analysis.retrievers]
    if all(swapped):
        means = " | ".join(f"{control.mean:.4f}" for control in swapped if control)
        lines.append(f"| {_cell(control_label(analysis.best))} | {means} |")
    lines += [
        "",
        "▲▼ above/below the raw query, ‡§ OSPO above/below GRPO: Holm-corrected p < 0.05",
        "",
    ]
    return "\n".join([*lines, *(f"{line}  " for line in headline(analysis))])
