"""Weights in few bits: rounding to eight with a scale per channel, and packing of four."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
INT8_MAX = 127
_TINY = np.float32(1e-12)


@dataclass(frozen=True)
class Symmetric:
    """``weight ≈ values · scales``; one scale per index of an axis."""

    values: NDArray[np.int8]
    scales: Floats  # (channels,)


def round_int8(weight: Floats, *, axis: int) -> Symmetric:
    """Round to -127 … 127 with one scale for each index of ``axis``."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = np.maximum(np.abs(weight).max(axis=others), _TINY) / np.float32(INT8_MAX)
    shape = [1] * weight.ndim
    shape[axis] = -1
    values = np.rint(weight / scales.reshape(shape)).astype(np.int8)
    return Symmetric(values, scales.astype(np.float32))


def pack_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit values a byte along the last axis, the first in the low half."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    packed: NDArray[np.uint8] = (values[..., 0::2] | (values[..., 1::2] << 4)).astype(np.uint8)
    return packed


def unpack_nibbles(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The reverse of :func:`pack_nibbles`: ``count`` values along the last axis."""
    values = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 15, out=values[..., 0::2])
    np.right_shift(packed, 4, out=values[..., 1::2])
    return values[..., :count]


def relative_error(weight: Floats, restored: Floats) -> float:
    """‖W - Ŵ‖² / ‖W‖²; 0 for a weight of zeros."""
    total = float(np.square(weight, dtype=np.float64).sum())
    return float(np.square(weight - restored, dtype=np.float64).sum()) / total if total else 0.0
