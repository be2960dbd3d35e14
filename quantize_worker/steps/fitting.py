"""How closely rounding may fit the calibration samples: judged on samples left out.

Rounding that spreads its errors fits the second moments of the samples that it is given. Where those are few
for the columns that a layer has, it fits what is particular to them: then stronger damping, or plain
rounding, is better on any other sample. Some outputs of a layer are rounded to fit most samples, and
judged on the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantize_worker.formats import FORMATS
from quantize_worker.steps.activation import MOST, REST, Activation
from quantize_worker.steps.candidates import DAMPING, make_all, metrics_of
from quantize_worker.steps.gptq import cost
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.moments import spans

Floats = NDArray[np.float32]
ROWS = 96  # outputs of a layer that are tried
TRIED = "int4-b32"
STRONGER = (0.1, 0.5, 3.0)  # damping, where the usual one gains too little
MADE_UP = 0.2  # damping for made-up samples: on all-MiniLM 0.016 is lost instead of 0.021
WORTHWHILE = 0.7  # of plain rounding's error: below, nothing else is tried
USUAL_ROWS = 0.05  # damping per column and row where there is no rest to judge on
GROWTH_PER_COLUMN = 1.5  # and growth: of all-MiniLM's layers
_TINY = 1e-30


@dataclass(frozen=True)
class Fit:
    """How to round a layer.

    Args:
        damping: of its second moments; None: plain rounding is better.
        growth: how much larger its error is on samples that it was not fitted to.
    """

    damping: float | None
    growth: float


PLAIN = Fit(None, 1.0)


def fit(layer: Layer, graph: Graph, activation: Activation | None, *, least: float = DAMPING) -> Fit:
    """Decide for a matrix.

    What rounding gains unduly falls with the number of samples; so a part of it is left when all of
    them are used.

    Args:
        layer: a matrix.
        graph: with its weight.
        activation: what it meets.
        least: damping; more for made-up samples, of which the real ones differ.
    """
    if activation is None or not activation.shares or TRIED not in layer.formats():
        return PLAIN
    most, rest = activation.moments(MOST), activation.moments(REST)
    if most is None or rest is None:
        return _unjudged(layer, activation, least)
    whole = layer.matrix(graph)
    chosen = np.linspace(0, len(whole) - 1, min(ROWS, len(whole))).round().astype(np.intp)
    weight = np.ascontiguousarray(whole[chosen])
    plain = _relative(weight, _rounded(weight, activation, None), rest)
    best: tuple[float, Fit] = (plain, PLAIN)
    share = activation.shares[MOST] / (activation.shares[MOST] + activation.shares[REST])
    for damping in (least, *(one for one in STRONGER if one > least)):
        restored = _rounded(weight, activation, damping)
        error = _relative(weight, restored, rest)
        if error < best[0]:
            ratio = error / max(_relative(weight, restored, most), _TINY)
            best = error, Fit(damping, max(1.0, 1.0 + (ratio - 1.0) * share))
        if best[0] < WORTHWHILE * plain:
            break
    return best[1]


def _unjudged(layer: Layer, activation: Activation, least: float) -> Fit:
    """By the number of rows seen per column."""
    if not activation.relevant:
        return PLAIN
    columns_per_row = layer.columns / activation.relevant
    return Fit(max(least, USUAL_ROWS * columns_per_row), 1.0 + GROWTH_PER_COLUMN * columns_per_row)


def _rounded(weight: Floats, activation: Activation, damping: float | None) -> Floats:
    metrics = None if damping is None else metrics_of(activation, weight.shape[1], "fit", damping=damping)
    return make_all(weight, [FORMATS[TRIED]], metrics, activation.importance())[0].dequantized()


def _relative(weight: Floats, restored: Floats, moments: Sequence[Floats]) -> float:
    return _energy(restored - weight, moments) / max(_energy(weight, moments), _TINY)


def _energy(values: Floats, moments: Sequence[Floats]) -> float:
    upright = np.ascontiguousarray(values.T)
    parts = zip(spans(len(upright)), moments, strict=True)
    return float(sum(cost(upright[span], np.asarray(block)).sum() for span, block in parts))
