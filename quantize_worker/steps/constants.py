"""Weights that reach their product through other nodes: exporters write ``MatMul(x, Transpose(w))``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx

from quantize_worker.steps.graph import DEFAULT_DOMAINS, Graph, nodes_in, subgraphs_of

_SWAP = [1, 0]


@dataclass
class _Readers:
    """Who reads a tensor: nodes of the main graph by name, and how often anything else does."""

    nodes: dict[str, list[onnx.NodeProto]]
    elsewhere: Counter[str]


def skip_identities(graph: Graph) -> int:
    """Let readers of an ``Identity`` of a constant read the constant; returns how many are gone."""
    readers, gone = _readers(graph), 0
    for node in graph.nodes:
        if not _reads_constant(graph, node, "Identity") or readers.elsewhere[node.output[0]]:
            continue
        for reader in readers.nodes.get(node.output[0], []):
            _read_instead(reader, node.output[0], node.input[0])
        graph.replace(node, [])
        gone += 1
    return gone


def skip_transposes(graph: Graph) -> int:
    """Let products read a matrix directly that is transposed first; returns how many transposes are gone.

    A matrix that nothing else reads is stored transposed. One that is read as it is, too (a table that
    is also the last product's weight) stays a single one: the product becomes a ``Gemm`` that transposes.
    """
    readers, gone = _readers(graph), 0
    for node in graph.nodes:
        if not _reads_constant(graph, node, "Transpose") or not _swaps(graph, node):
            continue
        weight, output = node.input[0], node.output[0]
        products = readers.nodes.get(output, [])
        if readers.elsewhere[output] or not all(_is_product(product, output) for product in products):
            continue
        if len(readers.nodes[weight]) == 1 and not readers.elsewhere[weight]:
            value = graph.constant(weight)
            assert value is not None
            stored = graph.add_constant(f"{weight}_transposed", value.T)
            for product in products:
                _read_instead(product, output, stored)
        else:
            for product in products:
                graph.replace(product, _transposing(graph, product, weight))
        graph.replace(node, [])
        gone += 1
    return gone


def _transposing(graph: Graph, product: onnx.NodeProto, weight: str) -> list[onnx.NodeProto]:
    """``x (…, K) · weightᵀ`` as a Gemm over all rows of x; weight is (N, K)."""
    x, output = product.input[0], product.output[0]
    outputs, columns = graph.shape(weight)
    names = {
        part: graph.fresh_name(f"{output}_{part}") for part in ("rows", "product", "shape", "lead", "whole")
    }
    flat = graph.add_constant(f"{output}_flat", np.array([-1, columns], np.int64))
    last = graph.add_constant(f"{output}_last", np.array([outputs], np.int64))
    first, end, axis = (
        graph.add_constant(f"{output}_{part}", np.array([at], np.int64))
        for part, at in (("first", 0), ("end", -1), ("axis", 0))
    )
    return [
        graph.node("Reshape", [x, flat], [names["rows"]]),
        graph.node("Gemm", [names["rows"], weight], [names["product"]], transB=1),
        graph.node("Shape", [x], [names["shape"]]),
        graph.node("Slice", [names["shape"], first, end, axis], [names["lead"]]),
        graph.node("Concat", [names["lead"], last], [names["whole"]], axis=0),
        graph.node("Reshape", [names["product"], names["whole"]], [output]),
    ]


def _readers(graph: Graph) -> _Readers:
    found = _Readers({}, Counter(output.name for output in graph.model.graph.output))
    for node in graph.nodes:
        for name in dict.fromkeys(node.input):
            found.nodes.setdefault(name, []).append(node)
        for inner in nodes_in(*subgraphs_of(node)):
            found.elsewhere.update(inner.input)
        for scope in subgraphs_of(node):
            found.elsewhere.update(output.name for output in scope.output)
    return found


def _reads_constant(graph: Graph, node: onnx.NodeProto, operator: str) -> bool:
    return node.op_type == operator and node.domain in DEFAULT_DOMAINS and graph.is_constant(node.input[0])


def _swaps(graph: Graph, node: onnx.NodeProto) -> bool:
    orders = [list(entry.ints) for entry in node.attribute if entry.name == "perm"]
    return len(graph.shape(node.input[0])) == len(_SWAP) and orders in ([], [_SWAP])


def _is_product(node: onnx.NodeProto, weight: str) -> bool:
    right = node.op_type == "MatMul" and node.domain in DEFAULT_DOMAINS
    return right and node.input[1] == weight and node.input[0] != weight


def _read_instead(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new
