"""What a report says first, in the words of somebody who decides: is it better, for whom, how sure,
what to do next. Every figure names its n.
"""

from dataclasses import dataclass

from ospo.evaluation.analysis import Analysis, Comparison, Slice
from ospo.evaluation.selection import control_label, guard_label, label
from ospo.evaluation.slices import OTHERS, SLICES
from ospo.policy.rules import RULES
from ospo.reports.wording import (
    ALPHA,
    control_sentence,
    find,
    find_control,
    find_guard,
    guard_sentence,
    interval_text,
    kept_text,
    marks,
    p_text,
    shown,
    signed,
)

GROUP = 20  # requests; of fewer a gain is an anecdote
FEW_SEEDS = 5  # with fewer, an interval over training runs is rough
QUESTIONS = ("Is it better?", "For whom?", "How sure?", "What next?")


@dataclass(frozen=True)
class Verdict:
    """A heading without figures but the sample's size, and an answer to each of ``QUESTIONS``."""

    heading: str
    answers: tuple[str, ...]

    def pairs(self) -> list[tuple[str, str]]:
        """Each question with its answer."""
        return list(zip(QUESTIONS, self.answers, strict=True))


def headline(analysis: Analysis) -> list[str]:
    """The verdict as lines: its heading, then each question with its answer."""
    found = verdict(analysis)
    return [found.heading, *(f"{question} {answer}" for question, answer in found.pairs())]


def verdict(analysis: Analysis) -> Verdict:
    """What the report is about, the policy chosen on validation requests, against the raw query."""
    gain = find(analysis, analysis.best, "raw", analysis.retrievers[0])
    if gain is None:
        training = analysis.retrievers[0]
        raw = analysis.means["raw"][training].value
        size = f"nDCG@10 {raw:.3f} on {training}, n = {analysis.requests:,} requests."
        nothing = "Nothing to compare with."
        return Verdict(
            "Only the raw query was evaluated",
            (size, nothing, nothing, "Train a policy: `ospo train`."),
        )
    return Verdict(
        f"{_claim(analysis, gain)} ({_size(analysis)})",
        (
            " ".join(_better(analysis, gain)),
            _for_whom(analysis),
            " ".join(_how_sure(analysis, gain)),
            " ".join(_next(analysis, gain)),
        ),
    )


def clearly(comparison: Comparison | None) -> int:
    """1 or -1 where a policy is clearly above or below its reference after the correction for all
    comparisons of the report, else 0.
    """
    if comparison is None or comparison.p_holm >= ALPHA:
        return 0
    return 1 if comparison.difference.value > 0 else -1


def judged(comparison: Comparison, total: int) -> str:
    """A difference with what decides whether it is clear: its interval where that says the same as
    the corrected test, otherwise the corrected test alone: two corrections in one sentence would
    contradict each other.
    """
    difference = comparison.difference
    apart = difference.low > 0 or difference.high < 0
    if apart == (comparison.p_holm < ALPHA):
        return f"{signed(difference.value)}, 95 % interval {interval_text(difference)}"
    p = p_text(comparison.p_holm)
    p = p if p.startswith("<") else f"= {p}"
    return f"{signed(difference.value)}, p {p} corrected for {total} comparisons"


def equal_to_sft(analysis: Analysis) -> list[str]:
    """The retrievers under which the reported policy is not clearly better than SFT, from which its
    training began; none where SFT was not evaluated.
    """
    found = [find(analysis, analysis.best, "sft", r) for r in analysis.retrievers]
    return [c.retriever for c in found if c and clearly(c) < 1]


def _claim(analysis: Analysis, gain: Comparison) -> str:
    """The heading without its size: credit only where it is due."""
    who, equal = _who(analysis), equal_to_sft(analysis)
    often = "the right products {} often than the raw queries"
    if clearly(gain) < 0:
        return f"{who}'s rewrites find {often.format('less')}"
    if clearly(gain) == 0:
        return f"It is not clear that {who}'s rewrites find {often.format('more')}"
    if analysis.retrievers[0] in equal:
        claim = f"The rewrites find {often.format('more')}"
        return f"{claim}, but {who} is not clearly better at it than SFT"
    claim = f"{who}'s rewrites find {often.format('more')}"
    if equal:
        return f"{claim}, but under {_listed(equal)} SFT is its equal"
    return claim


def _who(analysis: Analysis) -> str:
    return shown(label(analysis.best), 40)


def _listed(names: list[str]) -> str:
    plain = [shown(name, 40) for name in names]
    return " and ".join(filter(None, [", ".join(plain[:-1]), plain[-1]]))


def _size(analysis: Analysis) -> str:
    """``240 requests, one training run``; rules are not trained."""
    requests = f"{analysis.requests:,} requests"
    if analysis.best in RULES:
        return requests
    if analysis.seeds == 1:
        return f"{requests}, one training run"
    only = "only " if analysis.seeds < FEW_SEEDS else ""
    return f"{requests}, {only}{analysis.seeds} training runs"


def _better(analysis: Analysis, gain: Comparison) -> list[str]:
    """Size of the gain, other search engines, and what is not OSPO's merit."""
    training, *unseen = analysis.retrievers
    raw, value = (analysis.means[policy][training].value for policy in ("raw", analysis.best))
    n = f"n = {analysis.requests:,} requests"
    short = {1: "Yes:", 0: "That is not clear:", -1: "No:"}[clearly(gain)]
    sentences = [
        f"{short} nDCG@10 goes from {raw:.3f} to {value:.3f} under {training}, the search engine "
        f"it was trained with ({n})."
    ]
    others = [c for r in unseen if (c := find(analysis, analysis.best, "raw", r))]
    if others:
        sentences.append(_elsewhere(analysis, others, clearly(gain) > 0))
    if equal := equal_to_sft(analysis):
        sentences.append(f"Under {_listed(equal)} it is not clearly better than SFT.")
    if versus := find(analysis, "ospo", "grpo", training):
        words = {1: "clearly better", 0: "not clearly different", -1: "clearly worse"}
        sentences.append(
            f"OSPO against GRPO under the same budget: {words[clearly(versus)]} "
            f"({judged(versus, len(analysis.comparisons))}; {n})."
        )
    return sentences


