"""INT8 weights per channel, activations rounded while running: ``DynamicQuantizeMatMul``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from quantize_worker.steps.graph import CONTRIB_DOMAIN, DEFAULT_DOMAINS
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.rewrite.channels import Floats, round_matrix
from quantize_worker.steps.rewrite.smoothed import Smoother
from quantize_worker.steps.rewrite.workplace import Workplace

LEVELS = 256


def rewrite(place: Workplace, layers: Sequence[Layer], smoother: Smoother) -> None:
    """Rewrite matrices, in graph order."""
    for layer in layers:
        _rewrite(place, layer, smoother)


def _rewrite(place: Workplace, layer: Layer, smoother: Smoother) -> None:
    graph = place.graph
    activation, factors, nodes = smoother.of(layer)
    weight, scales = place.once(
        (layer.weight, "dynamic", layer.activation if factors is not None else "", str(layer.transposed)),
        lambda: _constants(place, layer, factors),
    )
    (bias, output, after), addition = place.split_bias(layer), None
    if not bias and not after:
        bias, addition = _added_bias(place, layer)
    inputs = [activation, weight, scales, *(["", bias] if bias else [])]
    output = output if addition is None else addition.output[0]
    product = graph.node("DynamicQuantizeMatMul", inputs, [output], domain=CONTRIB_DOMAIN)
    graph.replace(layer.node, [*nodes, product, *after])
    if addition is not None:
        graph.replace(addition, [])


def _constants(place: Workplace, layer: Layer, factors: Floats | None) -> list[str]:
    """The weight as (in, out), and a scale per output."""
    values, scales = round_matrix(place, layer, factors)
    if layer.transposed:
        values = place.scratch.keep(values.T)
    add = place.graph.add_constant
    return [add(f"{layer.weight}.int8", values), add(f"{layer.weight}.scales", scales)]


def _added_bias(place: Workplace, layer: Layer) -> tuple[str, onnx.NodeProto | None]:
    """A constant that the next node adds, one number an output: the kernel adds it on its way out."""
    product = layer.node.output[0]
    readers = place.readers(product)
    if len(readers) != 1 or place.is_output(product):
        return "", None
    node = readers[0]
    if node.op_type != "Add" or node.domain not in DEFAULT_DOMAINS:
        return "", None
    other = node.input[1] if node.input[0] == product else node.input[0]
    value = place.graph.constant(other)
    if value is None or value.shape != (layer.outputs,) or value.dtype != np.float32:
        return "", None
    return str(other), node
