"""Weights that are only stored small: restored to FP32 when the model is loaded.

``Cast`` and ``Mul`` of constants are folded by the runtime (``DequantizeLinear`` would not be), so the
loaded model is the FP32 one. Any operator's weight can be stored so.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from quantize_worker.steps.layers import Layer
from quantize_worker.steps.rewrite.channels import round_channels
from quantize_worker.steps.rewrite.scratch import Array
from quantize_worker.steps.rewrite.workplace import Workplace

HALF_MAX = np.finfo(np.float16).max


def rewrite(place: Workplace, layer: Layer, bits: int) -> None:
    """Store the layer's weights in 16 bits of floating point, or in 8 bits per channel."""
    restored, nodes = {}, []
    for weight in layer.weights:
        restored[weight], made = _restored(place, layer, weight, bits)
        nodes.extend(made)
    changed = onnx.NodeProto()
    changed.CopyFrom(layer.node)
    del changed.input[:]
    changed.input.extend(restored.get(name, name) for name in layer.node.input)
    place.graph.replace(layer.node, [*nodes, changed])


def _restored(place: Workplace, layer: Layer, weight: str, bits: int) -> tuple[str, list[onnx.NodeProto]]:
    graph = place.graph
    maker = _half if bits == 16 else _eighth
    constants = place.once((weight, str(bits), "stored"), lambda: maker(place, layer, weight))
    real = graph.fresh_name(f"{weight}.restored")
    cast = graph.node("Cast", [constants[0]], [real], to=TensorProto.FLOAT)
    if bits == 16:
        return real, [cast]
    scaled = graph.fresh_name(f"{weight}.scaled")
    return scaled, [cast, graph.node("Mul", [real, constants[1]], [scaled])]


def _half(place: Workplace, layer: Layer, weight: str) -> list[str]:
    def halved(block: Array, part: slice) -> Array:
        return np.clip(block, -HALF_MAX, HALF_MAX).astype(np.float16)

    made = place.scratch.mapped(_value(place, weight), np.float16, halved)
    return [place.graph.add_constant(f"{weight}.fp16", made)]


def _eighth(place: Workplace, layer: Layer, weight: str) -> list[str]:
    rounded = round_channels(_value(place, weight), layer.channel_axes, place.scratch)
    add = place.graph.add_constant
    return [add(f"{weight}.int8", rounded.values), add(f"{weight}.scales", rounded.scales)]


def _value(place: Workplace, weight: str) -> Array:
    value = place.graph.constant(weight)
    assert value is not None
    return value
