"""Rounding that makes up for its own errors, column by column, over the very scales that are stored.

1. GPTQ (Frantar et al. 2022, arXiv 2210.17323): columns are rounded in the order of their importance;
   the error of each is spread over those still to come, weighted by the inverse of the activations'
   second moments, so that the layer's *output* changes least.
2. Coordinate descent (as in QuantEase, Behdin et al. 2023, arXiv 2309.01885): each value in turn takes
   what is best given all others, and so does the code of each block's scale. No step makes it worse.

(ONNX Runtime 1.32's own GPTQ reads the Cholesky factor by columns and thus equals plain rounding.)

Matrices are upright, see :mod:`quantize_worker.steps.grids`. Rows of the weight do not meet each other, so
formats are rounded side by side, as if they were rows of one weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from quantize_worker.steps.grids import MAXIMUM_CODE, Grid, bounds

Floats = NDArray[np.float32]
LAZY_COLUMNS = 32  # errors reach the columns beyond in one product


@dataclass(frozen=True)
class Metric:
    """What errors in the columns of a layer cost together.

    Args:
        moments: (columns, columns), damped; the cost of an error e is eᵀ @ moments @ e.
        order: (columns,), the most important first.
        factor: (columns, columns), in that order: upper U with UᵀU the inverse of the moments, its rows
            divided by their diagonal.
        importance: (columns,), not in order: what an error costs that later columns make up for.
    """

    moments: Floats
    order: NDArray[np.intp]
    factor: Floats
    importance: Floats


def metric(moments: Floats, damping: float) -> Metric | None:
    """Prepare second moments.

    Args:
        moments: (columns, columns), the mean of xᵀx.
        damping: share of the mean diagonal that is added to the diagonal.

    Returns:
        None if they cannot be inverted.
    """
    diagonal = np.diag(moments).astype(np.float64)
    added = damping * float(diagonal.mean())
    if not np.isfinite(added) or added <= 0:
        return None
    order = np.argsort(-diagonal, kind="stable")
    upper = _inverse_factor(moments, order, added)
    if upper is None:
        return None
    pivots = np.diag(upper).copy()
    importance = np.empty(len(order), np.float32)
    importance[order] = 1.0 / np.square(pivots)
    upper /= pivots[:, None]
    damped = np.array(moments, np.float32)
    damped[np.diag_indices_from(damped)] += np.float32(added)
    return Metric(damped, order, upper.astype(np.float32), importance)


def propagate(weight: Floats, grids: Sequence[Grid], metric: Metric) -> list[Floats]:
    """GPTQ for several formats.

    Args:
        weight: (columns, rows), upright.
        grids: one per format, of the columns of the weight.
        metric: of its columns.

    Returns:
        Steps from the zero points, (columns, rows), per format.
    """
    columns = len(weight)
    order, factor = metric.order, metric.factor
    left = np.tile(weight[order], (1, len(grids)))
    scale, low, high = (_expanded(parts, grids, order) for parts in _parts(grids))
    inverse = 1 / scale
    steps = np.empty_like(left)
    work = np.empty(left.shape[1], np.float32)
    errors = np.empty((LAZY_COLUMNS, left.shape[1]), np.float32)
    for begin in range(0, columns, LAZY_COLUMNS):
        end = min(begin + LAZY_COLUMNS, columns)
        for j in range(begin, end):
            step = steps[j]
            np.multiply(left[j], inverse[j], out=step)
            np.rint(step, out=step)
            np.maximum(step, low[j], out=step)
            np.minimum(step, high[j], out=step)
            np.multiply(step, scale[j], out=work)
            error = np.subtract(left[j], work, out=errors[j - begin])
            if j + 1 < end:
                _add_outer(-1.0, factor[j, j + 1 : end], error, left[j + 1 : end])
        if end < columns:
            _add_product(-1.0, factor[begin:end, end:], errors[: end - begin], left[end:])
    unordered = np.empty_like(steps)
    unordered[order] = steps
    return [np.ascontiguousarray(part) for part in np.split(unordered, len(grids), axis=1)]


def descend(weight: Floats, steps: Floats, grid: Grid, metric: Metric, passes: int) -> None:
    """Improve steps and codes in place, by coordinate descent.

    Args:
        weight: (columns, rows), upright.
        steps: from the zero points, of the same shape.
        grid: its codes change too.
        metric: of the columns.
        passes: over all columns.
    """
    if not passes:
        return
    moments, columns, block = metric.moments, len(weight), grid.block
    low, high = bounds(grid)
    errors = steps * np.repeat(grid.scales, block, axis=0)[:columns] - weight
    slopes = moments @ errors  # half the derivative of the cost
    for _ in range(passes):
        for index, begin in enumerate(range(0, columns, block)):
            part = slice(begin, min(begin + block, columns))
            inner = moments[part, part]
            before, slope = errors[part].copy(), slopes[part].copy()
            scale = grid.codes[index] * grid.row_scales
            _descend_steps(
                weight[part], steps[part], errors[part], slope, inner, scale, low[index], high[index]
            )
            _descend_code(steps[part], errors[part], slope, inner, grid, index)
            change = errors[part] - before
            _add_product(1.0, moments[part], change, slopes)


def cost(errors: Floats, moments: Floats) -> NDArray[np.float64]:
    """eᵀ @ moments @ e for each row of an upright weight: (columns, rows) to (rows,)."""
    found: NDArray[np.float64] = np.einsum("kn,kn->n", errors, moments @ errors, dtype=np.float64)
    return found


def _descend_steps(
    weight: Floats,
    steps: Floats,
    errors: Floats,
    slope: Floats,
    inner: Floats,
    scale: Floats,
    low: Floats,
    high: Floats,
) -> None:
    """Each value of a block in turn."""
    inverse = 1 / scale
    work = np.empty_like(scale)
    for j in range(len(weight)):
        step = steps[j]
        np.divide(slope[j], -inner[j, j], out=work)
        work += errors[j]
        work += weight[j]
        np.multiply(work, inverse, out=step)
        np.rint(step, out=step)
        np.maximum(step, low, out=step)
        np.minimum(step, high, out=step)
        np.multiply(step, scale, out=work)
        work -= weight[j]
        change = work - errors[j]
        errors[j] = work
        _add_outer(1.0, inner[j], change, slope)


def _descend_code(
    steps: Floats, errors: Floats, slope: Floats, inner: Floats, grid: Grid, index: int
) -> None:
    """The scale of a block: the cost is quadratic in it, so the nearest code is the best."""
    curvature = np.einsum("kn,kn->n", steps, inner @ steps)
    gain = np.einsum("kn,kn->n", steps, slope)
    unit = grid.row_scales
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.where(curvature > 0, -gain / curvature, 0)
    codes = np.clip(np.rint(grid.codes[index] + change / unit), 1, MAXIMUM_CODE).astype(np.float32)
    errors += steps * ((codes - grid.codes[index]) * unit)
    grid.codes[index] = codes


def _inverse_factor(moments: Floats, order: NDArray[np.intp], added: float) -> NDArray[np.float64] | None:
    """Upper U with UᵀU = (moments + added)⁻¹, columns in the given order.

    The Cholesky factor of the matrix turned upside down, inverted and turned back, is U: no inverse of
    the whole matrix is needed.
    """
    turned = order[::-1]
    matrix = np.asfortranarray(moments[np.ix_(turned, turned)], np.float64)
    matrix[np.diag_indices_from(matrix)] += added
    lower, failed = lapack.dpotrf(matrix, lower=1, clean=1, overwrite_a=1)
    if failed:
        return None
    inverse, failed = lapack.dtrtri(lower, lower=1, overwrite_c=1)
    if failed or not np.isfinite(inverse).all():
        return None
    found: NDArray[np.float64] = inverse[::-1, ::-1]
    return found


def _parts(grids: Sequence[Grid]) -> tuple[list[Floats], list[Floats], list[Floats]]:
    limits = [bounds(grid) for grid in grids]
    return [grid.scales for grid in grids], [low for low, _ in limits], [high for _, high in limits]


def _expanded(parts: Sequence[Floats], grids: Sequence[Grid], order: NDArray[np.intp]) -> Floats:
    """Per block to per column, in the given order; formats side by side."""
    found: Floats = np.concatenate(
        [part[order // grid.block] for part, grid in zip(parts, grids, strict=True)], axis=1
    )
    return found


def _add_outer(factor: float, left: Floats, right: Floats, target: Floats) -> None:
    """target += factor * outer(left, right), in place; the target's rows lie one after the other."""
    blas.sger(factor, right, left, a=target.T, overwrite_a=1)


def _add_product(factor: float, left: Floats, right: Floats, target: Floats) -> None:
    """target += factor * leftᵀ @ right, in place."""
    blas.sgemm(factor, right.T, left.T, beta=1.0, c=target.T, trans_b=1, overwrite_c=1)
