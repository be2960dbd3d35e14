"""Static INT8: QuantizeLinear/DequantizeLinear pairs with calibrated ranges.

Only inputs and weights of the layers are rounded; sums, residual connections and norms stay in
floating point. Runtimes fuse each pair and its layer into an integer kernel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from quantize_worker.steps.calibration import Activation
from quantize_worker.steps.graph import CONTRIB_DOMAIN, Array, Graph
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.tables import shrink_to_int8
from quantize_worker.steps.weights import round_int8

PER_AXIS_OPSET = 13  # DequantizeLinear has an axis from here on
LEVELS = 256


def shrink(graph: Graph, layers: list[Layer], activations: Mapping[str, Activation]) -> None:
    """Rewrite the layers; every activation among their inputs must have been observed."""
    pairs = _Pairs(graph, activations)
    for layer in layers:
        if layer.operator == "Gather":
            shrink_to_int8(graph, layer)
        else:
            _shrink_weighted(graph, layer, pairs)


class _Pairs:
    """Makes the quantize/dequantize pair of a tensor once, however many layers read it."""

    def __init__(self, graph: Graph, activations: Mapping[str, Activation]) -> None:
        self._graph, self._activations = graph, activations
        self._made: dict[str, tuple[str, float]] = {}
        self.domain = "" if graph.opset >= PER_AXIS_OPSET else CONTRIB_DOMAIN

    def of(self, tensor: str) -> tuple[str, float, list[onnx.NodeProto]]:
        """The rounded tensor, its scale, and the nodes to add (none the second time)."""
        if tensor in self._made:
            return *self._made[tensor], []
        low, high = self._activations[tensor].best_range(LEVELS)
        scale = max((high - low) / (LEVELS - 1), 1e-12)
        zero = int(np.clip(round(-low / scale), 0, LEVELS - 1))
        graph = self._graph
        parameters = [
            graph.add_constant(f"{tensor}.scale", np.float32(scale)),
            graph.add_constant(f"{tensor}.zero_point", np.uint8(zero)),
        ]
        rounded, restored = graph.fresh_name(f"{tensor}.uint8"), graph.fresh_name(f"{tensor}.restored")
        nodes = [
            graph.node("QuantizeLinear", [tensor, *parameters], [rounded], domain=self.domain),
            graph.node("DequantizeLinear", [rounded, *parameters], [restored], domain=self.domain),
        ]
        self._made[tensor] = (restored, scale)
        return restored, scale, nodes

    def constant(self, name: str, values: Array, scales: Array, *, axis: int) -> tuple[str, onnx.NodeProto]:
        """A rounded constant and the node that restores it."""
        graph = self._graph
        zeros = np.zeros(scales.shape, values.dtype)
        inputs = [
            graph.add_constant(f"{name}.{values.dtype}", values),
            graph.add_constant(f"{name}.scale", scales.astype(np.float32)),
            graph.add_constant(f"{name}.zero_point", zeros),
        ]
        restored = graph.fresh_name(f"{name}.restored")
        return restored, graph.node("DequantizeLinear", inputs, [restored], axis=axis, domain=self.domain)


def _shrink_weighted(graph: Graph, layer: Layer, pairs: _Pairs) -> None:
    activation, scale, nodes = pairs.of(layer.activation)
    axis = 0 if layer.operator == "Conv" or layer.transposed else 1
    stored = graph.constant(layer.weight)
    assert stored is not None
    rounded = round_int8(stored, axis=axis)
    weight, restore = pairs.constant(layer.weight, rounded.values, rounded.scales, axis=axis)
    nodes.append(restore)
    inputs = [activation, weight, *layer.node.input[2:]]
    if len(inputs) > 2 and inputs[2]:
        inputs[2], extra = _rounded_bias(graph, inputs[2], rounded.scales * np.float32(scale), pairs)
        nodes.extend(extra)
    changed = onnx.NodeProto()
    changed.CopyFrom(layer.node)
    del changed.input[:]
    changed.input.extend(inputs)
    graph.replace(layer.node, [*nodes, changed])


def _rounded_bias(graph: Graph, bias: str, scales: Array, pairs: _Pairs) -> tuple[str, list[onnx.NodeProto]]:
    """The bias as INT32 in units of the product's scale, where it has one value per channel."""
    value = graph.constant(bias)
    if value is None or value.shape != scales.shape:
        return bias, []
    limit = np.iinfo(np.int32).max
    counted = np.clip(np.rint(value.astype(np.float64) / scales), -limit, limit).astype(np.int32)
    restored, node = pairs.constant(bias, counted, scales, axis=0)
    return restored, [node]
