"""Four-bit values packed two a byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
