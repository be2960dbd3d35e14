"""Static INT8: QuantizeLinear/DequantizeLinear pairs with calibrated ranges, which runtimes fuse.

Inputs and weights of the layers are rounded and, where asked for, both inputs of products of two
activations (attention); sums, residual connections and norms stay in floating point. Activations
have 8 bits, or 16 ("int8-qdq16"); the second input of a product always has 8, as a weight has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from quantize_worker.errors import BuildFailed
from quantize_worker.steps.graph import CONTRIB_DOMAIN
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.rewrite.channels import Floats, round_channels, round_matrix
from quantize_worker.steps.rewrite.scratch import Array
from quantize_worker.steps.rewrite.smoothed import Smoother
from quantize_worker.steps.rewrite.smoothing import Columns
from quantize_worker.steps.rewrite.workplace import Workplace, bias_of

PER_AXIS_OPSET = 13  # DequantizeLinear has an axis from here on
WIDE_OPSET = 21  # and 16-bit integers from here on
SHARES = ("Softmax", "Sigmoid", "HardSigmoid")  # what they make lies in [0, 1]
SMALLEST_STEP = 1e-12
WEIGHT_BITS = 8


def rewrite(
    place: Workplace,
    layers: Sequence[Layer],
    products: Sequence[onnx.NodeProto],
    activations: Mapping[str, Columns],
    *,
    bits: int,
) -> None:
    """Rewrite layers and products with activations in 8 or 16 bits.

    Raises:
        BuildFailed: missing_ranges, if an activation was not seen in calibration.
    """
    writer = _Writer(place, [layer for layer in layers if layer.is_matrix], activations, bits)
    by_node = {id(layer.node): layer for layer in layers}
    multiplied = {id(node) for node in products}
    for node in place.graph.nodes:  # in order, so that a pair stands before its first reader
        if id(node) in by_node:
            writer.layer(by_node[id(node)])
        elif id(node) in multiplied:
            writer.product(node)


class _Writer:
    """Writes the pairs of one width; each tensor's once, however many nodes read it."""

    def __init__(
        self, place: Workplace, matrices: Sequence[Layer], activations: Mapping[str, Columns], bits: int
    ) -> None:
        self._place, self._activations, self._bits = place, activations, bits
        self._smoother = Smoother(place, matrices, activations, levels=1 << bits, stem=f"smooth{bits}")
        self._made: dict[tuple[str, int], str] = {}

    def layer(self, layer: Layer) -> None:
        tensor, factors = layer.activation, None
        nodes: list[onnx.NodeProto] = []
        low, high = self._range(tensor)
        if layer.is_matrix:
            tensor, factors, nodes = self._smoother.of(layer)
            smoothing = self._smoother.smoothing(layer.activation)
            assert smoothing is not None
            low, high = smoothing.low, smoothing.high
        activation, made = self._pair(tensor, low, high, self._bits)
        weight, scales, restore = self._weight(layer, factors)
        inputs = [activation, weight, *layer.node.input[2:]]
        nodes += [*made, restore]
        if bias_of(layer) and self._bits == 8:
            step = np.float32(_step(low, high, 8))
            inputs[2], extra = self._bias(layer, scales * step)
            nodes += extra
        self._replace(layer.node, inputs, nodes, after=self._clipped(layer))

    def _clipped(self, layer: Layer) -> tuple[str, float] | None:
        """The output of a Gemm that only a Relu reads, and up to where it matters.

        ONNX Runtime fuses Gemm and Relu in floating point, and then restores the weight at every run. A pair
        between them, over the range of what the Relu makes, keeps both in integers and changes nothing.
        """
        output = layer.node.output[0]
        readers = self._place.readers(output)
        if layer.operator != "Gemm" or self._bits != 8 or len(readers) != 1 or self._place.is_output(output):
            return None
        seen = self._activations.get(readers[0].output[0])
        return None if readers[0].op_type != "Relu" or seen is None else (output, seen.high)

    def product(self, node: onnx.NodeProto) -> None:
        """Both inputs; what a softmax makes has its range by definition."""
        inputs, nodes = list(node.input), []
        for position, bits in ((0, self._bits), (1, WEIGHT_BITS)):
            tensor = node.input[position]
            inputs[position], made = self._pair(tensor, *self._product_range(tensor), bits)
            nodes += made
        self._replace(node, inputs, nodes)

    def _replace(
        self,
        node: onnx.NodeProto,
        inputs: list[str],
        nodes: list[onnx.NodeProto],
        after: tuple[str, float] | None = None,
    ) -> None:
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        del changed.input[:]
        changed.input.extend(inputs)
        pair: list[onnx.NodeProto] = []
        if after is not None:
            output, high = after
            changed.output[0] = self._place.graph.fresh_name(f"{output}.exact")
            pair = self._pair(changed.output[0], 0.0, high, self._bits)[1]
            pair[-1].output[0] = output
        self._place.graph.replace(node, [*nodes, changed, *pair])

    def _product_range(self, tensor: str) -> tuple[float, float]:
        producer = self._place.producer(tensor)
        return (0.0, 1.0) if producer is not None and producer.op_type in SHARES else self._range(tensor)

    def _range(self, tensor: str) -> tuple[float, float]:
        if tensor not in self._activations:
            raise BuildFailed(
                "missing_ranges",
                f"Calibration has no range for {tensor!r}; inspect the version again.",
                fault="system",
            )
        seen = self._activations[tensor]
        return seen.low, seen.high

    def _pair(self, tensor: str, low: float, high: float, bits: int) -> tuple[str, list[onnx.NodeProto]]:
        """The rounded tensor and the nodes to add (none the second time)."""
        if (tensor, bits) in self._made:
            return self._made[tensor, bits], []
        graph, top = self._place.graph, (1 << bits) - 1
        step = _step(low, high, bits)
        zero = int(np.clip(round(-low / step), 0, top))
        domain = self._domain(WIDE_OPSET if bits == 16 else PER_AXIS_OPSET)
        parameters = [
            graph.add_constant(f"{tensor}.scale", np.float32(step)),
            graph.add_constant(f"{tensor}.zero_point", np.array(zero, f"uint{bits}")),
        ]
        rounded, restored = (graph.fresh_name(f"{tensor}.{part}") for part in (f"uint{bits}", "restored"))
        self._made[tensor, bits] = restored
        return restored, [
            graph.node("QuantizeLinear", [tensor, *parameters], [rounded], domain=domain),
            graph.node("DequantizeLinear", [rounded, *parameters], [restored], domain=domain),
        ]

    def _weight(self, layer: Layer, factors: Floats | None) -> tuple[str, Floats, onnx.NodeProto]:
        """The restored weight, its scales, and the node that restores it."""
        place = self._place
        smoothed = f"{layer.activation}/{self._bits}" if factors is not None else ""

        def make() -> list[str]:
            if layer.is_matrix:
                values, scales = round_matrix(place, layer, factors)
            else:
                stored = place.graph.constant(layer.weight)
                assert stored is not None
                rounded = round_channels(stored, layer.channel_axes, place.scratch)
                values, scales = rounded.values, rounded.scales.reshape(-1)
            return self._rounded(layer.weight, values, scales)

        names = place.once((layer.weight, "static", smoothed), make)
        restored = place.graph.fresh_name(f"{layer.weight}.restored")
        found = place.graph.constant(names[1])
        assert found is not None
        return restored, found, self._restore(names, restored, layer.channel_axes[0])

    def _bias(self, layer: Layer, scales: Floats) -> tuple[str, list[onnx.NodeProto]]:
        """The bias as INT32 in units of the product's scale, where it has one value per channel."""
        bias = bias_of(layer)
        value = self._place.graph.constant(bias)
        if value is None or value.shape != scales.shape:
            return bias, []
        limit = np.iinfo(np.int32).max
        counted = np.clip(np.rint(value.astype(np.float64) / scales), -limit, limit).astype(np.int32)
        restored = self._place.graph.fresh_name(f"{bias}.restored")
        return restored, [self._restore(self._rounded(bias, counted, scales), restored, 0)]

    def _rounded(self, name: str, values: Array, scales: Floats) -> list[str]:
        add = self._place.graph.add_constant
        zeros = np.zeros(scales.shape, values.dtype)
        parts: dict[str, Array] = {
            str(values.dtype): values,
            "scale": scales.astype(np.float32),
            "zero_point": zeros,
        }
        return [add(f"{name}.{part}", value) for part, value in parts.items()]

    def _restore(self, names: list[str], restored: str, axis: int) -> onnx.NodeProto:
        domain = self._domain(PER_AXIS_OPSET)
        return self._place.graph.node("DequantizeLinear", names, [restored], axis=axis, domain=domain)

    def _domain(self, opset: int) -> str:
        """Standard operators where the model's opset has them in this form."""
        return "" if self._place.graph.opset >= opset else CONTRIB_DOMAIN


def _step(low: float, high: float, bits: int) -> float:
    return max((high - low) / ((1 << bits) - 1), SMALLEST_STEP)
