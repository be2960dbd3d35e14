"""Layers: nodes with constant float32 weights that another format can shrink, found in a graph."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize_worker.formats import FORMATS, OTHER_FORMATS, formats_of
from quantize_worker.steps.graph import DEFAULT_DOMAINS, Graph

Array = NDArray[Any]
Floats = NDArray[np.float32]
MINIMUM_MATRIX = 256  # weights; below, scales and bookkeeping outweigh the gain
MINIMUM_OTHER = 1024

MATRIX = ("MatMul", "Gemm")
TABLE = "Gather"
RECURRENT = ("LSTM", "GRU", "RNN")
# Axes of a stored weight whose every index has a scale of its own; elsewhere the first.
_CHANNEL_AXES = {"ConvTranspose": (1,), **dict.fromkeys(RECURRENT, (0, 1))}


@dataclass(frozen=True)
class Layer:
    """A node and the constant weight it multiplies by, or looks up in.

    ``name`` is the node's first output, which is unique in a graph; if a node has several large
    constants that are no recurrent pair, those after the first add ``#`` and the constant's name.
    Layers that share a weight (tied embeddings) have the same ``weight``.
    """

    name: str
    node: onnx.NodeProto
    weight: str  # initializer
    activation: str  # tensor that meets the weight (indices, for Gather); "" where none does
    shape: tuple[int, ...]  # of the weight as stored
    plain: bool  # a matrix product, table or convolution as its operator's formats need it
    others: tuple[tuple[str, tuple[int, ...]], ...] = ()  # further weights and shapes (recurrent)

    @property
    def operator(self) -> str:
        return str(self.node.op_type)

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """All initializers that the layer's format applies to, with their shapes."""
        return {self.weight: self.shape, **dict(self.others)}

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.weights.values())

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (out, in)."""
        return self.operator == "Gemm" and bool(attribute(self.node, "transB", 0))

    @property
    def is_matrix(self) -> bool:
        """Whether ``activation`` times the weight is a plain matrix product."""
        return self.plain and self.operator in MATRIX

    @property
    def is_table(self) -> bool:
        """Whether the layer looks up rows of the weight."""
        return self.plain and self.operator == TABLE

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """Axes of the stored weight along which a format "per channel" has a scale per index."""
        if self.is_matrix:
            return (0,) if self.transposed else (1,)
        return _CHANNEL_AXES.get(self.operator, (0,))

    @property
    def columns(self) -> int:
        """Inputs of an output: K of a matrix, the inner size of a table, else weights a channel."""
        if self.is_matrix:
            return self.shape[1] if self.transposed else self.shape[0]
        if self.is_table:
            return self.shape[-1]
        return math.prod(self.shape) // max(1, self.outputs)

    @property
    def outputs(self) -> int:
        """Outputs: N of a matrix, rows of a table, else channels."""
        return math.prod(self.shape[axis] for axis in self.channel_axes)

    def formats(self) -> tuple[str, ...]:
        """Names of the formats that the layer can take, "fp32" first."""
        possible = formats_of(self.operator) if self.plain else OTHER_FORMATS
        return tuple(name for name in possible if self._fits(FORMATS[name].block))

    def matrix(self, graph: Graph) -> Floats:
        """The weight as (out, in) for matrices, a view where possible; as stored for others."""
        value = cast("Floats", graph.constant(self.weight))
        return value.T if self.is_matrix and not self.transposed else value

    def _fits(self, block: int | None) -> bool:
        """GatherBlockQuantized takes whole blocks only; MatMulNBits pads the last."""
        if block is None:
            return True
        return self.columns % block == 0 if self.is_table else self.columns >= block


def layers_of(graph: Graph) -> list[Layer]:
    """Layers of the top-level graph with float32 weights of a useful size, in graph order."""
    return [layer for node in graph.nodes for layer in _layers(graph, node)]


def products_of(graph: Graph) -> list[onnx.NodeProto]:
    """Products of two activations (attention scores and mixing), in graph order."""
    return [
        node
        for node in graph.nodes
        if node.op_type in MATRIX
        and node.domain in DEFAULT_DOMAINS
        and not any(graph.is_constant(name) for name in node.input[:2])
    ]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default


def _layers(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    standard = node.domain in DEFAULT_DOMAINS
    if not node.output or (standard and node.op_type == "Constant"):
        return
    if standard and node.op_type in RECURRENT:
        yield from _recurrent(graph, node)
        return
    large = [name for name in dict.fromkeys(node.input) if name and _large(graph, node, name)]
    for index, weight in enumerate(large):
        name = node.output[0] if index == 0 else f"{node.output[0]}#{weight}"
        shape = graph.shape(weight)
        plain = standard and index == 0 and _plain(graph, node, weight, shape)
        yield Layer(name, node, weight, _partner(graph, node, weight), shape, plain)


def _recurrent(graph: Graph, node: onnx.NodeProto) -> Iterator[Layer]:
    """Input and recurrent weights (W and R), which only take a format together."""
    names = [name for name in node.input[1:3] if graph.is_float32(name)]
    shapes = [graph.shape(name) for name in names]
    if len(names) == 2 and sum(map(math.prod, shapes)) >= MINIMUM_MATRIX:
        others = ((names[1], shapes[1]),)
        yield Layer(node.output[0] or node.output[1], node, names[0], node.input[0], shapes[0], True, others)


def _large(graph: Graph, node: onnx.NodeProto, name: str) -> bool:
    if not graph.is_float32(name):
        return False
    shape = graph.shape(name)
    minimum = MINIMUM_MATRIX if node.op_type in (*MATRIX, "Conv") else MINIMUM_OTHER
    return len(shape) >= 2 and math.prod(shape) >= minimum


def _plain(graph: Graph, node: onnx.NodeProto, weight: str, shape: tuple[int, ...]) -> bool:
    """Whether the node uses the weight as the formats of its operator expect it."""
    place = 0 if node.op_type == TABLE else 1
    if len(node.input) <= place or node.input[place] != weight or list(node.input).count(weight) > 1:
        return False
    if graph.is_constant(node.input[1 - place]):
        return False
    if node.op_type == TABLE:
        return len(shape) == 2 and attribute(node, "axis", 0) == 0
    if node.op_type == "Gemm":
        scaled = attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0
        return len(shape) == 2 and not scaled and not attribute(node, "transA", 0)
    return len(shape) == 2 if node.op_type == "MatMul" else node.op_type == "Conv" and len(shape) >= 3


def _partner(graph: Graph, node: onnx.NodeProto, weight: str) -> str:
    """The first input that is no constant."""
    return next((n for n in node.input if n and n != weight and not graph.is_constant(n)), "")
