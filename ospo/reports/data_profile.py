"""``ospo data describe``: a short profile of prepared data, as figures and as one HTML page with
SVG bars.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ospo.data.dataset import PreparedData
from ospo.data.schemas import SPLITS
from ospo.errors import InputError
from ospo.files import atomic_directory, read_json
from ospo.reports import pages
from ospo.reports.charts import bar_chart
from ospo.reports.wording import shown


@dataclass(frozen=True)
class Bars:
    """A bar chart: counts by name, in order."""

    title: str
    counts: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Profile:
    """figures: name → value as text; charts: what the page draws; examples: a few requests
    as text.
    """

    name: str
    figures: dict[str, str]
    charts: list[Bars]
    examples: list[str]


def _histogram(title: str, values: np.ndarray, most: int = 12) -> Bars:
    """Counts by value; values from ``most`` on share the last bar."""
    clipped = np.minimum(values, most)
    counts = np.bincount(clipped, minlength=int(clipped.max(initial=0)) + 1)
    first = int(clipped.min(initial=0))
    return Bars(
        title,
        [(f"{n}{'+' if n == most else ''}", int(c)) for n, c in enumerate(counts) if n >= first],
    )


def describe(data: PreparedData) -> Profile:
    """Profile of prepared data: sizes, splits, lengths, the largest categories, three requests."""
    requests = data.requests.frame
    words = requests["query"].str.split(" ").list.len().to_numpy().astype(np.int64)
    history = requests["history"].list.len().to_numpy().astype(np.int64)
    relevant = (data.gains_RP > 0).sum(axis=1)
    places = (data.pools_RP >= 0).sum(axis=1)
    texts = data.catalogue["text"].str.len_chars().to_numpy()
    categories = (
        data.catalogue["category"]
        .value_counts(sort=True)
        .sort(["count", "category"], descending=[True, False])
    )
    filled = {
        name: float((data.catalogue[name] != "").to_numpy().mean())
        for name in ("category", "brand", "colour", "description")
    }
    figures = {
        "items": f"{len(data.item_ids):,}",
        "requests": f"{len(data.requests):,}",
        **{split: f"{len(data.rows(split)):,}" for split in SPLITS},
        "customers": f"{requests['customer_id'].replace({'': None}).drop_nulls().n_unique():,}",
        "categories": f"{categories.height:,}",
        "pool places, mean": f"{places.mean():.1f}",
        "relevant items in a pool, mean": f"{relevant.mean():.2f}",
        "query words, mean": f"{words.mean():.1f}",
        "item text characters, median": f"{np.median(texts):.0f}",
        **{f"items with {name}": f"{share:.0%}" for name, share in filled.items()},
    }
    charts = [
        Bars("Requests by split", [(split, len(data.rows(split))) for split in SPLITS]),
        _histogram("Words in a query", words),
        _histogram("Relevant items in a pool", relevant),
        Bars(
            "Largest categories (items)",
            [(name or "(none)", count) for name, count in categories.head(12).iter_rows()],
        ),
    ]
    if history.any():
        charts.insert(2, _histogram("Purchases shown with a request", history))
    if left_out := _left_out(data.directory):
        charts.append(left_out)
    rows = np.linspace(0, len(data.requests) - 1, 3).astype(int)
    return Profile(
        data.name, figures, charts, [_example(data, int(row)) for row in dict.fromkeys(rows)]
    )


def _left_out(directory: Path) -> Bars | None:
    """What preparation left out, by reason, from stats.json beside the tables; None where it is not
    there.
    """
    file = directory / "stats.json"
    if not file.is_file():
        return None
    try:
        dropped = read_json(file)["dropped"]
        counts = [(str(reason), int(count)) for reason, count in dropped.items() if int(count) > 0]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            file, "dropped", f"is not readable ({error})", "prepare the dataset again"
        ) from None
    return Bars("Left out, by reason", counts) if counts else None


def write_plots(profile: Profile, folder: str | Path) -> None:
    """Write each chart as a CSV file (name, count), for `dvc plots`; the folder appears or is
    replaced as a whole.
    """
    with atomic_directory(folder) as temporary:
        for bars in profile.charts:
            slug = re.sub(r"[^a-z]+", "_", bars.title.lower()).strip("_")
            frame = pl.DataFrame(
                bars.counts, schema={"name": pl.String, "count": pl.Int64}, orient="row"
            )
            frame.write_csv(temporary / f"{slug}.csv")


def _example(data: PreparedData, row: int) -> str:
    request = data.requests[row]
    target = data.catalogue.filter(pl.col("item_id") == request.target_id)["title"][0]
    bought = "; ".join(f"{p.name}, {p.type}, {p.colour}" for p in request.history)
    return f"“{request.query}”" + (f" after {bought}" if bought else "") + f" → {target}"


def write_page(profile: Profile, file: str | Path) -> None:
    """Write the profile as one self-contained HTML page, atomically. Text from data is escaped."""
    charts = [
        (bars.title, bar_chart(bars.title, [(shown(name, 40), n) for name, n in bars.counts]))
        for bars in profile.charts
    ]
    pages.write_page(file, "profile.html.j2", profile=profile, charts=charts)
