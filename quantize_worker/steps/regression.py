"""One layer learned: from what it meets and what FP32 would have met, a weight and its rounding.

``min ‖X̂ Ŵ - X W‖²``: the unrounded minimum first, by ridge regression, then error feedback and cyclic
coordinate descent over values and scales towards it (:mod:`quantize_worker.steps.gptq`). Every sample
counts the same, however many rows it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from quantize_worker.formats import Format
from quantize_worker.steps import candidates
from quantize_worker.steps.candidates import Blocks, make_all
from quantize_worker.steps.course import Pair
from quantize_worker.steps.gptq import Metric, metric
from quantize_worker.steps.moments import spans

Floats = NDArray[np.float32]
RIDGE = 0.3  # of the mean square, in the regression; this and the following tuned on all-MiniLM
DAMPING = 0.12  # of the mean square, in what errors of columns cost together
PASSES = 8  # of coordinate descent
ROWS = 1024  # multiplied at once
_TINY = 1e-30


@dataclass(frozen=True)
class View:
    """What a layer's inputs are like: the samples, and their second moments prepared."""

    pairs: list[Pair]
    factors: list[Any]  # Cholesky factors of the damped moments, per diagonal block
    metrics: list[Metric]


def view_of(pairs: list[Pair]) -> View | None:
    """Prepare inputs; None where they are all zero, or not finite."""
    sums = _moments([found for _, found in pairs])
    metrics = _metrics(sums, DAMPING)
    if metrics is None:
        return None
    factors = [linalg.cho_factor(_damped(total), lower=True, overwrite_a=True) for total in sums]
    return View(pairs, factors, metrics)


def learned(weight: Floats, form: Format, view: View) -> Blocks:
    """A weight, (out, in), in a format, such that its output comes close to FP32's."""
    return make_all(_moved(weight, view), [form], view.metrics, passes=PASSES)[0]


def unlearned(weight: Floats, form: Format, pairs: Sequence[Pair]) -> Blocks:
    """The weight rounded as the analysis does it: to FP32's own inputs."""
    metrics = _metrics(_moments([exact for exact, _ in pairs]), candidates.DAMPING)
    return make_all(weight, [form], metrics)[0]


def relative_error(weight: Floats, restored: Floats, pairs: Sequence[Pair]) -> float:
    """‖X̂ Ŵ - X W‖² / ‖X W‖²."""
    error = total = 0.0
    for exact, found in _stacked(pairs):
        wanted = exact @ weight.T
        error += float(np.square(found @ restored.T - wanted, dtype=np.float64).sum())
        total += float(np.square(wanted, dtype=np.float64).sum())
    return error / max(total, _TINY)


def _moved(weight: Floats, view: View) -> Floats:
    """The unrounded minimum: W + (X̂ᵀX̂ + λ)⁻¹ X̂ᵀ(X - X̂) W."""
    upright = np.array(weight.T, np.float32, order="C")
    slope = np.zeros_like(upright)
    for exact, found in _stacked(view.pairs):
        slope += found.T @ ((exact - found) @ weight.T)
    for span, factor in zip(spans(len(upright)), view.factors, strict=True):
        upright[span] += linalg.cho_solve(factor, slope[span])
    return np.ascontiguousarray(upright.T)


def _moments(rows: Sequence[Floats]) -> list[Floats]:
    """Mean of xᵀx as diagonal blocks."""
    parts = spans(rows[0].shape[1])
    sums = [np.zeros((part.stop - part.start,) * 2, np.float32) for part in parts]
    for _, found in _stacked([(each, each) for each in rows]):
        for total, part in zip(sums, parts, strict=True):
            total += found[:, part].T @ found[:, part]
    return sums


def _metrics(moments: Sequence[Floats], damping: float) -> list[Metric] | None:
    found = [metric(block, damping) for block in moments]
    return None if any(one is None for one in found) else [one for one in found if one is not None]


def _damped(moments: Floats) -> NDArray[np.float64]:
    found = moments.astype(np.float64)
    found[np.diag_indices_from(found)] += RIDGE * float(np.mean(np.diag(found)))
    return found


def _stacked(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Rows of several samples together, scaled so that every sample counts the same."""
    held: list[Pair] = []
    for exact, found in pairs:
        if len(found):
            factor = np.float32(1 / np.sqrt(len(found) * len(pairs)))
            held.append((exact * factor, found * factor))
        if sum(len(rows) for _, rows in held) >= ROWS:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(held: Sequence[Pair]) -> Pair:
    return np.concatenate([exact for exact, _ in held]), np.concatenate([found for _, found in held])
