"""INT4 weights in blocks: ``MatMulNBits`` for matrices, ``GatherBlockQuantized`` for tables.

Matrices are rounded by GPTQ where calibration has given the Gram matrix of what they multiply.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from quantize_worker.steps.calibration import Activation
from quantize_worker.steps.gptq import propagate
from quantize_worker.steps.graph import CONTRIB_DOMAIN, Graph
from quantize_worker.steps.layers import INT4_BLOCK, Layer
from quantize_worker.steps.tables import shrink_to_int4
from quantize_worker.steps.weights import pack_nibbles, round_int4

GRAM_BUDGET_BYTES = 1 << 30  # for the Gram matrices of all layers together
MAXIMUM_GRAM_COLUMNS = 4096  # inverting a larger one takes minutes
INT8_COMPUTE = 4  # MatMulNBits may round activations to INT8 while it multiplies


def correlated(layers: list[Layer]) -> set[str]:
    """Activations whose Gram matrices are worth their memory, first come, first served."""
    chosen: dict[str, int] = {}
    for layer in layers:
        columns = layer.shape[1] if layer.transposed else layer.shape[0]
        size = 4 * columns * columns
        if layer.operator == "Gather" or columns > MAXIMUM_GRAM_COLUMNS:
            continue
        if layer.activation in chosen or sum(chosen.values()) + size <= GRAM_BUDGET_BYTES:
            chosen[layer.activation] = size
    return set(chosen)


def shrink(graph: Graph, layers: list[Layer], activations: Mapping[str, Activation]) -> None:
    """Rewrite the layers. ``activations`` weigh the rounding error by what each column meets."""
    for layer in layers:
        if layer.operator == "Gather":
            shrink_to_int4(graph, layer)
        else:
            _shrink_matrix(graph, layer, activations.get(layer.activation))


def _shrink_matrix(graph: Graph, layer: Layer, activation: Activation | None) -> None:
    weight = np.ascontiguousarray(layer.matrix(graph).T)  # (out, in)
    columns = weight.shape[1]
    importance = activation.importance() if activation else None
    if importance is not None and len(importance) != columns:
        importance = None
    rounded = round_int4(weight, block=INT4_BLOCK, importance=importance)
    if activation is not None and activation.gram is not None and len(activation.gram) == columns:
        rounded = propagate(weight, rounded, activation.gram)
    inputs = [
        layer.activation,
        graph.add_constant(f"{layer.weight}.int4", pack_nibbles(rounded.values)),
        graph.add_constant(f"{layer.weight}.scales", rounded.scales),
        graph.add_constant(f"{layer.weight}.zero_points", pack_nibbles(rounded.zero_points)),
    ]
    bias = layer.node.input[2] if len(layer.node.input) > 2 else ""
    product = graph.fresh_name(f"{layer.name}.product") if bias else layer.name
    nodes = [
        graph.node(
            "MatMulNBits",
            inputs,
            [product],
            domain=CONTRIB_DOMAIN,
            K=columns,
            N=weight.shape[0],
            bits=4,
            block_size=INT4_BLOCK,
            accuracy_level=INT8_COMPUTE,
        )
    ]
    if bias:
        nodes.append(_add(graph, product, bias, layer.name))
    graph.replace(layer.node, nodes)


def _add(graph: Graph, product: str, bias: str, output: str) -> onnx.NodeProto:
    return graph.node("Add", [product, bias], [output])
