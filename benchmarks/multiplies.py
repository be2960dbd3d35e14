"""Which share of a model's multiply-accumulates is done on how many bits, counted in its graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from benchmarks.reference import Array

FLOAT_BITS = 32
WEIGHT_BITS = 8  # of a stored weight that a DequantizeLinear restores, or fewer
BITS_OF = {TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16}
FLOAT_PRODUCTS = ("MatMul", "Gemm")
INTEGER_PRODUCTS = ("MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
# On the way from a DequantizeLinear to a product; they round nothing.
MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Identity", "Flatten", "Slice")


def shares_by_bits(model: Path, feed: dict[str, Array]) -> dict[int, float]:
    """Share of multiply-accumulates of matrix products by the wider operand, e.g. ``{8: 0.9, 32: 0.1}``.

    An operand counts as rounded to 8 or 16 bits where it comes from a DequantizeLinear: that is what
    the compiler of an NPU goes by. Shapes are those of a real run.

    Args:
        model: ONNX, with external data beside it.
        feed: one sample.
    """
    graph = _Graph(onnx.load(str(model)))
    shapes = graph.shapes(feed)
    counts: Counter[int] = Counter()
    for node in graph.products:
        inner, made = shapes[node.input[0]][-1], shapes[node.output[0]]
        counts[graph.bits(node)] += inner * int(np.prod(made))
    total = sum(counts.values())
    return {bits: count / total for bits, count in sorted(counts.items())}


class _Graph:
    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        nodes = proto.graph.node
        self._makers = {output: node for node in nodes for output in node.output}
        self._types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
        self.products = [node for node in nodes if node.op_type in (*FLOAT_PRODUCTS, *INTEGER_PRODUCTS)]

    def bits(self, product: onnx.NodeProto) -> int:
        if product.op_type in INTEGER_PRODUCTS:
            return 8
        return max(self._operand_bits(name) for name in product.input[:2])

    def _operand_bits(self, name: str) -> int:
        node = self._makers.get(name)
        while node is not None and node.op_type in MOVES:
            node = self._makers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return FLOAT_BITS
        quantizer = self._makers.get(node.input[0])
        if quantizer is None:
            return BITS_OF.get(self._types.get(node.input[0], 0), WEIGHT_BITS)
        zero_point = quantizer.input[2] if len(quantizer.input) > 2 else ""
        return BITS_OF.get(self._types.get(zero_point, 0), WEIGHT_BITS)

    def shapes(self, feed: dict[str, Array]) -> dict[str, tuple[int, ...]]:
        """Of what products read first and make, from running the sample without any optimisation."""
        wanted = {name for node in self.products for name in (node.input[0], node.output[0])}
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        del proto.graph.output[:]
        proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in sorted(wanted))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return {name: made.shape for name, made in zip(names, session.run(None, feed), strict=True)}
