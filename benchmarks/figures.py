"""Figures of a benchmark: a value, its goal, and whether it holds; as a table and as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured value. The unit is part of the name.

    Args:
        name: what was measured, e.g. ``seconds`` or ``peak_rss_mb/web``.
        value: the measurement.
        goal: the bound that was set before measuring.
        better: ``higher`` means that ``value >= goal`` holds, ``lower`` that ``value <= goal`` does.
        against: what it is compared with, in words: a floor, a peer with its version, a requirement.
    """

    name: str
    value: float
    goal: float
    better: Literal["higher", "lower"]
    against: str

    @property
    def holds(self) -> bool:
        return self.value >= self.goal if self.better == "higher" else self.value <= self.goal


def json_line(benchmark: str, figures: list[Figure]) -> str:
    """The last line of a run: one JSON object without a line break."""
    return json.dumps(
        {
            "benchmark": benchmark,
            "figures": [
                {
                    "name": figure.name,
                    "value": figure.value,
                    "goal": figure.goal,
                    "better": figure.better,
                    "against": figure.against,
                    "holds": figure.holds,
                }
                for figure in figures
            ],
        }
    )


def table(figures: list[Figure]) -> str:
    """The figures for people, one row each."""
    header = ("figure", "value", "goal", "holds", "against")
    rows = [
        (
            figure.name,
            f"{figure.value:,.6g}",
            f"{'>=' if figure.better == 'higher' else '<='} {figure.goal:,.6g}",
            "yes" if figure.holds else "NO",
            figure.against,
        )
        for figure in figures
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, tuple("-" * width for width in widths), *rows]
    ]
    return "\n".join(lines)
