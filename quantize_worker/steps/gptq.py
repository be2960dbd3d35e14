"""Rounding that makes up for its own errors: GPTQ (Frantar et al. 2022) over searched scales.

Columns are rounded one after the other; the error of each is spread over the columns still to
come, weighted by the inverse of the activations' Gram matrix, so that the layer's *output* changes
least. Scales and zero points are those of :func:`quantize_worker.steps.weights.round_int4`.
(ONNX Runtime 1.32's own GPTQ reads the Cholesky factor by columns and thus equals plain rounding.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantize_worker.steps.weights import INT4_MAX, Blockwise, Floats

DAMPING = 0.05  # of the mean diagonal, added to the diagonal
LAZY_COLUMNS = 128  # errors reach the columns beyond in one product


def propagate(weight: Floats, start: Blockwise, gram: Floats) -> Blockwise:
    """Round again with the same scales, spreading errors.

    Args:
        weight: (rows, columns); a layer's (out, in).
        start: its blockwise rounding, whose scales and zero points are kept.
        gram: (columns, columns); the sum of xᵀx over calibration activations.

    Returns:
        The new rounding; ``start`` if the Gram matrix cannot be inverted.
    """
    rows, columns = weight.shape
    block = start.values.shape[2]
    try:
        factor = _inverse_factor(gram)
    except np.linalg.LinAlgError:
        return start
    scales = np.repeat(start.scales, block, axis=1)[:, :columns]
    zeros = np.repeat(start.zero_points.astype(np.float32), block, axis=1)
    rounded = zeros.copy()  # what lies beyond the last column stays at zero
    left = weight.copy()
    for begin in range(0, columns, LAZY_COLUMNS):
        end = min(begin + LAZY_COLUMNS, columns)
        errors = np.zeros((rows, end - begin), np.float32)
        for j in range(begin, end):
            rounded[:, j] = np.clip(np.rint(left[:, j] / scales[:, j]) + zeros[:, j], 0, INT4_MAX)
            restored = (rounded[:, j] - zeros[:, j]) * scales[:, j]
            errors[:, j - begin] = (left[:, j] - restored) / factor[j, j]
            left[:, j + 1 : end] -= errors[:, j - begin, None] * factor[j, j + 1 : end]
        left[:, end:] -= errors @ factor[begin:end, end:]
    return Blockwise(rounded.astype(np.uint8).reshape(start.values.shape), start.scales, start.zero_points)


def _inverse_factor(gram: Floats) -> NDArray[np.float32]:
    """The upper U with UᵀU = (G + damping)⁻¹."""
    damped = gram.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * float(np.mean(np.diag(damped)))
    factor: NDArray[np.float32] = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    if not np.isfinite(factor).all():
        raise np.linalg.LinAlgError
    return factor
