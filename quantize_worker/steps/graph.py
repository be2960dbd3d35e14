"""An ONNX graph being rewritten: constants as NumPy arrays, nodes replaced in place, weights lazy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantize_worker.steps import tensors
from quantize_worker.steps.datafile import DATA_FILE, GRAPH_FILE, INLINE_BYTES, DataFile, write_file
from quantize_worker.steps.links import Links
from quantize_worker.steps.skeleton import read_skeleton
from quantize_worker.steps.tensors import Array, Folder

DEFAULT_DOMAINS = ("", "ai.onnx")
CONTRIB_DOMAIN = "com.microsoft"
MINIMUM_IR_VERSION = 4  # the first in which an initializer need not be an input
_CONSTANT_TYPES: dict[str, type[np.generic]] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
FLOAT_TYPES = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


class Graph:
    """The top-level graph of a model.

    Nodes of subgraphs (``If``, ``Loop``) are carried along unchanged. Weights that lie in files are
    mapped, never read whole; :meth:`write` streams them.

    Args:
        model: its initializers may be external.
        folder: where its external data lies.
        own: the name of the graph's own file, if weights are left in it.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path | None = None, *, own: str = "") -> None:
        self.model = model
        self._files = Folder(folder, own)
        self._stored: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self._added: dict[str, Array] = {}
        self._slots = [[node] for node in self._without_constants(model.graph.node)]
        self._slot_of = {id(node): slot for slot in self._slots for node in slot}
        self._nodes: list[onnx.NodeProto] | None = None
        self._taken_names = set(_names(model.graph))

    @classmethod
    def read(cls, path: Path) -> Graph:
        """Read a model, not its weights; :mod:`quantize_worker.steps.intake` has checked where they lie."""
        return cls(read_skeleton(path), path.parent, own=path.name)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """All nodes in order; a new list after a replacement, so don't change it."""
        if self._nodes is None:
            self._nodes = [node for slot in self._slots for node in slot]
        return self._nodes

    @property
    def opset(self) -> int:
        versions = [o.version for o in self.model.opset_import if o.domain in DEFAULT_DOMAINS]
        return int(versions[0]) if versions else 1

    def constants(self) -> list[str]:
        """Names of all initializers (and of top-level ``Constant`` nodes, which are read as such)."""
        return [*self._stored, *self._added]

    def is_constant(self, name: str) -> bool:
        return name in self._stored or name in self._added

    def constant(self, name: str) -> Array | None:
        """The value of an initializer (or of a ``Constant`` node), None for anything else.

        It is read-only; where the weight is external, it is a view on the mapped file.
        """
        if name in self._added:
            return self._added[name]
        tensor = self._stored.get(name)
        return None if tensor is None else self._files.value(tensor)

    def data_type(self, name: str) -> int:
        """ONNX element type of an initializer, ``UNDEFINED`` for anything else."""
        if name in self._added:
            return tensors.data_type_of(self._added[name])
        tensor = self._stored.get(name)
        return TensorProto.UNDEFINED if tensor is None else int(tensor.data_type)

    def is_float32(self, name: str) -> bool:
        return bool(self.data_type(name) == TensorProto.FLOAT)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an initializer, without converting it."""
        return self._added[name].shape if name in self._added else tuple(self._stored[name].dims)

    def parameters(self) -> int:
        """Numbers stored in floating-point initializers."""
        floats = (name for name in self.constants() if self.data_type(name) in FLOAT_TYPES)
        return sum(math.prod(self.shape(name)) for name in floats)

    def weight_bytes(self) -> int:
        """Bytes of all initializers."""
        return sum(self.stored_bytes(name) for name in self.constants())

    def stored_bytes(self, name: str) -> int:
        """Bytes of an initializer as stored; 0 for strings."""
        return tensors.bytes_of(self.data_type(name), self.shape(name))

    def add_constant(self, name: str, value: Array | np.generic) -> str:
        """Add an initializer under ``name`` (made unique) and return its name.

        The array is kept as it is, not copied, until the graph is written.
        """
        unique = self.fresh_name(name)
        if tensors.data_type_of(value) in tensors.PACKED_BITS or value.dtype.kind in "OSU":
            self._stored[unique] = numpy_helper.from_array(np.asarray(value), unique)
        else:
            self._added[unique] = np.asarray(value).view()
            self._added[unique].flags.writeable = False
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
        return helper.make_node(operator, inputs, outputs, name=self.fresh_name(outputs[0]), **attributes)

    def replace(self, old: onnx.NodeProto, new: Iterable[onnx.NodeProto]) -> None:
        """Put ``new`` (``old`` may be among them) where ``old`` stands, in constant time."""
        slot = self._slot_of.pop(id(old))
        index = next(i for i, node in enumerate(slot) if node is old)
        made = list(new)
        slot[index : index + 1] = made
        self._slot_of.update((id(node), slot) for node in made)
        self._nodes = None

    def write(self, folder: Path, *, linked: bool = False) -> list[int]:
        """Stream the rewritten model into ``folder``: ``model.onnx`` and, if needed, ``model.data``.

        Weights go over in pieces. Initializers that nothing reads are left out, so are inferred
        types: they may have changed, and ONNX Runtime infers them again. Equal graphs give equal bytes.

        Args:
            folder: may be the one that the graph was read from.
            linked: leave external weights in their files, which get a hard link in ``folder``.

        Returns:
            Where tensors start in ``model.data``, ascending, and its length last.

        Raises:
            BuildFailed: disk_full.
        """
        made = self._shell()
        inner = [tensor for tensor in tensors_of(made) if tensors.is_external(tensor)]
        links = Links(self._files, folder) if linked else None
        with DataFile(folder) as data:
            made.graph.initializer.extend(self._outside(name, data, links) for name in self._used())
            for tensor in inner:  # of subgraphs and attributes
                _move(tensor, self._files.content(tensor), data)
        write_file(folder / GRAPH_FILE, made.SerializeToString(deterministic=True))
        return [*data.starts, data.position]

    def finish(self) -> onnx.ModelProto:
        """The rewritten model with all weights inline; for small models only."""
        made = self._shell()
        made.graph.initializer.extend(self._inline(name) for name in self._used())
        for tensor in tensors_of(made):
            if tensors.is_external(tensor):
                content = self._files.content(tensor).tobytes()
                tensor.CopyFrom(tensors.with_content(tensors.header(tensor, tensor.name), content))
        return made

    def _shell(self) -> onnx.ModelProto:
        """The model as it will be, without initializers of the top level."""
        made = _copied(self.model, {"graph"})
        made.graph.CopyFrom(_copied(self.model.graph, {"node", "initializer", "value_info", "input"}))
        made.graph.node.extend(self.nodes)
        made.graph.input.extend(v for v in self.model.graph.input if not self.is_constant(v.name))
        contrib = any(node.domain == CONTRIB_DOMAIN for node in nodes_of(made))
        if contrib and not any(entry.domain == CONTRIB_DOMAIN for entry in made.opset_import):
            made.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
        needed = helper.find_min_ir_version_for(made.opset_import, ignore_unknown=True)
        made.ir_version = max(made.ir_version, needed, MINIMUM_IR_VERSION)
        return made

    def _used(self) -> list[str]:
        used = {*_read_names(self.nodes), *(output.name for output in self.model.graph.output)}
        return [name for name in self.constants() if name in used]

    def _outside(self, name: str, data: DataFile, links: Links | None) -> TensorProto:
        length = self.stored_bytes(name)
        if length < INLINE_BYTES or self.data_type(name) == TensorProto.STRING:
            return self._inline(name)
        stored = self._stored.get(name)
        if stored is not None and links is not None and links.takes(stored):
            return links.reference(stored)
        tensor = TensorProto(name=name, data_type=self.data_type(name), dims=self.shape(name))
        content = self._added[name] if stored is None else self._files.content(stored)
        tensors.point_outside(tensor, DATA_FILE, data.append(content, length), length)
        return tensor

    def _inline(self, name: str) -> TensorProto:
        if name in self._added:
            return tensors.tensor_of(self._added[name], name)
        tensor = self._stored[name]
        if not tensors.is_external(tensor):
            return tensor
        return tensors.with_content(tensors.header(tensor, name), self._files.content(tensor).tobytes())

    def _without_constants(self, nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        """Turn top-level ``Constant`` nodes into initializers."""
        for node in nodes:
            tensor = _constant_tensor(node)
            if tensor is None:
                yield node
            else:
                self._stored[tensor.name] = tensor


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in a model: initializers and attributes, in subgraphs and functions too."""
    return tensors_in(model.graph, *model.functions)


