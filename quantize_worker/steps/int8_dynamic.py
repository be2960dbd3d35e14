"""INT8 weights per channel, activations rounded while running: ``DynamicQuantizeMatMul``."""

from __future__ import annotations

from quantize_worker.steps.graph import CONTRIB_DOMAIN, Graph
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.tables import shrink_to_int8
from quantize_worker.steps.weights import round_int8


def shrink(graph: Graph, layers: list[Layer]) -> None:
    """Rewrite the layers."""
    for layer in layers:
        if layer.operator == "Gather":
            shrink_to_int8(graph, layer)
        else:
            _shrink_matrix(graph, layer)


def _shrink_matrix(graph: Graph, layer: Layer) -> None:
    rounded = round_int8(layer.matrix(graph), axis=1)
    inputs = [
        layer.activation,
        graph.add_constant(f"{layer.weight}.int8", rounded.values),
        graph.add_constant(f"{layer.weight}.scale", rounded.scales),
    ]
    bias = layer.node.input[2] if len(layer.node.input) > 2 else ""
    product = graph.fresh_name(f"{layer.name}.product") if bias else layer.name
    nodes = [graph.node("DynamicQuantizeMatMul", inputs, [product], domain=CONTRIB_DOMAIN)]
    if bias:
        nodes.append(graph.node("Add", [product, bias], [layer.name]))
    graph.replace(layer.node, nodes)
