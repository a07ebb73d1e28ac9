"""Made-up completions and the coalitions of their phrases: what benchmarks/credit.py values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ospo.config import Config
from ospo.credit import get_estimator
from ospo.credit.engine import coalition_text
from ospo.credit.segments import Segmentation, merge_segments, segment_many
from ospo.data.dataset import PreparedData

REQUESTS, GROUP = 8, 8


@dataclass(frozen=True)
class Coalitions:
    """Coalitions of completions: texts one by one, and the same as units and masks."""

    texts: list[str]
    rows: list[int]
    units: list[list[str]]
    unit_rows: list[int]
    masks: list[np.ndarray]


def coalitions(
    config: Config, segmentations: Sequence[Segmentation], rows: Sequence[int], budget: int
) -> Coalitions:
    """The coalitions that the configured estimator asks for, without the empty and the full one."""
    estimator = get_estimator(config.credit.estimator, config.credit.window)
    found = Coalitions([], [], [], [], [])
    for n, (whole, row) in enumerate(zip(segmentations, rows, strict=True)):
        segmentation = merge_segments(whole, max(1, min(16, budget // 2)))
        masks = estimator.plan(
            len(segmentation), segmentation.unions, budget, np.random.default_rng([config.seed, n])
        )
        sizes = masks.sum(axis=1)
        masks = masks[(sizes > 0) & (sizes < len(segmentation))]
        if len(masks):
            found.units.append([unit.strip() for unit in segmentation.units])
            found.unit_rows.append(row)
            found.masks.append(masks)
            found.texts.extend(coalition_text(segmentation, mask) for mask in masks)
            found.rows.extend([row] * len(masks))
    return found


def made_up_completions(config: Config, data: PreparedData) -> tuple[list[Segmentation], list[int]]:
    """64 search texts of 4–9 phrases: a request's query and phrases of items of its pool."""
    rng = np.random.default_rng(config.seed)
    answers, rows = [], []
    for row in rng.choice(data.rows("train"), REQUESTS, replace=False).tolist():
        items = data.catalogue[data.pools_RP[row][data.pools_RP[row] >= 0].tolist()]
        known = [
            [
                part
                for part in (colour.lower(), category.lower(), brand.lower(), *title.split(" ")[:2])
                if part
            ]
            for title, category, brand, colour in items.select(
                "title", "category", "brand", "colour"
            ).rows()
        ]
        for _ in range(4 * GROUP):
            parts = [
                str(rng.choice(known[i])) for i in rng.integers(0, len(known), rng.integers(3, 9))
            ]
            answers.append(", ".join([data.requests[row].query, *parts]))
            rows.append(row)
    return _of_4_to_9(config, answers, rows)


def _of_4_to_9(
    config: Config, answers: list[str], rows: list[int]
) -> tuple[list[Segmentation], list[int]]:
    """The first 8 completions of 4–9 phrases of each of 8 requests; fewer where there are not as
    many.
    """
    kept: dict[int, list[Segmentation]] = {}
    for segmentation, row in zip(segment_many(answers, config.credit.segments), rows, strict=True):
        if 4 <= len(segmentation) <= 9 and len(kept.setdefault(row, [])) < GROUP:
            kept[row].append(segmentation)
    fullest = sorted(kept, key=lambda row: -len(kept[row]))[:REQUESTS]
    return [s for row in fullest for s in kept[row]], [row for row in fullest for _ in kept[row]]
