"""The description of a registered version, for people."""

from collections.abc import Mapping
from types import MappingProxyType

from ospo.config import LABELS, Answer, Config
from ospo.policy.rules import RULES
from ospo.policy.text import REWRITE, SearchText
from ospo.serving.requests import MAX_NEW_TOKENS

_MAKES: Mapping[Answer, str] = {
    "rewrite": "Rewrites a shopper's request into a search text",
    "expand": "Adds to a shopper's request: the search text is the request, every word of it kept, "
    "and what the answer adds (`answer: expand`)",
}


def model_card(
    dataset: str,
    algorithm: str,
    config: Config,
    summary: Mapping[str, Mapping[str, float]],
    facts: Mapping[str, str],
    answer: SearchText = REWRITE,
    control: Mapping[str, float] = MappingProxyType({}),
    guarded: Mapping[str, float] = MappingProxyType({}),
) -> str:
    """Markdown about a version: its figures, its data and code, what goes in and comes out, its
    limits.

    ``summary``: {policy: {retriever: nDCG@10}} on the test split. ``facts``: data_md5, git_commit,
    git_dirty. ``answer``: what the policy's answers are. ``control``: {retriever: nDCG@10} of its
    answers given to other requests; ``guarded``: of its answers under its guard, where it has one.
    """
    training = config.retrievers.training
    retrievers = sorted(summary[algorithm], key=lambda name: (name != training, name))
    table = _table(algorithm, summary, retrievers, control, guarded)
    served = guarded or summary[algorithm]
    label = LABELS.get(algorithm, algorithm)
    worse = [
        name for name in retrievers if "raw" in summary and served[name] < summary["raw"][name]
    ]
    return "\n".join(
        [
            f"{_MAKES[answer.kind]} ({dataset}). Preset "
            f"`{config.policy}`, trained with {label} against {training}; the other retrievers "
            "were never seen in training.",
            "",
            "Held-out requests (test split), candidate pools:",
            "",
            *table,
            "",
            *_control_lines(control, summary, algorithm, training),
            *([f"**Worse than the raw query under {', '.join(worse)}.**", ""] if worse else []),
            f"Data md5 `{facts['data_md5']}`, commit `{facts['git_commit']}` (dirty: "
            f"{facts['git_dirty']}).",
            "",
            "Input: query strings, or JSON objects as strings with `query` and `history` "
            '(`[{"name", "type", "colour"}]`, oldest first). Output: one search text each. Greedy '
            "by default; "
            f"params `max_new_tokens` (1 to {MAX_NEW_TOKENS}), `temperature` (0 to 2), `seed`.",
            "",
            "Decoding, the same in training, evaluation and serving: greedy, or drawn from the "
            "temperature's softmax; the model's own generation defaults (repetition penalty, "
            "top-k, top-p, temperature) are not used.",
            "",
            "Limits: requests of the kind and language it was trained on. What it adds is a guess "
            "from the request and the history, and may be wrong for this shopper; it knows no "
            "product's stock or price.",
        ]
    )


def _table(
    algorithm: str,
    summary: Mapping[str, Mapping[str, float]],
    retrievers: list[str],
    control: Mapping[str, float],
    guarded: Mapping[str, float],
) -> list[str]:
    """The figures' table: rules, policies, what its guard makes of this one, and the control."""
    rows = [name for name in (*RULES, "sft", algorithm) if name in summary]
    rules = {name: rule.label for name, rule in RULES.items()}
    labels = rules | LABELS | {algorithm: f"**{LABELS.get(algorithm, algorithm)} (this)**"}
    named = [(labels[row], summary[row]) for row in rows]
    if guarded:
        named.append(("**the same under its guard, as it is served**", guarded))
    if control:
        named.append(("control: its answers given to other requests", control))
    return [
        f"| nDCG@10 | {' | '.join(retrievers)} |",
        "|---" * (len(retrievers) + 1) + "|",
        *(f"| {name} | {' | '.join(f'{row[r]:.4f}' for r in retrievers)} |" for name, row in named),
    ]


def _control_lines(
    control: Mapping[str, float],
    summary: Mapping[str, Mapping[str, float]],
    algorithm: str,
    training: str,
) -> list[str]:
    """What share of the gain the control has too; nothing where there is no gain or no control."""
    if training not in control or "raw" not in summary:
        return []
    before = summary["raw"][training]
    gain, swapped = summary[algorithm][training] - before, control[training] - before
    if gain <= 0:
        return []
    share = 100 * max(0.0, swapped / gain)
    return [
        f"Given to other requests of the same category, its answers have {share:.0f} % of the gain "
        f"over the raw query on {training}; the rest is of the request.",
        "",
    ]
