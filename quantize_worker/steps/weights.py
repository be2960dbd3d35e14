"""Rounding of weights to few bits, in NumPy; the same input gives the same bytes everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
INT8_MAX = 127
INT4_MAX = 15
SHRINK_STEPS = 10
SHRINK_STEP = 0.04  # the search narrows a block's range by up to 9 · 4 %
BATCH_BLOCKS = 1 << 16  # blocks searched at once; bounds the memory of the search
_TINY = np.float32(1e-12)


@dataclass(frozen=True)
class Symmetric:
    """``weight ≈ values · scales``; one scale per index of an axis."""

    values: NDArray[np.int8]
    scales: Floats  # (channels,)


@dataclass(frozen=True)
class Blockwise:
    """``weight ≈ (values - zero_points) · scales``, per row and block of ``block`` columns."""

    values: NDArray[np.uint8]  # (rows, blocks, block), 0 … 15
    scales: Floats  # (rows, blocks)
    zero_points: NDArray[np.uint8]  # (rows, blocks)

    def dequantized(self, columns: int) -> Floats:
        """(rows, columns)."""
        shifted = self.values.astype(np.float32) - self.zero_points[..., None]
        return (shifted * self.scales[..., None]).reshape(self.values.shape[0], -1)[:, :columns]


def round_int8(weight: Floats, *, axis: int) -> Symmetric:
    """Round to -127 … 127 with one scale for each index of ``axis``."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = np.maximum(np.abs(weight).max(axis=others), _TINY) / np.float32(INT8_MAX)
    shape = [1] * weight.ndim
    shape[axis] = -1
    values = np.rint(weight / scales.reshape(shape)).astype(np.int8)
    return Symmetric(values, scales.astype(np.float32))


def round_int4(weight: Floats, *, block: int, importance: Floats | None = None) -> Blockwise:
    """Round to 4 bits, with a scale and a zero point for each ``block`` values of a row.

    The range of each block is searched: the full one, and ranges narrowed step by step; the
    one with the least weighted squared error wins (as in HQQ and llama.cpp's quantizers, but
    by exhaustive search over a small grid).

    Args:
        weight: (rows, columns); a layer's (out, in).
        block: values per scale; the last block is padded with zeros.
        importance: (columns,), e.g. the mean square of the activation each column meets.
    """
    rows, columns = weight.shape
    padding = -columns % block
    blocks = np.pad(weight, ((0, 0), (0, padding))).reshape(-1, block)
    weights = np.ones(columns, np.float32) if importance is None else importance
    shares = np.pad(weights, (0, padding)).reshape(-1, block)
    per_row = shares.shape[0]
    # whole rows at a time, so that the importance repeats
    step = max(1, BATCH_BLOCKS // per_row) * per_row
    parts = [_search(blocks[i : i + step], shares) for i in range(0, len(blocks), step)]
    values, scales, zeros = (np.concatenate([part[k] for part in parts]) for k in range(3))
    return Blockwise(
        values.astype(np.uint8).reshape(rows, per_row, block),
        scales.astype(np.float32).reshape(rows, per_row),
        zeros.astype(np.uint8).reshape(rows, per_row),
    )


def _search(blocks: Floats, shares: Floats) -> tuple[Floats, Floats, Floats]:
    """The best values, scales and zero points: (n, block), (n,), (n,)."""
    weights = np.tile(shares, (len(blocks) // len(shares), 1))
    low = np.minimum(blocks.min(axis=1), np.float32(0))
    high = np.maximum(blocks.max(axis=1), np.float32(0))
    best_error = np.full(len(blocks), np.inf, np.float32)
    best_scale, best_zero = np.ones_like(low), np.zeros_like(low)
    for step in range(SHRINK_STEPS):
        factor = np.float32(1.0 - step * SHRINK_STEP)
        scale = np.maximum((high - low) * factor / np.float32(INT4_MAX), _TINY)
        zero = np.clip(np.rint(-low * factor / scale), 0, INT4_MAX)
        error = _error(blocks, weights, scale, zero)
        better = error < best_error
        best_error[better], best_scale[better], best_zero[better] = error[better], scale[better], zero[better]
    return _rounded(blocks, best_scale, best_zero), best_scale, best_zero


def _rounded(blocks: Floats, scale: Floats, zero: Floats) -> Floats:
    rounded: Floats = np.clip(np.rint(blocks / scale[:, None]) + zero[:, None], 0, INT4_MAX)
    return rounded


def _error(blocks: Floats, weights: Floats, scale: Floats, zero: Floats) -> Floats:
    restored = (_rounded(blocks, scale, zero) - zero[:, None]) * scale[:, None]
    error: Floats = (weights * np.square(blocks - restored)).sum(axis=1)
    return error


def pack_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit values a byte along the last axis, the first in the low half."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    packed: NDArray[np.uint8] = (values[..., 0::2] | (values[..., 1::2] << 4)).astype(np.uint8)
    return packed


def relative_error(weight: Floats, restored: Floats) -> float:
    """‖W - Ŵ‖² / ‖W‖²; 0 for a weight of zeros."""
    total = float(np.square(weight, dtype=np.float64).sum())
    return float(np.square(weight - restored, dtype=np.float64).sum()) / total if total else 0.0
