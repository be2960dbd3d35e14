"""Per-column factors that make activations easier to round, and their range; NumPy only.

Activations of transformers have a few columns far larger than the others, which stretch the range
that all columns share. Dividing each column by a factor, and multiplying the weight's column by it,
leaves the product as it is (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438). The factor is
``max|x| ** a / max|w| ** (1 - a)``; the exponent with the least predicted error wins, per activation.

Ranges are not narrowed: on all-MiniLM the range with the least squared error of the tensor cuts
off the few tokens with massive activations, and brings the model to 0.80 cosine of itself; the full
one to 0.993, smoothed to 0.998.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
EXPONENTS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MINIMUM_GAIN = 0.1  # share of the error that a factor must save to be worth its multiplication
SMALLEST_SHARE = 1e-4  # of the largest column; below, a column counts as this large
PROBED_ROWS = 256  # of a weight, spread evenly over it
WEIGHT_STEPS = 127


class Columns(Protocol):
    """What must be known of an activation; see :class:`quantize_worker.steps.statistics.Activation`.

    ``low`` is never above 0, ``high`` never below. Columns' own ends are (columns,), or None; the padded
    ones include rows of padding.
    """

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def column_low(self) -> Any: ...
    @property
    def column_high(self) -> Any: ...
    @property
    def padded_low(self) -> Any: ...
    @property
    def padded_high(self) -> Any: ...
    def mean_squares(self) -> Any: ...


@dataclass(frozen=True)
class Smoothing:
    """``factors``: (in,), by which activation columns are divided; None: as they are.

    ``low`` and ``high`` is the range of the divided activation.
    """

    factors: Floats | None
    low: float
    high: float


def choose(
    matrices: Sequence[Floats], activation: Columns, *, levels: int, padded: bool = False
) -> Smoothing:
    """The factors with the least predicted error of the products, or none.

    Args:
        matrices: weights (out, in) of all layers that read the activation in this format.
        activation: what calibration saw.
        levels: steps of the rounded activation, 256 or 65,536.
        padded: rows of padding count too: they stretch the range of a run that finds its own.
    """
    plain = Smoothing(None, activation.low, activation.high)
    low, high, squares = activation.column_low, activation.column_high, activation.mean_squares()
    if padded and activation.padded_low is not None:
        low, high = activation.padded_low, activation.padded_high
    if low is None or high is None or squares is None or not matrices:
        return plain
    rows = np.concatenate([_some(matrix) for matrix in matrices])
    if rows.shape[1] != len(low):
        return plain
    low, high = np.minimum(low, 0.0).astype(np.float64), np.maximum(high, 0.0).astype(np.float64)
    problem = _Problem(low, high, squares, rows, levels)
    best = min(problem.factors(), key=problem.error)
    if problem.error(best) > (1.0 - MINIMUM_GAIN) * problem.error(np.ones_like(best)):
        return plain
    rounded = best.astype(np.float32)
    return Smoothing(rounded, float((low / rounded).min()), float((high / rounded).max()))


class _Problem:
    """Predicts the squared error of products, from column statistics and rows of the weight."""

    def __init__(self, low: Doubles, high: Doubles, squares: Doubles, rows: Floats, levels: int) -> None:
        self._low, self._high, self._squares, self._levels = low, high, squares, levels
        self._rows = np.abs(rows).astype(np.float64)
        self._energy = np.square(self._rows).sum(axis=0)  # (in,)

    def factors(self) -> list[Doubles]:
        """One candidate per exponent; their geometric mean is 1."""
        reach = _floored(np.maximum(-self._low, self._high))
        weight = _floored(self._rows.max(axis=0))
        found = []
        for exponent in EXPONENTS:
            logs = exponent * np.log(reach) - (1.0 - exponent) * np.log(weight)
            found.append(np.exp(logs - logs.mean()))
        return found

    def error(self, factors: Doubles) -> float:
        """Rounding noise of step² / 12 on every column, of the activation and of the weight."""
        step = ((self._high / factors).max() - (self._low / factors).min()) / (self._levels - 1)
        of_activation = step**2 / 12.0 * (np.square(factors) * self._energy).sum()
        steps = (self._rows * factors).max(axis=1) / WEIGHT_STEPS  # (out,)
        of_weight = np.square(steps).sum() / 12.0 * (self._squares / np.square(factors)).sum()
        return float(of_activation + of_weight)


def _some(matrix: Floats) -> Floats:
    if len(matrix) <= PROBED_ROWS:
        return np.asarray(matrix)
    chosen = np.linspace(0, len(matrix) - 1, PROBED_ROWS).round().astype(int)
    rows: Floats = matrix[chosen]
    return rows


def _floored(values: Doubles) -> Doubles:
    largest = float(values.max(initial=0.0))
    return np.maximum(values, largest * SMALLEST_SHARE if largest else 1.0)
