"""Charts as inline SVG: no script, no image file, readable at 350 pixels wide, in light and dark,
and on paper.

Colours are classes (``s0`` … ``s5``) of ``templates/charts.css``, which every page includes; every
series differs in shape or dash as well. Each chart carries a title and a description for screen
readers; the page puts the same figures in a table beside it. ``standalone`` makes a file of one.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

WIDTH = 360
_STYLE = Path(__file__).parent / "templates" / "charts.css"
_DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 4")
_BAR, _NAMES = 22, 128  # height of a bar with its gap; width left of the bars, for their names


@dataclass(frozen=True)
class Line:
    """A series of points, with the faint raw points behind the smoothed ones; ``series`` picks
    colour and dash.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    raw: Sequence[float] = ()
    series: int = 0


@dataclass(frozen=True)
class Dot:
    """A value with its interval; ``series`` picks colour and shape."""

    value: float
    low: float
    high: float
    series: int = 0


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About ``wanted`` round numbers that cover [low, high]."""
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(f"axis from {low} to {high}")
    if high <= low:
        low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
    rough = (high - low) / max(1, wanted - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _svg(height: float, title: str, description: str, parts: list[Markup]) -> Markup:
    name = zlib.crc32(f"{title}\n{description}".encode("utf-8", "replace"))
    head = Markup(
        '<svg viewBox="0 0 {w} {h}" role="img" aria-labelledby="t{n} d{n}" '
        'xmlns="http://www.w3.org/2000/svg">'
        '<title id="t{n}">{title}</title><desc id="d{n}">{description}</desc>'
    ).format(w=WIDTH, h=round(height), n=name, title=title, description=description)
    return head + Markup("").join(parts) + Markup("</svg>")


def standalone(chart: Markup) -> str:
    """The chart as an SVG file of its own, for documents: light colours and a background
    included.
    """
    style = _STYLE.read_text(encoding="utf-8")
    background = '<rect width="100%" height="100%" fill="var(--page)"/>'
    head, close, rest = chart.partition("</desc>")
    return f"{head}{close}<style>\n{style}</style>{background}{rest}\n"


def _dash(series: int) -> str:
    """The dash of a series. Colours repeat after six series; their dashes are then shifted."""
    return _DASHES[(series + series // len(_DASHES)) % len(_DASHES)]


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "label") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, kind, text
    )


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, kind
    )


def marker(series: int, x: float, y: float) -> Markup:
    """The shape of a series: circle, square, diamond, triangle, then again."""
    shapes = (
        Markup('<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="mark s{s}"/>'),
        Markup('<rect x="{a:.1f}" y="{b:.1f}" width="7" height="7" class="mark s{s}"/>'),
        Markup('<path d="M{x:.1f} {c:.1f}l5 5l-5 5l-5 -5z" class="mark s{s}"/>'),
        Markup('<path d="M{x:.1f} {c:.1f}l5 9h-10z" class="mark s{s}"/>'),
    )
    return shapes[series % len(shapes)].format(
        x=x, y=y, a=x - 3.5, b=y - 3.5, c=y - 5, s=series % 6
    )


def _legend(names: Sequence[tuple[str, int]], y: float, lines: bool) -> tuple[list[Markup], float]:
    """A legend from height ``y`` on, wrapped to the width; returns it and the height below it."""
    parts, x = [], 4.0
    for name, s in names:
        width = 32 + 7.2 * len(name)
        if x > 4 and x + width > WIDTH:
            x, y = 4.0, y + 16
        if lines:
            sample = Markup(
                '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="curve s{}" '
                'stroke-dasharray="{}"/>'
            )
            parts.append(sample.format(x, y - 4, x + 18, y - 4, s % 6, _dash(s)))
        else:
            parts.append(marker(s, x + 9, y - 4))
        parts.append(_text(x + 23, y, name))
        x += width
    return parts, y + 8


def line_chart(
    title: str, description: str, lines: Sequence[Line], x_name: str, y_name: str
) -> Markup:
    """Curves over a shared axis. Raises ValueError where there is no point at all."""
    points = [value for line in lines for value in (*line.y, *line.raw)]
    steps = [value for line in lines for value in line.x]
    if not points:
        raise ValueError("no points to draw")
    parts, top = _legend([(line.name, line.series) for line in lines], 14, lines=True)
    left, right, top, bottom = 42.0, WIDTH - 8.0, top + 26, top + 186
    ys, xs = ticks(min(points), max(points)), ticks(min(steps), max(steps))

    def place_x(value: float) -> float:
        return left + (right - left) * (value - min(steps)) / ((max(steps) - min(steps)) or 1)

    def place_y(value: float) -> float:
        return bottom - (bottom - top) * (value - ys[0]) / (ys[-1] - ys[0])

    parts.append(_text(4, top - 12, y_name, kind="axis"))
    for tick in ys:
        parts += [_rule(left, place_y(tick), right, place_y(tick), "grid")]
        parts += [_text(left - 5, place_y(tick) + 4, _number(tick), "end")]
    for tick in xs:
        if min(steps) <= tick <= max(steps):
            words = _number(tick)
            half = 3.5 * len(words)  # of the text's width; at the edge it would be clipped
            at, anchor = place_x(tick), "middle"
            if at + half > WIDTH:
                at, anchor = WIDTH - 1.0, "end"
            parts.append(_text(at, bottom + 14, words, anchor))
    parts.append(_text(right, bottom + 28, x_name, "end", "axis"))
    curve = Markup('<polyline points="{}" class="{} s{}" stroke-dasharray="{}"/>')
    for line in lines:
        s = line.series
        for values, kind in ((line.raw, "faint"), (line.y, "curve")):
            path = " ".join(
                f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in zip(line.x, values, strict=False)
            )
            if path:
                parts.append(curve.format(path, kind, s % 6, _dash(s) if kind == "curve" else ""))
    return _svg(bottom + 34, title, description, parts)


def dot_chart(
    title: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[Dot]]],
    series: Sequence[str],
    x_name: str,
) -> Markup:
    """One band per row, its label above it, one dot with its interval per series; a line marks 0.
    Raises ValueError where there is no value at all.
    """
    values = [bound for _, dots in rows for dot in dots for bound in (dot.low, dot.high)]
    if not values:
        raise ValueError("no values to draw")
    parts, top = (
        _legend(list(zip(series, range(len(series)), strict=True)), 14, lines=False)
        if len(series) > 1
        else ([], 4.0)
    )
    left, right = 12.0, WIDTH - 12.0
    xs = ticks(min(0.0, *values), max(0.0, *values))

    def place(value: float) -> float:
        return left + (right - left) * (value - xs[0]) / (xs[-1] - xs[0])

    heights = [20 + 13 * max(1, len(dots)) for _, dots in rows]
    bottom = top + sum(heights) + 4
    for tick in xs:
        parts.append(_rule(place(tick), top, place(tick), bottom, "zero" if tick == 0 else "grid"))
        anchor = "start" if tick == xs[0] else "end" if tick == xs[-1] else "middle"
        parts.append(_text(place(tick), bottom + 14, _number(tick), anchor))
    y = top
    for (name, dots), height in zip(rows, heights, strict=True):
        parts.append(_text(left + 4, y + 14, name, kind="row"))
        for i, dot in enumerate(dots):
            line = y + 24 + 13 * i
            parts.append(
                _rule(place(dot.low), line, place(dot.high), line, f"range s{dot.series % 6}")
            )
            parts.append(marker(dot.series, place(dot.value), line))
        y += height
    parts.append(_text(right, bottom + 28, x_name, "end", "axis"))
    return _svg(bottom + 34, title, description, parts)


def bar_chart(title: str, bars: Sequence[tuple[str, int]]) -> Markup:
    """One horizontal bar per (name, count), in the given order, its count written at its end."""
    most = max((count for _, count in bars), default=0) or 1
    longest = WIDTH - _NAMES - 60  # leaves place for the count
    parts: list[Markup] = []
    bar = Markup('<rect x="{}" y="{}" width="{:.1f}" height="16" class="mark s0"/>')
    for place, (name, count) in enumerate(bars):
        y, width = _BAR * place, longest * count / most
        parts.append(_text(_NAMES - 6, y + 15, name[:22], "end"))
        parts.append(bar.format(_NAMES, y + 3, width))
        parts.append(_text(_NAMES + width + 4, y + 15, f"{count:,}"))
    description = ", ".join(f"{name} {count}" for name, count in bars)
    return _svg(_BAR * len(bars), title, description, parts)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred running mean; the window narrows at both ends."""
    half = window // 2
    return [
        sum(values[max(0, i - half) : i + half + 1]) / len(values[max(0, i - half) : i + half + 1])
        for i in range(len(values))
    ]
