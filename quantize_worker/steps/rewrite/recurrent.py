"""LSTM with weights in eight bits and activations rounded while running: ``DynamicQuantizeLSTM``."""

from __future__ import annotations

import numpy as np

from quantize_worker.steps.graph import CONTRIB_DOMAIN
from quantize_worker.steps.layers import Layer, attribute
from quantize_worker.steps.rewrite import stored
from quantize_worker.steps.rewrite.channels import round_channels
from quantize_worker.steps.rewrite.workplace import Workplace

ATTRIBUTES = (
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "input_forget",
)
OPTIONAL_INPUTS = 8  # X, W, R, B, sequence_lens, initial_h, initial_c, P; scales and zeros follow


def rewrite(place: Workplace, layer: Layer) -> None:
    """Rewrite the LSTM; one with its batch first (``layout`` 1) is only stored in eight bits."""
    if attribute(layer.node, "layout", 0):
        stored.rewrite(place, layer, 8)
        return
    graph, node = place.graph, layer.node
    inputs = [*node.input, *[""] * (OPTIONAL_INPUTS - len(node.input))]
    for position in (1, 2):
        weight = inputs[position]
        names = place.once((weight, "lstm"), lambda weight=weight: _constants(place, weight))  # type: ignore[misc]
        inputs[position] = names[0]
        inputs.extend(names[1:])
    kept = {name: value for name in ATTRIBUTES if (value := attribute(node, name, None)) is not None}
    made = graph.node("DynamicQuantizeLSTM", inputs, list(node.output), domain=CONTRIB_DOMAIN, **kept)
    graph.replace(node, [made])


def _constants(place: Workplace, weight: str) -> list[str]:
    """Values (directions, inputs, 4 * hidden), scales and zero points (directions, 4 * hidden)."""
    value = place.graph.constant(weight)
    assert value is not None
    rounded = round_channels(value, (0, 1), place.scratch)
    values = place.scratch.keep(np.ascontiguousarray(rounded.values.transpose(0, 2, 1)))
    scales = rounded.scales[:, :, 0]
    parts = {"int8": values, "scales": scales, "zero_points": np.zeros(scales.shape, np.int8)}
    return [place.graph.add_constant(f"{weight}.{part}", part_value) for part, part_value in parts.items()]
