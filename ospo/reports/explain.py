"""One search text explained: each phrase's credit, what leaving it out does, and where the target
ranks.

``explain`` computes, ``render`` shows it in a terminal, ``to_html`` as one self-contained page.
"""

from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ospo.config import Config
from ospo.credit import coalition_text
from ospo.credit.estimators import exact_evaluations
from ospo.data.dataset import PreparedData, Request
from ospo.errors import InputError
from ospo.files import atomic_file
from ospo.retrieval.base import Retriever
from ospo.reward.credit import credit_engine
from ospo.reward.search import SearchReward

BUDGET = 1024  # exact for ten phrases: one text may cost what a training step of texts may not
TOP = 10


@dataclass(frozen=True)
class Phrase:
    """A phrase: its credit φ, the reward without it, and the target's rank without it (1-based, in
    the pool).
    """

    text: str
    credit: float
    reward_without: float
    rank_without: int


@dataclass(frozen=True)
class Item:
    """An item of the ranking under the whole text."""

    item_id: str
    title: str
    gain: float


@dataclass(frozen=True)
class Explanation:
    """All that is shown of one search text. Rewards are nDCG@k; ``rank`` is the target's place
    among ``pool`` items.
    """

    dataset: str
    request_id: str
    query: str
    history: tuple[str, ...]
    target: Item
    retriever: str
    k: int
    text: str
    phrases: tuple[Phrase, ...]
    reward: float
    empty_reward: float
    rank: int
    pool: int
    coalitions: int
    exact: bool
    top: tuple[Item, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def find_request(data: PreparedData, request: str) -> int:
    """Row of a request by its id, else by its query (the first one with it). Raises InputError for
    neither.
    """
    for row, known in enumerate(data.requests):
        if known.request_id == request:
            return row
    for row, known in enumerate(data.requests):
        if known.query.strip().lower() == request.strip().lower():
            return row
    example = data.requests[0].request_id if data.requests else "none, the dataset is empty"
    raise InputError(
        data.directory / "requests.parquet",
        "request_id",
        f"no request has the id or the query {request!r:.80}",
        f"name one of its {len(data.requests)} ids, for example {example}",
    )


def explain(
    config: Config, data: PreparedData, retriever: Retriever, request: str, text: str | None = None
) -> Explanation:
    """Explain search text ``text`` (default: the raw query) for a request under an indexed
    ``retriever``.

    request: a request id, or a request's query. Credit is exact for up to ten phrases, estimated
    beyond. Raises InputError for an unknown request.
    """
    row = find_request(data, request)
    asked: Request = data.requests[row]
    text = asked.query if text is None else text
    reward = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
    engine = credit_engine(
        config, reward, estimator="auto", budget=max(BUDGET, config.credit.budget)
    )
    (credit,) = engine.credit([text], [row])
    seg = credit.segmentation
    n = len(seg)
    without = [coalition_text(seg, ~np.eye(n, dtype=bool)[i]) for i in range(n)]
    texts = [text, *without]
    values = reward(texts, [row] * len(texts))
    target = data.item_ids.index(asked.target_id)
    pool = data.pools_RP[row][data.pools_RP[row] >= 0]
    order_BP = _rankings(reward.pool_scores(texts, [row] * len(texts)), data.pools_RP[row])
    ranks = [int(np.flatnonzero(order == target)[0]) + 1 for order in order_BP]
    gains = dict(zip(data.pools_RP[row].tolist(), data.gains_RP[row].tolist(), strict=True))
    phrases = tuple(
        Phrase(unit, float(phi), float(value), rank)
        for unit, phi, value, rank in zip(
            seg.units, credit.phi_N, values[1:], ranks[1:], strict=True
        )
    )
    return Explanation(
        dataset=data.name,
        request_id=asked.request_id,
        query=asked.query,
        history=tuple(", ".join(filter(None, (p.name, p.type, p.colour))) for p in asked.history),
        target=_item(data, target, gains[target]),
        retriever=retriever.name,
        k=config.reward.k,
        text=text,
        phrases=phrases,
        reward=credit.total,
        empty_reward=credit.empty_value,
        rank=ranks[0],
        pool=len(pool),
        coalitions=credit.evaluations,
        exact=credit.evaluations == exact_evaluations(n, seg.unions),
        top=tuple(_item(data, int(item), gains[int(item)]) for item in order_BP[0][:TOP]),
    )


def _rankings(scores_BP: np.ndarray, pool_P: np.ndarray) -> list[np.ndarray]:
    """Catalogue rows of the pool, best first, as the measure ranks them: equal scores in pool
    order.
    """
    order_BP = np.argsort(-scores_BP, axis=1, kind="stable")
    return [pool_P[order][pool_P[order] >= 0] for order in order_BP]


def _item(data: PreparedData, row: int, gain: float) -> Item:
    return Item(data.item_ids[row], data.catalogue["title"][row], float(gain))


def _strength(explanation: Explanation, credit: float) -> float:
    """−1 … 1: the credit's share of the largest one."""
    largest = max((abs(phrase.credit) for phrase in explanation.phrases), default=0.0)
    return credit / largest if largest > 0 else 0.0


def _plain(text: str) -> str:
    """Without control characters: text from data must not steer a terminal."""
    return "".join(c if c.isprintable() or c == " " else " " for c in text)


def _summary(e: Explanation) -> str:
    way = "exact" if e.exact else "estimated"
    return (
        f"nDCG@{e.k} {e.reward:.3f} (no text {e.empty_reward:.3f}), target at rank {e.rank} of "
        f"{e.pool}; "
        f"{way} from {e.coalitions} coalitions"
    )


def render(e: Explanation) -> Group:
    """For ``rich``'s console: the text with each phrase coloured (green helped, red hurt), and a
    table.
    """
    head = Text.assemble(
        ("request ", "dim"), _plain(e.request_id), ("  query ", "dim"), _plain(e.query)
    )
    lines = [head]
    if e.history:
        lines.append(Text.assemble(("bought  ", "dim"), _plain("; ".join(e.history))))
    lines.append(
        Text.assemble(
            ("target  ", "dim"), _plain(e.target.title), ("  retriever ", "dim"), e.retriever
        )
    )
    body = Text("text    ", style="dim")
    for phrase in e.phrases:
        strength = _strength(e, phrase.credit)
        colour = "green" if strength > 0 else "red"
        style = (
            f"bold {colour}"
            if abs(strength) > 0.5
            else colour
            if abs(strength) > 0.05
            else "default"
        )
        body.append(_plain(phrase.text), style=style)
    table = Table(title=_summary(e), title_justify="left", title_style="")
    for name in ("phrase", "credit", f"nDCG@{e.k} without", "rank without"):
        table.add_column(name, justify="left" if name == "phrase" else "right")
    for phrase in e.phrases:
        style = "green" if phrase.credit > 0 else "red" if phrase.credit < 0 else ""
        table.add_row(
            Text(_plain(phrase.text).strip()),
            Text(f"{phrase.credit:+.3f}", style=style),
            Text(f"{phrase.reward_without:.3f} ({phrase.reward_without - e.reward:+.3f})"),
            Text(
                f"{phrase.rank_without} ({phrase.rank_without - e.rank:+d})"
                if phrase.rank_without != e.rank
                else str(e.rank)
            ),
        )
    ranking = Text("\n").join(
        Text.assemble(
            (f"{place:>3} ", "dim"),
            (_plain(item.title), "bold" if item.gain > 0 else ""),
            (f"  gain {item.gain:g}" if item.gain > 0 else "", "green"),
        )
        for place, item in enumerate(e.top, 1)
    )
    return Group(*lines, body, Text(), table, Text(), ranking)


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d5dae0; --dim: #57606a;
  --good: 26, 127, 55; --bad: 207, 34, 46; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d;
  --dim: #9198a1;
  --good: 63, 185, 80; --bad: 248, 81, 73; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 56rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: var(--dim); } dd { margin: 0; }
