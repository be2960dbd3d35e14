"""How far a layer's output moves when its weight, or what it meets, is rounded.

An error is the mean squared change of the output over its mean square. Where second moments are known, a
change D of the weight gives tr(D H Dᵀ) / tr(W H Wᵀ); elsewhere mean squares of the columns stand in
for H, or nothing does. Rounded activations add noise of step² / 12 to every column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize_worker.steps.candidates import Blocks
from quantize_worker.steps.gptq import cost
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.moments import spans
from quantize_worker.steps.rewrite.smoothing import Smoothing
from quantize_worker.steps.statistics import Activation

Array = NDArray[Any]
Floats = NDArray[np.float32]
SAMPLED_ROWS = 512  # outputs of a layer that errors are estimated from
SAMPLED_TABLE_ROWS = 4096
SAMPLED_WEIGHTS = 1 << 22  # of any other layer, along its first axis
WEIGHT_STEPS = 127
HIDDEN_SPAN = 2.0  # of an LSTM's state, which lies between -1 and 1
_TINY = 1e-30


def sampled(rows: int, limit: int) -> NDArray[np.intp]:
    """Rows spread evenly, at most ``limit``."""
    if rows <= limit:
        return np.arange(rows)
    return np.linspace(0, rows - 1, limit).round().astype(np.intp)


class MatrixErrors:
    """Errors of a matrix or table, from some of its rows.

    Args:
        layer: a matrix or a table.
        graph: with its weight.
        activation: what it meets; None for tables.
        part: of the samples, see :meth:`Activation.moments`.
    """

    def __init__(self, layer: Layer, graph: Graph, activation: Activation | None, part: str) -> None:
        whole = layer.matrix(graph)
        self.rows = sampled(len(whole), SAMPLED_TABLE_ROWS if layer.is_table else SAMPLED_ROWS)
        self.weight: Floats = np.ascontiguousarray(whole[self.rows])
        self._activation = activation
        self._moments = activation.moments(part) if activation is not None else None
        squares = activation.mean_squares() if activation is not None else None
        known = squares is not None and len(squares) == self.weight.shape[1] and squares.any()
        self._squares = np.asarray(squares) if known else np.ones(self.weight.shape[1])
        self._energy = max(self._cost(self.weight), _TINY)

    def of(self, restored: Floats) -> float:
        """Of restoring the sampled rows to this."""
        return self._cost(restored - self.weight) / self._energy

    def of_blocks(self, blocks: Blocks) -> float:
        """Of weights in blocks; the CPU's kernel rounds activations block by block to eight bits."""
        error = self.of(blocks.rows(self.rows).dequantized())
        peaks = self._activation.peaks.get(blocks.block) if self._activation is not None else None
        if peaks is None or len(peaks) != blocks.scale_codes.shape[1]:
            return error
        energies = np.square(self.weight, dtype=np.float64).sum(axis=0)
        energies = np.pad(energies, (0, len(peaks) * blocks.block - len(energies)))
        noise = peaks / WEIGHT_STEPS**2 / 12.0
        return error + float(energies.reshape(len(peaks), -1).sum(axis=1) @ noise) / self._energy

    def of_channels(self, smoothing: Smoothing | None, levels: int, *, dynamic: bool) -> float:
        """Of INT8 weights with a scale per output, and rounded activations.

        Args:
            smoothing: factors of the columns and the activation's range; None if it is unknown.
            levels: steps of the activation.
            dynamic: whether the range is each run's own.
        """
        factors = smoothing.factors if smoothing is not None else None
        error = self.of(channels_restored(self.weight, factors))
        if smoothing is None or self._activation is None:
            return error
        span = smoothing.high - smoothing.low
        if dynamic:
            span *= self._activation.run_share
        noise = np.full(self.weight.shape[1], (span / (levels - 1)) ** 2 / 12.0)
        if factors is not None:
            noise *= np.square(factors)
        energies = np.square(self.weight, dtype=np.float64).sum(axis=0)
        return error + float(energies @ noise) / self._energy

    def _cost(self, change: Floats) -> float:
        if self._moments is None:
            return float(np.square(change, dtype=np.float64).sum(axis=0) @ self._squares)
        upright = np.ascontiguousarray(change.T)
        parts = zip(spans(len(upright)), self._moments, strict=True)
        return float(sum(cost(upright[span], np.asarray(block)).sum() for span, block in parts))


