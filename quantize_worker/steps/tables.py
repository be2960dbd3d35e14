"""Embedding tables (``Gather`` of rows) in 8 or 4 bits."""

from __future__ import annotations

import numpy as np
import onnx

from quantize_worker.steps.graph import CONTRIB_DOMAIN, Graph
from quantize_worker.steps.layers import INT4_BLOCK, Layer
from quantize_worker.steps.weights import pack_nibbles, round_int4, round_int8


def shrink_to_int8(graph: Graph, layer: Layer) -> None:
    """Rows as INT8 with a scale each, in standard operators: Gather, Cast, Mul."""
    rounded = round_int8(layer.matrix(graph), axis=0)
    values = graph.add_constant(f"{layer.weight}.int8", rounded.values)
    scales = graph.add_constant(f"{layer.weight}.scale", rounded.scales[:, None])
    row, real, scale = (graph.fresh_name(f"{layer.name}.{part}") for part in ("row", "real", "row_scale"))
    graph.replace(
        layer.node,
        [
            graph.node("Gather", [values, layer.activation], [row]),
            graph.node("Cast", [row], [real], to=onnx.TensorProto.FLOAT),
            graph.node("Gather", [scales, layer.activation], [scale]),
            graph.node("Mul", [real, scale], [layer.name]),
        ],
    )


def shrink_to_int4(graph: Graph, layer: Layer) -> None:
    """Rows in blocks of 4-bit values with FP16 scales, by ``GatherBlockQuantized``."""
    rounded = round_int4(layer.matrix(graph), block=INT4_BLOCK)
    rows = rounded.values.shape[0]
    inputs = [
        graph.add_constant(f"{layer.weight}.int4", pack_nibbles(rounded.values.reshape(rows, -1))),
        layer.activation,
        graph.add_constant(f"{layer.weight}.scales", rounded.scales.astype(np.float16)),
        graph.add_constant(f"{layer.weight}.zero_points", pack_nibbles(rounded.zero_points)),
    ]
    half = graph.fresh_name(f"{layer.name}.fp16")
    gather = graph.node(
        "GatherBlockQuantized",
        inputs,
        [half],
        domain=CONTRIB_DOMAIN,
        bits=4,
        block_size=INT4_BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )
    cast = graph.node("Cast", [half], [layer.name], to=onnx.TensorProto.FLOAT)
    graph.replace(layer.node, [gather, cast])
