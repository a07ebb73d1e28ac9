"""How figures and text from data are put into words: the same in the page, in markdown and in a
terminal.
"""

import unicodedata
from typing import Any

from ospo.evaluation.analysis import Analysis, Comparison, Control, Guarded
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


def kept_text(share: float) -> str:
    """The share of a gain that is kept. Beyond the whole of it or below nothing a percentage says
    no more than that.
    """
    return "all" if share >= 1 else "none" if share <= 0 else percent(share)


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


def guard_sentence(guarded: Guarded, requests: int) -> str:
    """What a policy's guard is worth on so many test requests."""
    return (
        f"Its guard, chosen on validation requests, uses {percent(guarded.used)} of the "
        f"{requests:,} answers and keeps the raw query for the rest: nDCG@10 "
        f"{guarded.mean.value:.3f}, which is {signed(guarded.change.value)} "
        f"(95 % interval {interval_text(guarded.change)}) against using them all."
    )


def control_sentence(control: Control, requests: int) -> str:
    """What a policy's control on so many requests says of its gain."""
    text = (
        f"Control (n = {requests:,}): given to other requests of the same category, its answers "
        f"change nDCG@10 by {signed(control.gain.value)}, "
        f"95 % interval {interval_text(control.gain)}"
    )
    if control.share is None:
        return f"{text}."
    if control.share.value <= 0:
        return f"{text}: none of the gain is left."
    share = f"{text}: {percent(control.share.value)} of the gain"
    if control.share.value < CONTROL_SHARE:
        return f"{share}."
    return f"{share}, which is not of the request but of how the answers look."
