"""A histogram whose range grows with what it is given, so that one pass over the data is enough."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
HALF_BINS = 2048  # on each side of zero
SAMPLED = 1 << 13  # values counted of an array, spread evenly over it
RANGE_STEPS = 64
_SMALLEST = 2.0**-100


class Histogram:
    """Counts of values in bins of one width, a power of two, with an edge at zero.

    If a value lies outside, bins are merged in pairs until it fits.

    Args:
        width: of a bin; 0 before anything was counted.
        counts: (2 * HALF_BINS,)
    """

    def __init__(self, width: float = 0.0, counts: Doubles | None = None) -> None:
        self.width = width
        self.counts: Doubles = np.zeros(2 * HALF_BINS) if counts is None else counts

    def add(self, values: NDArray[Any]) -> None:
        """Count finite values, at most :data:`SAMPLED` of them."""
        flat = values.reshape(-1)
        flat = flat[:: max(1, len(flat) // SAMPLED)]
        largest = float(np.abs(flat).max(initial=0.0))
        self._widen(max(largest, _SMALLEST))
        places = np.floor(flat.astype(np.float64) / self.width).astype(np.int64) + HALF_BINS
        self.counts += np.bincount(places.clip(0, 2 * HALF_BINS - 1), minlength=2 * HALF_BINS)

    def best_range(self, low: float, high: float, levels: int) -> tuple[float, float]:
        """The range within ``low`` and ``high`` whose rounding to ``levels`` steps loses least.

        Both ends are narrowed in steps; what lies outside is clipped. The loss is the squared error
        over all values: it may cut off few but large ones that matter more than their number.
        """
        if not self.width or high <= low:
            return low, high
        centres: Doubles = (np.arange(-HALF_BINS, HALF_BINS, dtype=np.float64) + 0.5) * self.width
        best_low, best_high = low, high
        for _ in range(2):
            best_low = min(_ends(low), key=lambda end: self._loss(centres, end, best_high, levels))
            best_high = min(_ends(high), key=lambda end: self._loss(centres, best_low, end, levels))
        return best_low, best_high

    def _loss(self, centres: Doubles, low: float, high: float, levels: int) -> float:
        """Squared rounding error (step² / 12 inside) plus squared clipping error."""
        clipped = centres - np.clip(centres, low, high)
        step = (high - low) / (levels - 1)
        inside = self.counts[clipped == 0].sum()
        return float((self.counts * np.square(clipped)).sum() + inside * step * step / 12.0)

    def _widen(self, largest: float) -> None:
        needed = 2.0 ** math.ceil(math.log2(largest / HALF_BINS * (1 + 1e-9)))
        if not self.width:
            self.width = needed
        while self.width < needed:
            paired = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[HALF_BINS // 2 : HALF_BINS // 2 + HALF_BINS] = paired
            self.width *= 2.0


def _ends(end: float) -> list[float]:
    """The end of a range and others nearer to zero."""
    return [float(end * share) for share in np.linspace(1.0, 0.1, RANGE_STEPS)]
