"""Where the values of a block may lie: a scale and a zero point for each, searched for.

Matrices are held as (columns, rows of the weight) here, "upright": what belongs to one column lies side by
side, and error feedback goes column by column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MAXIMUM_CODE = 255
HEADROOM = np.float32(240.0)  # the code of a row's largest scale: later it may still grow
SHRINK_STEP = 0.05  # the search narrows a block's range step by step
SHRINK_STEPS = {4: 10, 8: 1}
PIECE = 1 << 15  # values searched at once: they stay in the cache
_TINY = np.float32(1e-12)


@dataclass
class Grid:
    """Scales and zero points of an upright weight.

    Args:
        codes: (blocks, rows); whole numbers from 1 to 255.
        row_scales: (rows,); a block's scale is its code times this.
        zeros: (blocks, rows); whole numbers.
        bits: 4 or 8.
        block: columns of a block.
    """

    codes: Floats
    row_scales: Floats
    zeros: Floats
    bits: int
    block: int

    @property
    def scales(self) -> Floats:
        """(blocks, rows)"""
        product: Floats = self.codes * self.row_scales
        return product


def search(weight: Floats, importance: Floats, *, bits: int, block: int, symmetric: bool) -> Grid:
    """The grid with the least weighted squared error of plain rounding, block by block.

    The full range of each block is tried, and ranges narrowed step by step around their middle (as
    HQQ and llama.cpp's quantizers search, but exhaustively over a small grid). Then scales are coded.

    Args:
        weight: (blocks * block, rows), upright; padded with zeros.
        importance: (blocks * block,); what an error in each column costs.
        bits: 4 or 8.
        block: columns of a block.
        symmetric: the zero point is the middle of the values.
    """
    rows = weight.shape[1]
    blocks = weight.reshape(-1, block, rows)
    shares = importance.reshape(-1, block)
    scales = np.empty((len(blocks), rows), np.float32)
    zeros = np.empty_like(scales)
    step = max(1, PIECE // block)
    for index in range(len(blocks)):
        for start in range(0, rows, step):
            piece = np.ascontiguousarray(blocks[index, :, start : start + step])
            place = (index, slice(start, start + step))
            scales[place], zeros[place] = _search_block(piece, shares[index], bits, symmetric)
    row_scales = np.maximum(scales.max(axis=0) / HEADROOM, _TINY)
    if bits == 8:  # a smaller scale would cut values off
        codes = np.ceil(scales / row_scales * np.float32(1 - 1e-6))
    else:
        codes = np.rint(scales / row_scales)
    return Grid(np.clip(codes, 1, MAXIMUM_CODE), row_scales, zeros, bits, block)


def bounds(grid: Grid) -> tuple[Floats, Floats]:
    """The least and the greatest distance from the zero point, in steps: (blocks, rows) each."""
    return -grid.zeros, np.float32((1 << grid.bits) - 1) - grid.zeros


def nearest(weight: Floats, grid: Grid) -> Floats:
    """Plain rounding: steps from the zero point, (blocks * block, rows)."""
    low, high = bounds(grid)
    blocks = weight.reshape(len(low), grid.block, -1)
    steps = blocks / grid.scales[:, None]
    np.rint(steps, out=steps)
    np.clip(steps, low[:, None], high[:, None], out=steps)
    return steps.reshape(weight.shape)


def _search_block(weight: Floats, shares: Floats, bits: int, symmetric: bool) -> tuple[Floats, Floats]:
    """The best scale and zero point of one block in each row: (block, rows) to (rows,) twice."""
    top = np.float32((1 << bits) - 1)
    low, high = np.minimum(weight.min(axis=0), 0), np.maximum(weight.max(axis=0), 0)
    best = np.full(low.shape, np.inf, np.float32)
    best_scale, best_zero = np.ones_like(low), np.zeros_like(low)
    work = np.empty_like(weight)
    for step in range(SHRINK_STEPS[bits]):
        factor = np.float32(1.0 - step * SHRINK_STEP)
        scale, zero = _grid(low, high, factor, top, symmetric)
        error = _error(weight, shares, scale, zero, top, work)
        better = error < best
        best = np.where(better, error, best)
        best_scale = np.where(better, scale, best_scale)
        best_zero = np.where(better, zero, best_zero)
    return best_scale, best_zero


def _grid(
    low: Floats, high: Floats, factor: np.float32, top: np.float32, symmetric: bool
) -> tuple[Floats, Floats]:
    if symmetric:
        middle = (top + 1) / 2
        reach = np.maximum(-low / middle, high / (middle - 1))
        return np.maximum(reach * factor, _TINY), np.full_like(low, middle)
    scale = np.maximum((high - low) * factor / top, _TINY)
    zero = np.rint(top / 2 - (low + high) / (2 * scale))
    return scale, np.clip(zero, 0, top)


def _error(
    weight: Floats, shares: Floats, scale: Floats, zero: Floats, top: np.float32, work: Floats
) -> Floats:
    np.multiply(weight, 1 / scale, out=work)
    np.rint(work, out=work)
    np.maximum(work, -zero, out=work)
    np.minimum(work, top - zero, out=work)
    work *= scale
    work -= weight
    np.square(work, out=work)
    error: Floats = shares @ work
    return error
