"""An explanation shown: in a terminal (``render``), or as one self-contained page (``to_html``).

Colours say what a phrase did against the raw query, the text that the rewrite is compared with;
where the raw query itself is explained, what it earned over no text.
"""

from collections.abc import Callable
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ospo.errors import printable
from ospo.reports.explain import Explanation, Phrase
from ospo.reports.pages import credit_class, page, write_page

_COLOURS = {"h": "green", "b": "red", "n": "default"}


def shade(e: Explanation) -> Callable[[Phrase], float]:
    """The figure by which a phrase is coloured: its change against the raw query, or its credit
    where the raw query is what is explained.
    """
    return (lambda phrase: phrase.change) if e.rewritten else (lambda phrase: phrase.credit)


def summary(e: Explanation) -> str:
    """The figures of the whole text in one line."""
    raw = f", raw query {e.raw_reward:.3f}" if e.rewritten and not e.base else ""
    start = "raw query" if e.base else "no text"
    how = f"; credit: {e.estimator}, {e.coalitions} coalitions" if e.estimator else ""
    return (
        f"nDCG@{e.k} {e.reward:.3f} ({start} {e.empty_reward:.3f}{raw}), target at rank {e.rank} "
        f"of {e.pool}{how}"
    )


def _style(value: float) -> str:
    """Green or red by what a figure does to the reward, bold where it is much."""
    kind = credit_class(value)
    return _COLOURS[kind[0]] if kind in ("n", "h1", "b1") else f"bold {_COLOURS[kind[0]]}"


def _number(value: float) -> Text:
    return Text(f"{value:+.3f}", style=_style(value))


def render(e: Explanation) -> Group:
    """For ``rich``'s console: the text with each phrase coloured (green helped, red hurt), tables
    of phrases and of lost words, and the ranking.
    """
    head = Text.assemble(
        ("request ", "dim"), printable(e.request_id), ("  query ", "dim"), printable(e.query)
    )
    lines = [head]
    if e.history:
        lines.append(Text.assemble(("bought  ", "dim"), printable("; ".join(e.history))))
    lines.append(
        Text.assemble(
            ("target  ", "dim"), printable(e.target.title), ("  retriever ", "dim"), e.retriever
        )
    )
    body, value = Text("text    ", style="dim"), shade(e)
    body.append(printable(f"{e.base}, ") if e.base else "", style="default")
    for phrase in e.phrases:
        body.append(printable(phrase.text), style=_style(value(phrase)))
    ranking = Text("\n").join(
        Text.assemble(
            (f"{place:>3} ", "dim"),
            (printable(item.title), "bold" if item.gain > 0 else ""),
            (f"  gain {item.gain:g}" if item.gain > 0 else "", "green"),
        )
        for place, item in enumerate(e.top, 1)
    )
    tables = [_phrase_table(e), *([_lost_table(e)] if e.lost else [])]
    return Group(*lines, body, Text(), Text(summary(e)), *tables, Text(), ranking)


def _phrase_table(e: Explanation) -> Table:
    """One row per phrase; what it did against the raw query only where there is a rewrite."""
    table = Table()
    compared = ["from the request", "against raw"] if e.rewritten and not e.base else []
    credit = "credit against raw" if e.base else "credit"
    for name in ("phrase", *compared, credit, f"nDCG@{e.k} without", "rank without"):
        table.add_column(name, justify="left" if name == "phrase" else "right")
    for phrase in e.phrases:
        rank = str(phrase.rank_without)
        if phrase.rank_without != e.rank:
            rank += f" ({phrase.rank_without - e.rank:+d})"
        change = [Text("kept"), Text("–")] if phrase.kept else [
            Text("added"), _number(phrase.change)
        ]  # fmt: skip
        table.add_row(
            Text(printable(phrase.text).strip()),
            *(change if compared else []),
            _number(phrase.credit),
            Text(f"{phrase.reward_without:.3f} ({phrase.reward_without - e.reward:+.3f})"),
            Text(rank),
        )
    return table


def _lost_table(e: Explanation) -> Table:
    table = Table()
    for name in ("lost from the request", "against raw", "put back"):
        table.add_column(name, justify="left" if name.startswith("lost") else "right")
    for words in e.lost:
        table.add_row(
            Text(printable(words.text)), _number(words.change), Text(f"{words.put_back:+.3f}")
        )
    return table


def to_html(e: Explanation) -> str:
    """One page, self-contained: no scripts, nothing fetched. Every text from data is escaped."""
    return page("explain.html.j2", e=e, summary=summary(e), shade=shade(e))


def write_html(e: Explanation, file: str | Path) -> None:
    """Write :func:`to_html`'s page, atomically."""
    write_page(file, "explain.html.j2", e=e, summary=summary(e), shade=shade(e))
