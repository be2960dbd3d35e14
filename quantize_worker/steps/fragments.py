"""A model run in pieces between chosen matrix products, which the caller computes.

The products are taken out of the graph. What lies between them becomes small models that are run one
after the other, each on what the earlier ones and the products have left. So the inputs of a layer
can be had for any choice of the weights before it, and nothing is run twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from quantize_worker.steps.graph import nodes_in, subgraphs_of
from quantize_worker.steps.opening import open_session
from quantize_worker.steps.samples import Sample
from quantize_worker.steps.skeleton import read_skeleton

Array = NDArray[Any]
Live = dict[str, Array]
SCRATCH_FILE = ".pocketfleet-fragment.onnx"


@dataclass(frozen=True)
class Fragment:
    """Nodes to be run together: what they read that is no constant, and what is read of them later."""

    nodes: list[onnx.NodeProto]
    inputs: list[str]
    outputs: list[str]
    kept: frozenset[str]  # tensors that are still needed when it has run


class Fragments:
    """A model's pieces, in the order of ``cuts``; the last one ends at its outputs.

    Args:
        model: its external data lies beside it; so do the pieces' graphs, for a while.
        products: first outputs of the nodes that are taken out.
        cuts: tensors at which pieces end, in an order in which the model can compute them.
        lean: open the pieces without copying their weights.
    """

    def __init__(self, model: Path, products: Collection[str], cuts: Sequence[str], *, lean: bool) -> None:
        self._model, self._lean = model, lean
        self._proto = read_skeleton(model)
        self._constants = {tensor.name: tensor for tensor in self._proto.graph.initializer}
        self._pieces = list(_pieces(self._proto.graph, self._constants, products, cuts))
        self._sessions: dict[int, Any] = {}

    def run(self, index: int, live: Live) -> Live:
        """Run a piece on one sample.

        Args:
            index: of the piece; each is run after all earlier ones.
            live: what :meth:`run` has left of the last piece, and the outputs of products; for the
                first piece the sample.

        Returns:
            All tensors that are still needed, the cut among them.
        """
        piece = self._pieces[index]
        found = dict(live)
        if piece.nodes:
            given = {name: live[name] for name in piece.inputs}
            if index not in self._sessions:
                self._sessions[index] = self._session(piece, given)
            answers = self._sessions[index].run(piece.outputs, given)
            found.update(zip(piece.outputs, answers, strict=True))
        return {name: value for name, value in found.items() if name in piece.kept}

    def close(self, index: int) -> None:
        """A piece is run no more."""
        self._sessions.pop(index, None)

    def _session(self, piece: Fragment, given: Sample) -> Any:
        """The piece as a model; types and ranks of its inputs are those of the values at hand."""
        graph, read = self._proto.graph, set(_read(piece.nodes))
        inputs = [_value(name, values) for name, values in given.items()]
        outputs = [helper.make_empty_tensor_value_info(name) for name in piece.outputs]
        constants = [tensor for name, tensor in self._constants.items() if name in read]
        made = helper.make_graph(piece.nodes, graph.name or "piece", inputs, outputs, constants)
        model = onnx.ModelProto(ir_version=self._proto.ir_version)
        model.opset_import.extend(self._proto.opset_import)
        model.functions.extend(self._proto.functions)
        model.graph.CopyFrom(made)
        scratch = self._model.with_name(SCRATCH_FILE)
        scratch.write_bytes(model.SerializeToString())
        try:
            return open_session(scratch, lean=self._lean)
        finally:
            scratch.unlink()


def _pieces(
    graph: onnx.GraphProto, constants: Collection[str], products: Collection[str], cuts: Sequence[str]
) -> Iterator[Fragment]:
    taken = {index for index, node in enumerate(graph.node) if node.output and node.output[0] in products}
    makers = {n: i for i, node in enumerate(graph.node) if i not in taken for n in node.output if n}
    results = [value.name for value in graph.output]
    done: set[int] = set()
    parts = []
    for wanted in [*([cut] for cut in cuts), results]:
        part = _needed(graph, makers, wanted, done)
        done |= set(part)
        parts.append(part)
    for index, part in enumerate(parts):
        nodes = [graph.node[i] for i in part]
        made = {name for node in nodes for name in node.output if name}
        later = set(_read(graph.node[i] for other in parts[index + 1 :] for i in other))
        kept = later.union(results, cuts[index:])
        read = dict.fromkeys(name for name in _read(nodes) if name not in made and name not in constants)
        inner = set(_inner(nodes))
        yield Fragment(nodes, [n for n in read if n not in inner], sorted(made & kept), frozenset(kept))


def _needed(graph: onnx.GraphProto, makers: dict[str, int], wanted: list[str], done: set[int]) -> list[int]:
    """Nodes that the wanted tensors need and that have not been run, in graph order."""
    found: set[int] = set()
    pending = list(wanted)
    while pending:
        maker = makers.get(pending.pop())
        if maker is not None and maker not in done and maker not in found:
            found.add(maker)
            pending.extend(_read([graph.node[maker]]))
    return sorted(found)


def _read(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Names that nodes and their subgraphs read."""
    for node in nodes:
        yield from (name for name in node.input if name)
        for scope in subgraphs_of(node):
            yield from (value.name for value in scope.output)
            yield from (name for below in nodes_in(scope) for name in below.input if name)


def _inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Names that subgraphs of these nodes make themselves."""
    pending = [scope for node in nodes for scope in subgraphs_of(node)]
    while pending:
        scope = pending.pop()
        for value in (*scope.input, *scope.initializer):
            yield value.name
        for node in scope.node:
            yield from node.output
            pending.extend(subgraphs_of(node))


def _value(name: str, values: Array) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * values.ndim)
