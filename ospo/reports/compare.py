"""``ospo compare A B``: two policies on the same requests, under every retriever, with paired
tests.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ospo.config import Config
from ospo.data.dataset import PreparedData
from ospo.errors import InputError
from ospo.evaluation.analysis import Analysis, analyse
from ospo.evaluation.completions import CACHE
from ospo.evaluation.evaluate import evaluate
from ospo.files import read_json
from ospo.paths import RUNS
from ospo.policy.decoding import TokenLimits
from ospo.policy.rules import RAW, RULES
from ospo.reports.wording import ALPHA, interval_text, p_text, signed

_FORMS = (
    "a registered version (ospo-rewriter-esci@champion, ospo-rewriter-esci/3), a run "
    "(runs/esci/grpo or its MLflow "
    "run id), a policy directory, a .jsonl file of answers, or a rule (raw, "
    "history, feedback)"
)


@dataclass(frozen=True)
class Named:
    """A policy to compare: the name that the user gave, where it is (None: a rule), and the token
    limits of a registered version.
    """

    name: str
    source: Path | None
    limits: TokenLimits | None = None


def resolve(reference: str, config: Config, runs: Path = RUNS) -> Named:
    """The policy that ``reference`` names. Raises InputError (or the registry's one line) where
    there is none.
    """
    if reference in RULES:
        return Named(reference, None)
    path = Path(reference)
    if path.suffix == ".jsonl" or path.is_dir():
        return Named(reference, path / "model" if (path / "model").is_dir() else path)
    name, separator, wanted = (
        reference.partition("@") if "@" in reference else reference.rpartition("/")
    )
    dataset = name.removeprefix("ospo-rewriter-")
    if separator and dataset in config.datasets and dataset != name:
        from ospo import registry

        for version in registry.models(config, (dataset,)):
            if wanted in version.aliases or wanted == str(version.version):
                return Named(
                    f"{version.name}/{version.version}",
                    registry.policy_directory(config, version),
                    version.limits,
                )
        raise InputError(reference, "", "is not registered", "see `ospo models`")
    for state in sorted(runs.glob("*/*/step.json")):
        if read_json(state).get("run_id") == reference and (state.parent / "model").is_dir():
            return Named(str(state.parent), state.parent / "model")
    raise InputError(reference, "", "names no policy", f"name {_FORMS}")


def compare(
    config: Config, data: PreparedData, a: Named, b: Named, out: Path, *, cache: Path | None = CACHE
) -> Analysis:
    """Evaluate A and B (and the raw query) on ``data``'s held-out requests into ``out``; tests B
    against A.

    The Holm family holds B against A and both against the raw query, under every retriever. Raises
    InputError where both names mean the same, LeakError where one was trained on these requests.
    """
    if a.name == b.name:
        raise InputError(a.name, "", "is named twice", "compare two different policies")
    sources = {policy.name: policy.source for policy in (a, b)}
    named = {name: source for name, source in sources.items() if source}
    limits = {policy.name: policy.limits for policy in (a, b) if policy.limits}
    evaluate(config, data, named, out, cache=cache, limits=limits)
    left_out = read_json(out / "details.json")["rules_left_out"]
    for policy in (a, b):
        if policy.name in left_out:
            fix = "compare another rule, or change that"
            raise InputError(policy.name, "", f"cannot apply: {left_out[policy.name]}", fix)
    pairs = list(
        dict.fromkeys([(b.name, a.name), *((name, RAW) for name in sources if name != RAW)])
    )
    return analyse([out], resamples=config.evaluation.resamples, seed=config.seed, pairs=pairs)


def comparison_table(analysis: Analysis, a: Named, b: Named, dataset: str) -> Table:
    """One row per retriever: both means, the difference with its interval, the corrected p-value,
    and a verdict.
    """
    table = Table(
        title=f"{escape(dataset)}: nDCG@10 on {analysis.requests:,} held-out requests",
        title_justify="left",
    )
    for name in (
        "retriever",
        f"A: {a.name}",
        f"B: {b.name}",
        "B − A",
        "95 % interval",
        "p (Holm)",
        "",
    ):
        table.add_column(
            escape(name), justify="left" if name in ("retriever", "") else "right", overflow="fold"
        )
    for c in analysis.comparisons:
        if (c.policy, c.reference) != (b.name, a.name):
            continue
        verdict = "no clear difference"
        if c.p_holm < ALPHA:
            verdict = "B is better" if c.difference.value > 0 else "A is better"
        seen = "" if c.retriever != analysis.retrievers[0] else " (training)"
        table.add_row(
            escape(c.retriever) + seen,
            f"{analysis.means[a.name][c.retriever].value:.4f}",
            f"{analysis.means[b.name][c.retriever].value:.4f}",
            signed(c.difference.value, 4),
            interval_text(c.difference, 4),
            p_text(c.p_holm),
            verdict,
        )
    return table
