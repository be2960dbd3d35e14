"""Weights in eight bits with a scale per channel, block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantize_worker.steps.layers import Layer
from quantize_worker.steps.rewrite.scratch import Array, Scratch, parts
from quantize_worker.steps.rewrite.workplace import Workplace

Floats = NDArray[np.float32]
STEPS = 127
_TINY = np.float32(1e-12)


@dataclass(frozen=True)
class Channels:
    """``weight ≈ values * scales``."""

    values: NDArray[np.int8]  # as the weight
    scales: Floats  # as the weight, with length 1 along all axes but the channels'


def round_channels(
    weight: Array, axes: tuple[int, ...], scratch: Scratch, factors: Floats | None = None
) -> Channels:
    """Round to -127 … 127 with a scale for each index along ``axes``.

    Args:
        weight: float32, any shape; read block by block along its first axis.
        axes: of the channels.
        scratch: where a large result is kept.
        factors: multiply the weight first; as long as the weight along axes that are no channels',
            of length 1 along the others.
    """
    scales: Floats = np.maximum(_largest(weight, axes, factors), _TINY)
    scales /= np.float32(STEPS)

    def rounded(block: Array, part: slice) -> Array:
        return np.rint(_multiplied(block, factors, part) / _share(scales, part)).astype(np.int8)

    return Channels(scratch.mapped(weight, np.int8, rounded), scales)


def round_matrix(place: Workplace, layer: Layer, factors: Floats | None) -> tuple[NDArray[np.int8], Floats]:
    """A matrix as it is stored, rounded, and the scales of its outputs.

    Args:
        place: where its constants go.
        layer: a MatMul or Gemm.
        factors: (in,), multiply the weight's columns first.
    """
    stored = place.graph.constant(layer.weight)
    assert stored is not None
    shape = (1, -1) if layer.transposed else (-1, 1)
    along = None if factors is None else factors.reshape(shape)
    rounded = round_channels(stored, layer.channel_axes, place.scratch, along)
    return rounded.values, rounded.scales.reshape(-1)


def _largest(weight: Array, axes: tuple[int, ...], factors: Floats | None) -> Floats:
    others = tuple(axis for axis in range(weight.ndim) if axis not in axes)
    found = np.zeros([weight.shape[axis] if axis in axes else 1 for axis in range(weight.ndim)], np.float32)
    for part in parts(weight):
        block = np.abs(_multiplied(weight[part], factors, part))
        target = part if 0 in axes else slice(None)
        found[target] = np.maximum(found[target], block.max(axis=others, keepdims=True))
    return found


def _multiplied(block: Array, factors: Floats | None, part: slice) -> Array:
    return block if factors is None else block * _share(factors, part)


def _share(values: Floats, part: slice) -> Floats:
    """The part of scales or factors that belongs to a block along the first axis."""
    return values[part] if values.shape[0] > 1 else values
