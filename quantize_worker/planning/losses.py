"""How single losses add up: per precision a law, all at the size of the whole disturbance.

A layer's loss is what the model loses if that layer alone takes a format. Several together lose
more than their sum below five bits. ``inspect`` fits a law ``factor * sum ** power`` per precision
on whole models in one precision. In a mix the disturbances of all layers meet in the same
activations, so what a unit of single loss is worth depends on the total, not on its own kind's
share: ``loss = sum over p of sums[p] * factor[p] * total ** (power[p] - 1)``. A model in one
precision gets its own law exactly; a little of another precision changes little; and for a given
total the loss is linear in the choices, which a knapsack needs.

Outside the fitted range a law goes on in proportion: a power fitted on two points says nothing far
away from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import PRECISIONS, Interaction, Precision

Floats = NDArray[np.float64]

KINDS = len(PRECISIONS)
INDEX: dict[Precision, int] = {name: index for index, name in enumerate(PRECISIONS)}
FITTED_RANGE = 4.0  # a law holds this many times beyond the sums that it was fitted on
SMALLEST_LOSS = 1e-6  # below, a measured cosine is rounding noise
LARGEST_CORRECTION = 20.0


@dataclass(frozen=True)
class Disturbance:
    """Single losses of a recipe: summed per precision, and of products of two activations."""

    sums: Floats  # (precisions,)
    products: float = 0.0
    products_kind: int = 0  # precision of the products

    @property
    def total(self) -> float:
        return float(self.sums.sum())


@dataclass(frozen=True)
class Losses:
    """The laws of all precisions, as fitted and as corrected by builds that were measured.

    Args:
        factor, power: (precisions,).
        low, high: the range of sums in which each law holds, (precisions,).
        correction: measured over predicted, (precisions,).
    """

    factor: Floats
    power: Floats
    low: Floats
    high: Floats
    correction: Floats = field(default_factory=lambda: np.ones(KINDS))

    @classmethod
    def fitted(cls, interaction: dict[str, Interaction]) -> Losses:
        """The laws that an inspection found; a precision without one just adds up."""
        laws = [interaction.get(name, Interaction()) for name in PRECISIONS]
        sums = [[single for single, _ in law.points if single > 0] for law in laws]
        return cls(
            factor=np.array([law.factor for law in laws]),
            power=np.array([law.power for law in laws]),
            low=np.array([min(points, default=0.0) / FITTED_RANGE for points in sums]),
            high=np.array([max(points, default=math.inf) * FITTED_RANGE for points in sums]),
        )

    def rates(self, total: float | Floats) -> Floats:
        """What a unit of single loss costs in each precision where all together are ``total``.

        Args:
            total: a number or (recipes,).

        Returns:
            (precisions,) or (recipes, precisions).
        """
        within = np.clip(np.asarray(total, dtype=np.float64)[..., None], 1e-12, None)
        within = np.clip(within, self.low, self.high)
        rates: Floats = self.correction * self.factor * within ** (self.power - 1.0)
        return rates

    def whole(self, disturbance: Disturbance) -> float:
        """1 - cosine of the whole model."""
        together = float(self.rates(disturbance.total) @ disturbance.sums)
        products = disturbance.products * float(self.correction[disturbance.products_kind])
        return min(1.0, together + products)

    def corrected(self, measured: Iterable[tuple[Disturbance, float]]) -> Losses:
        """Laws that agree better with what builds lost.

        What a build lost over what was predicted is put down to its precisions, in full to those
        with half of the predicted loss or more. Several builds are averaged (of logarithms).

        Args:
            measured: what disturbed each build, and 1 - cosine that was measured.
        """
        shares, logs = [], []
        for disturbance, loss in measured:
            parts = self._parts(disturbance)
            if parts.sum() > 0:
                shares.append(np.minimum(1.0, 2.0 * parts / parts.sum()))
                logs.append(_log_ratio(loss, float(parts.sum())))
        if not shares:
            return self
        weights = np.array(shares)
        correction = np.exp((weights.T @ np.array(logs)) / np.maximum(1.0, weights.sum(axis=0)))
        return Losses(self.factor, self.power, self.low, self.high, self.correction * correction)

    def total_for(self, loss: float) -> Floats:
        """The sum of single losses at which a model in one precision loses ``loss``, (precisions,)."""
        scale = self.correction * self.factor
        total = (loss / scale) ** (1.0 / self.power)
        within = np.clip(total, self.low, self.high)
        totals: Floats = np.where(within == total, total, loss / (scale * within ** (self.power - 1.0)))
        return totals

    def _parts(self, disturbance: Disturbance) -> Floats:
        parts: Floats = self.rates(disturbance.total) * disturbance.sums
        parts[disturbance.products_kind] += disturbance.products * self.correction[disturbance.products_kind]
        return parts


def _log_ratio(measured: float, predicted: float) -> float:
    ratio = max(measured, SMALLEST_LOSS) / max(predicted, SMALLEST_LOSS)
    return math.log(min(LARGEST_CORRECTION, max(1 / LARGEST_CORRECTION, ratio)))