.text { font-size: 1.3rem; line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; }
.text span { border-radius: .2rem; padding: .1rem 0; }
.good { background: rgba(var(--good), var(--s)); } .bad { background: rgba(var(--bad), var(--s)); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
li.relevant { font-weight: 600; }
"""


def to_html(e: Explanation) -> str:
    """One page, self-contained: no scripts, nothing fetched. Every text from data is escaped."""
    spans = []
    for phrase in e.phrases:
        strength = _strength(e, phrase.credit)
        kind = "good" if strength > 0 else "bad"
        bare = phrase.text.lstrip()
        spans.append(
            escape(phrase.text[: len(phrase.text) - len(bare)])
            # The root lets small credits be seen beside one that is much larger.
            + f'<span class="{kind}" style="--s: {0.5 * abs(strength) ** 0.5:.2f}" '
            f'title="{phrase.credit:+.3f}">'
            f"{escape(bare)}</span>"
        )
    rows = [
        f'<tr><td>{escape(p.text.strip())}</td><td class="number">{p.credit:+.3f}</td>'
        f'<td class="number">{p.reward_without:.3f} ({p.reward_without - e.reward:+.3f})</td>'
        f'<td class="number">{p.rank_without} ({p.rank_without - e.rank:+d})</td></tr>'
        for p in e.phrases
    ]
    facts = [
        ("Dataset", e.dataset),
        ("Request", e.request_id),
        ("Query", e.query),
        *([("Bought before", "; ".join(e.history))] if e.history else []),
        ("Target", e.target.title),
        ("Retriever", e.retriever),
        ("Result", _summary(e)),
    ]
    items = [
        f'<li class="relevant">{escape(item.title)} (gain {item.gain:g})</li>'
        if item.gain > 0
        else f"<li>{escape(item.title)}</li>"
        for item in e.top
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Credit of a search text</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Credit of a search text</h1>
<p class="text">{"".join(spans) or "<em>(empty)</em>"}</p>
<p>Green phrases raised nDCG@{e.k}, red ones lowered it; the stronger the colour, the more. Credits
sum to {e.reward - e.empty_reward:+.3f}, the whole text's gain over none.</p>
<dl>{listed}</dl>
<h2>Phrases</h2>
<div class="scroll"><table>
<thead><tr><th>Phrase</th><th class="number">Credit</th>
<th class="number">nDCG@{e.k} without it</th>
<th class="number">Target's rank without it</th></tr></thead>
<tbody>{"".join(rows)}</tbody>
</table></div>
<h2>Ranking</h2>
<ol>{"".join(items)}</ol>
</body>
</html>
"""


def write_html(e: Explanation, file: str | Path) -> None:
    """Write :func:`to_html`'s page, atomically."""
    with atomic_file(file) as temporary:
        temporary.write_text(to_html(e), encoding="utf-8")
