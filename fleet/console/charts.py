"""Charts that the server draws: quality over size, as coordinates for an SVG. Pure.

Sizes are on a logarithmic axis, for a class's choices span a factor of ten; quality is linear,
from somewhat below the floor up to 1, because what lies far below it is of no interest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["chosen", "planned", "ready", "rejected"]
_STEPS = (1.0, 2.0, 3.0, 5.0)
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 34  # pixels around the plot
_LABEL = 120  # pixels that the storage budget's label takes
_SHOWN_BELOW = 3.0  # times the loss that the floor allows
_NEAR = 1.7  # a budget this many times off is still in the picture


@dataclass(frozen=True)
class Mark:
    """A build in the chart: what the class has, what its plan expects, or another one measured."""

    kind: Kind
    size_bytes: int
    quality: float
    title: str


@dataclass(frozen=True)
class Tick:
    at: str
    label: str


@dataclass(frozen=True)
class Place:
    x: str
    y: str
    kind: str
    title: str


@dataclass(frozen=True)
class Chart:
    """An SVG's parts; all coordinates are pixels as text."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    xticks: list[Tick]
    yticks: list[Tick]
    line: str  # a polyline's points
    points: list[Place]
    marks: list[Place]
    floor: str  # y, "" where it is not shown
    storage: str  # x, "" where it is not shown
    storage_side: str  # of the line on which its label has room: "start" or "end" of the text is there


def front_chart(
    front: Sequence[dict[str, Any]],
    marks: Sequence[Mark],
    *,
    floor: float,
    storage_bytes: int,
    width: int,
    height: int,
) -> Chart | None:
    """The chart of a Pareto front, or None where there is nothing to draw.

    Args:
        front: points as the registry stores them (quantize_worker.contract.ParetoPoint).
        width, height: of the whole picture in pixels.
    """
    sizes = [point["size_bytes"] for point in front] + [mark.size_bytes for mark in marks]
    if not sizes or min(sizes) <= 0:
        return None
    if min(sizes) / _NEAR <= storage_bytes <= max(sizes) * _NEAR:
        sizes.append(storage_bytes)
    box = _Box(sizes, _lowest(front, marks, floor), width, height)
    shown = [point for point in front if point["quality"] >= box.low]
    storage = box.x(storage_bytes) if min(sizes) <= storage_bytes <= max(sizes) else ""
    return Chart(
        width=width,
        height=height,
        left=_LEFT,
        right=width - _RIGHT,
        top=_TOP,
        bottom=height - _BOTTOM,
        xticks=[Tick(box.x(size), _bytes(size)) for size in _size_ticks(sizes, width)],
        yticks=[Tick(box.y(value), label) for value, label in _quality_ticks(box.low)],
        line=" ".join(f"{box.x(p['size_bytes'])},{box.y(p['quality'])}" for p in shown),
        points=[
            Place(box.x(p["size_bytes"]), box.y(p["quality"]), "front", _title(p["size_bytes"], p["quality"]))
            for p in shown
        ],
        marks=[
            Place(box.x(m.size_bytes), box.y(max(m.quality, box.low)), m.kind, m.title)
            for m in sorted(marks, key=lambda mark: mark.kind == "chosen")
        ],
        floor=box.y(floor) if box.low < floor < 1 else "",
        storage=storage,
        storage_side="end" if storage and float(storage) > _LEFT + _LABEL else "start",
    )


class _Box:
    """Figures to pixels."""

    def __init__(self, sizes: Sequence[int], low: float, width: int, height: int) -> None:
        margin = max(math.log(max(sizes) / min(sizes)) * 0.04, 0.02)
        self._start, self._end = math.log(min(sizes)) - margin, math.log(max(sizes)) + margin
        self.low = low
        self._width, self._height = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def x(self, size_bytes: float) -> str:
        share = (math.log(size_bytes) - self._start) / (self._end - self._start)
        return f"{_LEFT + share * self._width:.1f}"

    def y(self, quality: float) -> str:
        share = (min(quality, 1.0) - self.low) / (1.0 - self.low)
        return f"{_TOP + (1.0 - share) * self._height:.1f}"


def _lowest(front: Sequence[dict[str, Any]], marks: Sequence[Mark], floor: float) -> float:
    """Where the quality axis begins: all that is there, but not far below the floor."""
    values = [point["quality"] for point in front] + [mark.quality for mark in marks] + [floor]
    allowed = max(1.0 - floor, 0.002)
    lowest = max(min(values), 1.0 - (1.0 + _SHOWN_BELOW) * allowed)
    lowest = min(lowest, 1.0 - 1e-4)
    return max(0.0, lowest - 0.06 * (1.0 - lowest))


def _size_ticks(sizes: Sequence[int], width: int) -> list[float]:
    """Round sizes in between, as many as have room: evenly spread ones, or steps of decades."""
    low, high, room = min(sizes), max(sizes), max(3, width // 110)
    if high / low < 4:
        step = _round_step((high - low) / room)
        first = math.ceil(low / step)
        return [step * i for i in range(first, int(high / step) + 1)] or [float(low)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in _STEPS]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks[:: math.ceil(len(ticks) / room)]


def _round_step(raw: float) -> float:
    """The next of 1, 2, 5, 10, 20, … that is not below ``raw``."""
    power = 10.0 ** math.floor(math.log10(max(raw, 1e-12)))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))


def _quality_ticks(low: float) -> list[tuple[float, str]]:
    """Four to eight round values up to 1, with the digits that tell them apart."""
    step = _round_step((1.0 - low) / 5)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    count = int((1.0 - low) / step + 1e-9)
    return [(1.0 - i * step, f"{1.0 - i * step:.{digits}f}") for i in range(count + 1)]


def _bytes(size_bytes: float) -> str:
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= length:
            return f"{size_bytes / length:g} {unit}"
    return f"{size_bytes:g} B"


def _title(size_bytes: float, quality: float) -> str:
    return f"{size_bytes / 1e6:.2f} MB, quality {quality:.4f}"
