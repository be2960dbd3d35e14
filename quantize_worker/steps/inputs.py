"""What a model's inputs mean, as far as its graph tells: indices into tables, lengths of sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx

from quantize_worker.contract import TensorSpec
from quantize_worker.steps.graph import DEFAULT_DOMAINS, Graph

_RECURRENT = ("RNN", "GRU", "LSTM")
_LENGTHS = 4  # position of sequence_lens among a recurrent operator's inputs
# Operators that hand on values of these inputs unchanged (but perhaps cast, moved or repeated).
_HANDS_ON: dict[str, Sequence[int] | None] = {
    **dict.fromkeys(
        (
            "Cast", "Clip", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split",
            "Squeeze", "Tile", "Transpose", "Unsqueeze",
        ),
        (0,),
    ),
    "Where": (1, 2),
    "Concat": None,  # all of them
    "Max": None,
    "Min": None,
}  # fmt: skip


def index_bounds(graph: Graph, specs: Sequence[TensorSpec]) -> dict[str, int]:
    """For inputs that index something of known size, the number of valid indices.

    Values are followed through casts, reshapes and the like, and through the addition of a constant.
    """
    flow = _Flow(graph, [spec.name for spec in specs])
    bounds: dict[str, int] = {}
    for node in flow.nodes():
        for tensor, size in _indexed(graph, node):
            for name, shift in flow.sources(tensor).items():
                bounds[name] = min(max(1, size - shift), bounds.get(name, size))
    return bounds


def length_inputs(graph: Graph, specs: Sequence[TensorSpec]) -> set[str]:
    """Inputs that give a recurrent operator the lengths of its sequences."""
    flow = _Flow(graph, [spec.name for spec in specs])
    found: set[str] = set()
    for node in flow.nodes():
        if node.op_type in _RECURRENT and len(node.input) > _LENGTHS:
            found.update(flow.sources(node.input[_LENGTHS]))
    return found


class _Flow:
    """Which inputs' values a tensor carries, and what has been added to them on the way."""

    def __init__(self, graph: Graph, names: Iterable[str]) -> None:
        self._graph = graph
        self._carried: dict[str, dict[str, int]] = {name: {name: 0} for name in names}

    def sources(self, tensor: str) -> dict[str, int]:
        return self._carried.get(tensor, {})

    def nodes(self) -> Iterable[onnx.NodeProto]:
        """The graph's nodes in order; what a node carries is known after it has been passed."""
        for node in self._graph.nodes:
            if node.domain in DEFAULT_DOMAINS:
                yield node
                self._pass(node)

    def _pass(self, node: onnx.NodeProto) -> None:
        carried: dict[str, int] = {}
        for tensor, shift in self._handed_on(node):
            for name, earlier in self.sources(tensor).items():
                carried[name] = max(earlier + shift, carried.get(name, 0))
        if carried:
            self._carried.update((output, carried) for output in node.output)

    def _handed_on(self, node: onnx.NodeProto) -> list[tuple[str, int]]:
        if node.op_type in _HANDS_ON:
            positions = _HANDS_ON[node.op_type]
            chosen = range(len(node.input)) if positions is None else positions
            return [(node.input[i], 0) for i in chosen if i < len(node.input)]
        if node.op_type == "Add":
            left, right = node.input[0], node.input[1]
            return [(left, self._added(right)), (right, self._added(left))]
        return []

    def _added(self, name: str) -> int:
        value = self._graph.constant(name)
        return int(value.max()) if value is not None and value.size and value.dtype.kind in "iu" else 0


def _indexed(graph: Graph, node: onnx.NodeProto) -> Iterable[tuple[str, int]]:
    """Tensors that a node takes as indices, each with the size of what they index."""
    if node.op_type in ("Gather", "GatherElements") and graph.is_constant(node.input[0]):
        shape = graph.shape(node.input[0])
        axis = _axis(node)
        if shape and -len(shape) <= axis < len(shape):
            yield node.input[1], shape[axis]
    elif node.op_type == "GatherND" and graph.is_constant(node.input[0]) and graph.shape(node.input[0]):
        yield node.input[1], graph.shape(node.input[0])[0]
    elif node.op_type == "OneHot" and graph.is_constant(node.input[1]):
        depth: Any = graph.constant(node.input[1])
        yield node.input[0], int(depth.reshape(-1)[0])


def _axis(node: onnx.NodeProto) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == "axis"), 0)
