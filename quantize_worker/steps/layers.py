"""Layers with weights that a precision can shrink, found in a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize_worker.contract import Precision
from quantize_worker.steps.graph import DEFAULT_DOMAINS, Graph

Floats = NDArray[np.float32]
MINIMUM_WEIGHTS = 256  # below this, scales and bookkeeping outweigh the gain
MINIMUM_TABLE = 4096
INT4_BLOCK = 32  # values that share a scale

PRECISIONS_OF: dict[str, tuple[Precision, ...]] = {
    "MatMul": ("int8-dynamic", "int8-qdq", "int4"),
    "Gemm": ("int8-dynamic", "int8-qdq", "int4"),
    "Gather": ("int8-dynamic", "int8-qdq", "int4"),
    "Conv": ("int8-qdq",),
}


@dataclass(frozen=True)
class Layer:
    """A node and the constant weight it multiplies by, or looks up in.

    ``name`` is the node's first output, which is unique in a graph.
    """

    name: str
    node: onnx.NodeProto
    weight: str  # initializer
    activation: str  # tensor that meets the weight (indices, for Gather)
    shape: tuple[int, ...]

    @property
    def operator(self) -> str:
        return str(self.node.op_type)

    @property
    def parameters(self) -> int:
        return int(np.prod(self.shape))

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (out, in)."""
        return self.operator == "Gemm" and bool(attribute(self.node, "transB", 0))

    def precisions(self) -> tuple[Precision, ...]:
        """Precisions below FP16 that this layer can be made in."""
        possible = PRECISIONS_OF[self.operator]
        inner = self.shape[-1] if self.operator == "Gather" or self.transposed else self.shape[0]
        if "int4" in possible and (inner < INT4_BLOCK or (self.operator == "Gather" and inner % INT4_BLOCK)):
            possible = tuple(p for p in possible if p != "int4")
        return possible

    def matrix(self, graph: Graph) -> Floats:
        """The weight as (in, out) for MatMul and Gemm, as stored for others."""
        value = cast("Floats", graph.constant(self.weight))
        return np.ascontiguousarray(value.T) if self.transposed else value


def layers_of(graph: Graph) -> list[Layer]:
    """Layers of the top-level graph whose float32 weights can be quantised, in graph order."""
    return list(_layers(graph))


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default


def _layers(graph: Graph) -> Iterator[Layer]:
    for node in graph.nodes:
        if node.domain not in DEFAULT_DOMAINS or node.op_type not in PRECISIONS_OF or len(node.input) < 2:
            continue
        activation, weight = node.input[0], node.input[1]
        if node.op_type == "Gather":
            activation, weight = weight, activation
        if not graph.is_float32(weight) or graph.constant(activation) is not None:
            continue
        layer = Layer(node.output[0], node, weight, activation, graph.shape(weight))
        if _quantizable(layer):
            yield layer


def _quantizable(layer: Layer) -> bool:
    node, rank = layer.node, len(layer.shape)
    if layer.operator == "Gather":
        return rank == 2 and attribute(node, "axis", 0) == 0 and layer.parameters >= MINIMUM_TABLE
    if layer.parameters < MINIMUM_WEIGHTS:
        return False
    if layer.operator == "Conv":
        return rank >= 3
    if layer.operator == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        return rank == 2 and plain and not attribute(node, "transA", 0)
    return rank == 2
