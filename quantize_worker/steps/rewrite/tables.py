"""Embedding tables (``Gather`` of rows) in blocks of 4 or 8 bits: ``GatherBlockQuantized``."""

from __future__ import annotations

from quantize_worker.steps.candidates import Blocks
from quantize_worker.steps.graph import CONTRIB_DOMAIN
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.rewrite.blocks import folded_scales, named
from quantize_worker.steps.rewrite.workplace import Workplace


def rewrite(place: Workplace, layer: Layer, blocks: Blocks, name: str) -> None:
    """Put the table in blocks, made in format ``name``, where the layer's node stands."""
    graph = place.graph
    values = blocks.values.reshape(blocks.values.shape[0], -1)  # (rows, columns * bits / 8)
    constants = place.once((layer.weight, name, "table"), lambda: named(graph, layer, blocks, values))
    scales, nodes = folded_scales(graph, layer, constants)
    lookup = graph.node(
        "GatherBlockQuantized",
        [constants[0], layer.activation, scales, *constants[3:]],
        [layer.node.output[0]],
        domain=CONTRIB_DOMAIN,
        bits=blocks.bits,
        block_size=blocks.block,
        gather_axis=0,
        quantize_axis=1,
    )
    graph.replace(layer.node, [*nodes, lookup])