def channels_restored(weight: Floats, factors: Floats | None) -> Floats:
    """(out, in) rounded to -127 … 127 with a scale per output, after its columns were multiplied."""
    multiplied = weight if factors is None else weight * factors
    scales = np.maximum(np.abs(multiplied).max(axis=1, keepdims=True), np.float32(1e-12)) / WEIGHT_STEPS
    restored: Floats = np.rint(multiplied / scales) * scales
    return restored if factors is None else restored / factors


def half_restored(weight: Floats) -> Floats:
    """The weight as FP16 keeps it."""
    limit = np.finfo(np.float16).max
    return np.clip(weight, -limit, limit).astype(np.float16).astype(np.float32)


def stored_restored(weight: Array, axes: tuple[int, ...]) -> Floats:
    """A weight of any shape, rounded to 8 bits with a scale for each index along ``axes``."""
    others = tuple(axis for axis in range(weight.ndim) if axis not in axes)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scales = np.maximum(largest, np.float32(1e-12)) / np.float32(WEIGHT_STEPS)
    restored: Floats = np.rint(weight / scales) * scales
    return restored


class OtherErrors:
    """Errors of any other layer: of a convolution's kernels, weighed by what its channels meet, or plain.

    Args:
        layer: neither a matrix nor a table.
        graph: with its weights.
        activation: what it meets, if that is known.
    """

    def __init__(self, layer: Layer, graph: Graph, activation: Activation | None) -> None:
        self._layer, self._graph, self._activation = layer, graph, activation
        first = self._value(layer.weight)
        squares = activation.mean_squares() if activation is not None else None
        fits = squares is not None and layer.operator == "Conv" and first.shape[1] == len(squares)
        self._shares = np.asarray(squares).reshape(1, -1, *[1] * (first.ndim - 2)) if fits else np.ones(1)
        self._mean_square = 1.0 if fits or squares is None else max(float(np.mean(squares)), _TINY)
        self._energy = max(sum(self._cost(self._value(name)) for name in layer.weights), _TINY)

    def of(self, restore: Callable[[Array, tuple[int, ...]], Floats]) -> float:
        """Of restoring each weight, given with the axes of its channels, to this."""
        axes = self._layer.channel_axes
        values = [self._value(name) for name in self._layer.weights]
        return sum(self._cost(restore(value, axes) - value) for value in values) / self._energy

    def of_activation(self, levels: int, *, dynamic: bool) -> float:
        """Of rounding what the layer meets."""
        if self._activation is None:
            return 0.0
        span = self._activation.run_span if dynamic else self._activation.high - self._activation.low
        names = list(self._layer.weights)
        total = self._energy_of(names[0]) * (span / (levels - 1)) ** 2 / 12.0
        if len(names) > 1:  # recurrent: the state is rounded too
            total += self._energy_of(names[1]) * (HIDDEN_SPAN / (levels - 1)) ** 2 / 12.0
        return total / (self._energy * self._mean_square)

    def _cost(self, change: Array) -> float:
        return float((np.square(change, dtype=np.float64) * self._shares).sum())

    def _energy_of(self, name: str) -> float:
        return float(np.square(self._value(name), dtype=np.float64).sum())

    def _value(self, name: str) -> Array:
        value = self._graph.constant(name)
        assert value is not None
        return value[sampled(len(value), max(1, SAMPLED_WEIGHTS * len(value) // value.size))]