def tensors_in(*scopes: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in these scopes and in their subgraphs."""
    pending: list[Any] = list(scopes)
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


def subgraphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node holds as attributes, not those inside them."""
    return [graph for attribute in node.attribute for graph in _attribute_graphs(attribute)]


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


def _constant_tensor(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor that a ``Constant`` node holds, under its output's name; None for any other node."""
    if node.op_type != "Constant" or node.domain not in DEFAULT_DOMAINS or len(node.attribute) != 1:
        return None
    attribute, name = node.attribute[0], node.output[0]
    if attribute.name == "value":
        attribute.t.name = name
        return attribute.t
    if attribute.name not in _CONSTANT_TYPES:
        return None
    value = helper.get_attribute_value(attribute)
    return numpy_helper.from_array(np.array(value, _CONSTANT_TYPES[attribute.name]), name)


def _move(tensor: TensorProto, content: Array, data: DataFile) -> None:
    tensors.point_outside(tensor, DATA_FILE, data.append(content, len(content)), len(content))


def _copied(message: Any, left_out: set[str]) -> Any:
    """A copy of a protobuf message without some of its fields."""
    made = type(message)()
    for field, value in message.ListFields():
        if field.name in left_out:
            continue
        if isinstance(value, (bool, int, float, str, bytes)):
            setattr(made, field.name, value)
        else:
            getattr(made, field.name).MergeFrom(value)
    return made


def _read_names(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Names that nodes and their subgraphs read."""
    pending = [nodes]
    while pending:
        for node in pending.pop():
            yield from node.input
            for attribute in node.attribute:
                for scope in _attribute_graphs(attribute):
                    yield from (output.name for output in scope.output)
                    pending.append(scope.node)


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