def _elsewhere(analysis: Analysis, others: list[Comparison], sure: bool) -> str:
    """The policy under search engines that it never saw; ``sure``: it has a gain of which a share
    may be kept.
    """
    total = len(others)
    counted = {
        word: sum(clearly(c) == sign for c in others)
        for word, sign in (("better", 1), ("worse", -1))
    }
    verdicts = [f"clearly {word} with {n} of {total}" for word, n in counted.items() if n]
    verdicts = verdicts or [f"not clearly better or worse with any of {total}"]
    text = f"Under search engines it never saw it is {' and '.join(verdicts)}"
    unseen = {c.retriever for c in others}
    kept = analysis.robustness[analysis.best]
    shares = [r.kept.value for r in kept if r.kept and r.retriever in unseen]
    if shares and sure:
        low, high = kept_text(min(shares)), kept_text(max(shares))
        text += f", keeping {low if low == high else f'{low} to {high}'} of that gain"
    return f"{text} (the same n)."


def _for_whom(analysis: Analysis) -> str:
    """The groups of requests that gain most, and those that lose."""
    groups = [s for s in analysis.slices if s.value != OTHERS and s.requests >= GROUP]
    if not groups:
        return f"No two groups of {GROUP} requests or more to compare (n = {analysis.requests:,})."
    most = max(groups, key=lambda s: s.gain.value)
    losing = [s for s in groups if s.gain.high < 0]
    parts = [f"Most for {_group(most)}" if most.gain.low > 0 else "No group clearly gains"]
    if losing:
        parts.append(f"worse for {_group(min(losing, key=lambda s: s.gain.value))}")
    else:
        parts.append("no group is clearly worse off")
    return f"{'; '.join(parts)}. A hint: groups are not corrected for their number."


def _group(part: Slice) -> str:
    title = SLICES[part.slice]
    name = f"{title[:1].lower()}{title[1:]}: {shown(part.value, 40)}"
    return f"“{name}” ({signed(part.gain.value)}, n = {part.requests:,})"


def _how_sure(analysis: Analysis, gain: Comparison) -> list[str]:
    """The gain with what decides whether it is clear, the training runs, and the control."""
    grouped = analysis.groups != analysis.requests
    of = f" of {analysis.groups:,} shoppers" if grouped else ""
    gained = judged(gain, len(analysis.comparisons))
    sentences = [f"The gain is {gained} (n = {analysis.requests:,} requests{of})."]
    means = analysis.seed_means.get(analysis.best, {}).get(analysis.retrievers[0], [])
    single = ", ".join(f"{mean:.3f}" for mean in means)
    if analysis.best in RULES:
        pass  # a rule has no training run that could have come out otherwise
    elif analysis.seeds == 1:
        sentences.append(
            "It is of one training run: another seed may give another result, and this does not "
            "say how far off."
        )
    else:
        rough = "; so few make it rough" if analysis.seeds < FEW_SEEDS else ""
        sentences.append(
            f"It counts that other requests or training runs could have been drawn ({single} in "
            f"{analysis.seeds} runs{rough})."
        )
    if control := find_control(analysis, analysis.best, analysis.retrievers[0]):
        sentences.append(control_sentence(control, analysis.requests))
    return sentences


def _next(analysis: Analysis, gain: Comparison) -> list[str]:
    """What follows from it, the first reason against serving it first."""
    training, *unseen = analysis.retrievers
    worse = [r for r in unseen if clearly(find(analysis, analysis.best, "raw", r)) < 0]
    rule = next(
        (
            c.reference
            for c in analysis.comparisons
            if (c.policy, c.retriever) == (analysis.best, training)
            and c.reference in RULES
            and c.reference != "raw"
            and clearly(c) < 1
        ),
        None,
    )
    if clearly(gain) < 1:
        sentences = [
            "Keep the raw query. Read the examples that got worse, then train longer or on more "
            "requests, and evaluate again."
        ]
    elif rule and analysis.best not in RULES:
        sentences = [
            f"Serve “{label(rule)}”, which needs no model: {_who(analysis)} is not clearly better."
        ]
    elif worse:
        sentences = [f"Serve it with {training} only: it is worse under {_listed(worse)}."]
    elif training in equal_to_sft(analysis):
        sentences = ["SFT alone may do: compare the two on live traffic before you pay for both."]
    elif analysis.seeds == 1 and analysis.best not in RULES:
        sentences = [
            "Train two more seeds (`--set seed=1`, then 2; copy each policy's folder before the "
            "next) and evaluate them together; if they agree, try it on a share of live traffic "
            "beside the raw query."
        ]
    else:
        sentences = ["Try it on a share of live traffic beside the raw query."]
    if guarded := find_guard(analysis, analysis.best, training):
        sentences.append(guard_sentence(guarded, analysis.requests))
    return sentences


def markdown_headline(analysis: Analysis) -> list[str]:
    """The verdict as markdown, a line each; names from data cannot become links or tags."""
    found = verdict(analysis)
    lines = [f"**{_plain(found.heading)}.**  "]
    return lines + [f"*{question}* {_plain(answer)}  " for question, answer in found.pairs()]


def _plain(text: str) -> str:
    for mark in "\\[]*_":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("<", "&lt;")


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
    return "\n".join([*lines, *markdown_headline(analysis)])
