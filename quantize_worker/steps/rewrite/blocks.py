"""Matrices in blocks of 4 or 8 bits: ``MatMulNBits``.

Scales are stored in eight bits, times a scale per row; the runtime multiplies them out when it loads
the model. (``accuracy_level`` 4 lets the kernel round activations to eight bits while it multiplies.)
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from quantize_worker.steps.candidates import Blocks
from quantize_worker.steps.graph import CONTRIB_DOMAIN, Graph
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.rewrite.scratch import Array
from quantize_worker.steps.rewrite.workplace import Workplace

INT8_COMPUTE = 4


def rewrite(place: Workplace, layer: Layer, blocks: Blocks, name: str) -> None:
    """Put the matrix in blocks, made in format ``name``, where the layer's node stands."""
    graph = place.graph
    constants = place.once((layer.weight, name, "matrix"), lambda: _constants(graph, layer, blocks))
    scales, nodes = folded_scales(graph, layer, constants)
    bias, output, after = place.split_bias(layer)
    # inputs: A, B, scales, zero points, group index, bias
    inputs = [
        layer.activation,
        constants[0],
        scales,
        *constants[3:],
        *([""] * (4 - len(constants))),
        "",
        bias,
    ]
    while not inputs[-1]:
        inputs.pop()
    product = graph.node(
        "MatMulNBits",
        inputs,
        [output],
        domain=CONTRIB_DOMAIN,
        K=blocks.shape[1],
        N=blocks.shape[0],
        bits=blocks.bits,
        block_size=blocks.block,
        accuracy_level=INT8_COMPUTE,
    )
    graph.replace(layer.node, [*nodes, product, *after])


def folded_scales(graph: Graph, layer: Layer, constants: list[str]) -> tuple[str, list[onnx.NodeProto]]:
    """Scales as the product of two constants, which ONNX Runtime folds when it loads the model."""
    real, scales = (graph.fresh_name(f"{layer.weight}.{part}") for part in ("codes", "scales"))
    cast = graph.node("Cast", [constants[1]], [real], to=TensorProto.FLOAT)
    return scales, [cast, graph.node("Mul", [real, constants[2]], [scales])]


def _constants(graph: Graph, layer: Layer, blocks: Blocks) -> list[str]:
    """Names of values, scale codes, row scales and, if there are any, zero points."""
    outputs, count = blocks.scale_codes.shape
    values = blocks.values.reshape(outputs, count, blocks.block * blocks.bits // 8)
    return named(graph, layer, blocks, values)


def named(graph: Graph, layer: Layer, blocks: Blocks, values: Array) -> list[str]:
    """Add a weight's constants to the graph; ``values`` in the shape that the operator wants."""
    stem = f"{layer.weight}.int{blocks.bits}"
    parts: dict[str, Array] = {
        "": values,
        ".scale_codes": blocks.scale_codes,
        ".row_scales": blocks.row_scales,
    }
    if blocks.zero_points is not None:
        parts[".zero_points"] = blocks.zero_points
    return [graph.add_constant(f"{stem}{part}", value) for part, value in parts.items()]
