"""The report's plots as inline SVG. Pure; coordinates are pixels of the view box."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantize_worker.contract import ParetoPoint
from quantize_worker.planning.words import in_bytes
from quantize_worker.report.markup import text

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 34
SHOWN_BELOW = 3.0  # times the loss that the floor allows; what lies lower is of no use
COLOURS = {  # of formats, by the beginning of their names
    "fp32": "#8a93a3",
    "fp16": "#b79bd6",
    "int8-dynamic": "#2f7fd1",
    "int8-qdq16": "#1d9a8a",
    "int8-qdq": "#57b8a9",
    "int8-stored": "#8fb4dd",
    "int8": "#5f9fe0",
    "int4-b16": "#c8541b",
    "int4-b32": "#e8833a",
    "int4-b128": "#f3b067",
    "int4": "#e8833a",
}
LEAST_LOSS = 1e-6  # what is less is drawn as if it were this
LEAST_SPREAD, LEAST_SPREAD_OF_SIZES = 3.0, 1.5  # of an axis, as a ratio
_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
_TICKS = 6


@dataclass(frozen=True)
class Mark:
    """A build in the plot. ``kind``: "planned", "rejected" or "accepted"."""

    kind: str
    size_bytes: int
    quality: float
    title: str


class _Axes:
    """Size against loss (1 - quality), both logarithmic: what is near FP32 is told apart too."""

    def __init__(self, sizes: Sequence[float], losses: Sequence[float]) -> None:
        self.left, self.right = _range(sizes, LEAST_SPREAD_OF_SIZES)
        self.top, self.bottom = _range([min(max(loss, LEAST_LOSS), 1.0) for loss in losses], LEAST_SPREAD)

    def x(self, size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log(size) - self.left) / (self.right - self.left)

    def y(self, quality: float) -> float:
        loss = math.log(min(max(1.0 - quality, LEAST_LOSS), 1.0)) if math.isfinite(quality) else self.bottom
        share = (min(max(loss, self.top), self.bottom) - self.top) / (self.bottom - self.top)
        return TOP + (HEIGHT - TOP - BOTTOM) * share


def _range(values: Sequence[float], least: float) -> tuple[float, float]:
    """Logarithms of the ends of an axis, with a margin."""
    low, high = math.log(min(values)), math.log(max(values))
    margin = max(0.05 * (high - low), (math.log(least) - (high - low)) / 2)
    return low - margin, high + margin


def front(points: Sequence[ParetoPoint], marks: Sequence[Mark], *, floor: float, storage_bytes: int) -> str:
    """Quality over size: the Pareto front as a line, builds as marks; "" where there is nothing to draw.

    Args:
        points: the front, smallest first.
        marks: builds, those to lie on top last.
        floor: the class's quality floor; what lies far below it is left out.
        storage_bytes: the class's budget, drawn where it is near.
    """
    lowest = 1.0 - SHOWN_BELOW * (1.0 - floor)
    points = [point for point in points if point.quality >= lowest]
    sizes = [
        float(size) for size in (*(p.size_bytes for p in points), *(m.size_bytes for m in marks)) if size > 0
    ]
    if not sizes:
        return ""
    if min(sizes) / 2 < storage_bytes < max(sizes) * 2:
        sizes.append(float(storage_bytes))
    qualities = [*(point.quality for point in points), *(mark.quality for mark in marks)]
    shown = [quality for quality in qualities if quality >= lowest]
    axes = _Axes(sizes, [1.0 - quality for quality in (*shown, floor)])
    parts = [*_grid(axes), *_limits(axes, floor, storage_bytes), *_line(axes, points)]
    parts += [_marker(axes, mark) for mark in marks if mark.size_bytes > 0]
    return _svg("Quality over size", HEIGHT, parts)


def _grid(axes: _Axes) -> Iterator[str]:
    for size in _round(axes.left, axes.right):
        x = axes.x(size)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 13}" text-anchor="middle">{text(in_bytes(size))}</text>'
    for loss in _round(axes.top, axes.bottom):
        y = axes.y(1.0 - loss)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{1.0 - loss:.6g}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">size of the build</text>'


def _round(start: float, end: float) -> list[float]:
    """Round figures between two logarithms, so few that their labels have room."""
    low, high = math.exp(start), math.exp(end)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (_STEPS, (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        found = [step * 10.0**power for power in powers for step in steps]
        inside = [value for value in found if low <= value <= high]
        if len(inside) <= _TICKS:
            break
    return inside


def _limits(axes: _Axes, floor: float, storage_bytes: int) -> Iterator[str]:
    if math.exp(axes.top) < 1.0 - floor < math.exp(axes.bottom):
        y = axes.y(floor)
        yield f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="limit" x="{WIDTH - RIGHT - 2}" y="{y - 4:.1f}" text-anchor="end">floor {floor:g}</text>'
    if axes.left <= math.log(storage_bytes) <= axes.right:
        x = axes.x(storage_bytes)
        side, offset = ("end", -4) if x > WIDTH / 2 else ("start", 4)
        yield f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield (
            f'<text class="limit" x="{x + offset:.1f}" y="{TOP + 8}" text-anchor="{side}">'
            f"storage {text(in_bytes(storage_bytes))}</text>"
        )


def _line(axes: _Axes, points: Sequence[ParetoPoint]) -> Iterator[str]:
    places = [(axes.x(point.size_bytes), axes.y(point.quality)) for point in points]
    if len(places) > 1:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline class="front" points="{joined}"/>'
    for (x, y), point in zip(places, points, strict=True):
        title = text(f"{in_bytes(point.size_bytes)}, quality {point.quality:.4f}")
        yield f'<circle class="front" cx="{x:.1f}" cy="{y:.1f}" r="2"><title>{title}</title></circle>'


def _marker(axes: _Axes, mark: Mark) -> str:
    x, y, title = axes.x(mark.size_bytes), axes.y(mark.quality), f"<title>{text(mark.title)}</title>"
    if mark.kind == "rejected":
        path = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        return f'<path class="mark rejected" d="{path}">{title}</path>'
    return f'<circle class="mark {text(mark.kind)}" cx="{x:.1f}" cy="{y:.1f}" r="5">{title}</circle>'


def colour(name: str) -> str:
    """A format's colour: of the longest beginning that is known."""
    known = [start for start in COLOURS if name.startswith(start)]
    return COLOURS[max(known, key=len)] if known else COLOURS["fp32"]


