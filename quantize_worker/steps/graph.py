"""An ONNX graph being rewritten: constants as NumPy arrays, nodes replaced in place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
DEFAULT_DOMAINS = ("", "ai.onnx")
CONTRIB_DOMAIN = "com.microsoft"
FLOAT_TYPES = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}


class Graph:
    """The top-level graph of a model.

    Nodes of subgraphs (``If``, ``Loop``) are carried along unchanged.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._lift_constants()
        self._taken_names = set(_names(model.graph))

    @classmethod
    def read(cls, path: Path) -> Graph:
        """Read a model with its external data, which :mod:`quantize_worker.steps.intake` has checked."""
        return cls(onnx.load(path, load_external_data=True))

    @property
    def opset(self) -> int:
        versions = [o.version for o in self.model.opset_import if o.domain in DEFAULT_DOMAINS]
        return int(versions[0]) if versions else 1

    def constant(self, name: str) -> Array | None:
        """The value of an initializer (or of a ``Constant`` node), None for anything else."""
        tensor = self._initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def is_float32(self, name: str) -> bool:
        tensor = self._initializers.get(name)
        return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an initializer, without converting it."""
        return tuple(self._initializers[name].dims)

    def parameters(self) -> int:
        """Numbers stored in floating-point initializers."""
        return sum(_count(t) for t in self._initializers.values() if t.data_type in FLOAT_TYPES)

    def weight_bytes(self) -> int:
        """Bytes of all initializers."""
        return sum(_count(t) * _item_bytes(t) for t in self._initializers.values())

    def add_constant(self, name: str, value: Array | np.generic) -> str:
        """Add an initializer under ``name`` (made unique) and return its name."""
        unique = self.fresh_name(name)
        self._initializers[unique] = numpy_helper.from_array(np.ascontiguousarray(value), unique)
        return unique

    def fresh_name(self, stem: str) -> str:
        """A tensor or node name that is not taken yet."""
        name, number = stem, 1
        while name in self._taken_names:
            number += 1
            name = f"{stem}_{number}"
        self._taken_names.add(name)
        return name

    def node(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
        """A new node, not yet part of the graph; ``domain`` may be among the attributes."""
        made = helper.make_node(operator, inputs, outputs, name=self.fresh_name(outputs[0]), **attributes)
        if made.domain == CONTRIB_DOMAIN:
            self._import_contrib()
        return made

    def replace(self, old: onnx.NodeProto, new: Iterable[onnx.NodeProto]) -> None:
        """Put ``new`` where ``old`` stands."""
        index = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[index : index + 1] = list(new)

    def finish(self) -> onnx.ModelProto:
        """The rewritten model, without initializers that nothing reads any more."""
        graph = self.model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = Counter(_read_names(graph))
        used.update(output.name for output in graph.output)
        kept = [tensor for name, tensor in self._initializers.items() if used[name]]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        inputs = [value for value in graph.input if value.name not in self._initializers]
        del graph.input[:]
        graph.input.extend(inputs)
        del graph.value_info[:]  # types may have changed; ONNX Runtime infers them again
        return self.model

    def _lift_constants(self) -> None:
        """Turn top-level ``Constant`` nodes that hold a tensor into initializers."""
        kept = []
        for node in self.nodes:
            tensor = _constant_tensor(node)
            if tensor is None:
                kept.append(node)
            else:
                self._initializers[tensor.name] = tensor
        self.nodes = kept

    def _import_contrib(self) -> None:
        if not any(entry.domain == CONTRIB_DOMAIN for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in a model: initializers and attributes, in subgraphs and functions too."""
    pending: list[Any] = [model.graph, *model.functions]
    while pending:
        scope = pending.pop()
        if isinstance(scope, onnx.GraphProto):
            yield from scope.initializer
            for sparse in scope.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in scope.node:
            for attribute in node.attribute:
                yield from _attribute_tensors(attribute)
                pending.extend(_attribute_graphs(attribute))


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, those of subgraphs and functions too."""
    return nodes_in(model.graph, *model.functions)


def nodes_in(*scopes: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Every node of these scopes and of their subgraphs."""
    pending: list[Any] = list(scopes)
    while pending:
        for node in pending.pop().node:
            yield node
            for attribute in node.attribute:
                pending.extend(_attribute_graphs(attribute))


def _count(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def _item_bytes(tensor: onnx.TensorProto) -> int:
    if tensor.data_type == onnx.TensorProto.STRING:
        return 0
    return int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for item in (*sparse, *attribute.sparse_tensors):
        yield from (item.values, item.indices)


def _attribute_graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    own = [attribute.g] if attribute.HasField("g") else []
    return [*own, *attribute.graphs]


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in DEFAULT_DOMAINS or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name != "value":
        return None
    tensor = onnx.TensorProto()
    tensor.CopyFrom(attribute.t)
    tensor.name = node.output[0]
    return tensor


def _read_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that the nodes of a graph and its subgraphs read."""
    pending = [graph]
    while pending:
        scope = pending.pop()
        if scope is not graph:
            yield from (output.name for output in scope.output)
        for node in scope.node:
            yield from node.input
            for attribute in node.attribute:
                pending.extend(_attribute_graphs(attribute))


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name in use in a graph and its subgraphs."""
    pending = [graph]
    while pending:
        scope = pending.pop()
        for value in (*scope.input, *scope.output, *scope.value_info, *scope.initializer):
            yield value.name
        for node in scope.node:
            yield node.name
            yield from (*node.input, *node.output)
            for attribute in node.attribute:
                pending.extend(_attribute_graphs(attribute))
