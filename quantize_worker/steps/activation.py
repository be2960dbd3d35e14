"""What calibration saw of one tensor. How it is collected: :mod:`quantize_worker.steps.statistics`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantize_worker.steps import moments
from quantize_worker.steps.histogram import Histogram

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
# Sums of second moments: of most samples, of the others, and of variations of the former and of all.
MOST, REST, VARIED, MIXED = "most", "rest", "varied", "mixed"
REAL = (MOST, REST)
VARIED_SHARE = 0.65  # of the second moments that rounding fits, where there are variations


@dataclass
class Activation:
    """Statistics of one tensor.

    Args:
        low, high: its range over all samples, widened to hold zero.
        column_low, column_high: the same per column (the last axis; channels of a Conv's input).
        padded_low, padded_high: the same with rows of padding, which a run's own range includes.
        squares: mean square per column.
        peaks: per width of blocks of columns, the mean square of each block's largest value in a row.
        run_span: root of the mean over runs of the squared width of the run's own range.
        rows: mean rows in a sample, padding included.
        relevant: rows in all samples, without padding.
        shape: in the first sample.
        histogram: of the tensor's values.
        stem: where its second moments are, without the ends of the files' names.
        shares: of all samples that are in each sum of second moments.
    """

    low: float = 0.0
    high: float = 0.0
    column_low: Floats | None = None
    column_high: Floats | None = None
    padded_low: Floats | None = None
    padded_high: Floats | None = None
    squares: Doubles | None = None
    peaks: dict[int, Doubles] = field(default_factory=dict)
    run_span: float = 0.0
    rows: float = 0.0
    relevant: int = 0
    shape: tuple[int, ...] = ()
    histogram: Histogram = field(default_factory=Histogram)
    stem: Path | None = None
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def run_share(self) -> float:
        """Width of a run's own range over that of all runs together, padding included; at most 1."""
        if self.padded_low is None or self.padded_high is None:
            return 1.0
        whole = max(0.0, float(self.padded_high.max())) - min(0.0, float(self.padded_low.min()))
        return min(1.0, self.run_span / whole) if whole > 0 else 1.0

    def best_range(self, levels: int) -> tuple[float, float]:
        """The range whose rounding to ``levels`` steps loses the least squared error of the tensor."""
        return self.histogram.best_range(self.low, self.high, levels)

    def mean_squares(self) -> Doubles | None:
        """(columns,)"""
        return self.squares

    def importance(self) -> Floats | None:
        """Mean square per column, scaled to a mean of 1; None where it says nothing."""
        if self.squares is None or not self.squares.any():
            return None
        shares: Floats = np.maximum(self.squares / self.squares.mean(), 1e-3).astype(np.float32)
        return shares

    def moments(self, part: str = "") -> list[Floats] | None:
        """Mean of xᵀx as diagonal blocks, (width, width) each; None where it was not kept.

        Args:
            part: :data:`MOST` or :data:`REST`; "" is what rounding should fit: all samples and
                variations; "seen" is all samples; "fit" is most samples and their variations.
        """
        weights = self._weights(part)
        sums = {name: self._sum(name) for name in weights}
        if not weights or any(found is None for found in sums.values()):
            return None
        blocks = [zip(weights.values(), parts, strict=True) for parts in zip(*sums.values(), strict=True)]
        return [_weighted(list(block)) for block in blocks]

    def gram(self) -> Floats | None:
        """(columns, columns): what rounding should fit; None where it was not kept or is in blocks."""
        found = self.moments()
        return found[0] if found is not None and len(found) == 1 else None

    def _weights(self, part: str) -> dict[str, float]:
        """What each sum counts."""
        real, varied = {"fit": ((MOST,), (VARIED,)), "seen": (REAL, ()), "": (REAL, (VARIED, MIXED))}.get(
            part, ((part,), ())
        )
        shares = self.shares
        extra = sum(shares.get(name, 0.0) for name in varied)
        own = sum(shares.get(name, 0.0) for name in real)
        if not own:
            return {}
        for_varied = VARIED_SHARE if extra else 0.0
        weights = {name: (1.0 - for_varied) * shares[name] / own for name in real if name in shares}
        weights.update((name, for_varied * shares[name] / extra) for name in varied if name in shares)
        return weights

    def _sum(self, part: str) -> list[Floats] | None:
        if self.stem is None or self.squares is None:
            return None
        return moments.read(self.stem.with_name(f"{self.stem.name}.{part}"), len(self.squares))


def _weighted(parts: list[tuple[float, Floats]]) -> Floats:
    (weight, first), *others = parts
    total: Floats = np.multiply(first, np.float32(weight)) if others or weight != 1.0 else first
    for weight, other in others:
        total += np.float32(weight) * other
    return total