def stacked(shares: Mapping[str, float]) -> str:
    """Formats side by side, as wide as their share of the weights."""
    parts, start = [], 0.0
    for name, share in shares.items():
        width = WIDTH * share
        title = text(f"{name}: {100 * share:.1f} % of the weights")
        parts.append(
            f'<rect x="{start:.2f}" y="0" width="{width:.2f}" height="16" fill="{colour(name)}">'
            f"<title>{title}</title></rect>"
        )
        start += width
    return _svg("Share of the weights per format", 16, parts)


def legend(shares: Mapping[str, float]) -> str:
    """The formats of :func:`stacked` in words."""
    return (
        '<p class="legend">'
        + "".join(
            f'<span><i style="background:{colour(name)}"></i>{text(name)} {_percent(share)}</span>'
            for name, share in shares.items()
        )
        + "</p>"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "under 1 %"


def ratios(rows: Sequence[tuple[str, float]]) -> str:
    """How far measured figures lie from predicted ones, as dots on a logarithmic scale around "equal".

    Args:
        rows: a figure's name, and measured over predicted; those that are not above 0 are left out.
    """
    rows = [(name, ratio) for name, ratio in rows if math.isfinite(ratio) and ratio > 0]
    if not rows:
        return ""
    reach = max(math.log(2.0), *(abs(math.log(ratio)) for _, ratio in rows)) * 1.15
    left, middle = 62, (62 + WIDTH - 66) / 2
    scale = (WIDTH - 66 - left) / 2 / reach
    height = 20 * len(rows) + 18
    parts = [f'<line class="limit" x1="{middle:.1f}" x2="{middle:.1f}" y1="4" y2="{height - 16}"/>']
    parts.append(
        f'<text x="{middle:.1f}" y="{height - 4}" text-anchor="middle">measured / predicted: equal</text>'
    )
    for index, (name, ratio) in enumerate(rows):
        y, x = 14 + 20 * index, middle + scale * math.log(ratio)
        parts += [
            f'<text x="0" y="{y + 3}">{text(name)}</text>',
            f'<line class="grid" x1="{left}" x2="{WIDTH - 66}" y1="{y}" y2="{y}"/>',
            f'<line class="front" x1="{middle:.1f}" x2="{x:.1f}" y1="{y}" y2="{y}"/>',
            f'<circle class="mark accepted" cx="{x:.1f}" cy="{y}" r="4"/>',
            f'<text x="{WIDTH}" y="{y + 3}" text-anchor="end">{ratio:.3g}</text>',
        ]
    return _svg("Measured over predicted", height, parts)


def _svg(label: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text(label)}">'
        + "".join(parts)
        + "</svg>"
    )
