"""Divides activations by the factors that make them easier to round, once for all layers that read them.

Where a norm makes the activation for these layers alone, its scale and bias take the factors, and
nothing is added; elsewhere a ``Mul`` does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from quantize_worker.steps.layers import Layer
from quantize_worker.steps.rewrite.channels import Floats
from quantize_worker.steps.rewrite.smoothing import Columns, Smoothing, choose
from quantize_worker.steps.rewrite.workplace import Workplace

NORMS = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")


class Smoother:
    """Smooths the activations of layers that take one format.

    Args:
        place: the graph.
        layers: matrices in this format.
        activations: statistics by tensor; without those of a tensor, it stays as it is.
        levels: steps of the rounded activation.
        padded: see :func:`quantize_worker.steps.rewrite.smoothing.choose`.
        stem: part of the names of new tensors.
    """

    def __init__(
        self,
        place: Workplace,
        layers: Sequence[Layer],
        activations: Mapping[str, Columns],
        *,
        levels: int,
        stem: str,
        padded: bool = False,
    ) -> None:
        self._place, self._activations, self._levels, self._stem = place, activations, levels, stem
        self._padded = padded
        self._layers: dict[str, list[Layer]] = {}
        for layer in layers:
            self._layers.setdefault(layer.activation, []).append(layer)
        self._chosen: dict[str, Smoothing | None] = {}
        self._made: dict[str, str] = {}

    def smoothing(self, tensor: str) -> Smoothing | None:
        """Factors and range for an activation; None if nothing is known of it."""
        if tensor not in self._chosen:
            self._chosen[tensor] = self._choose(tensor)
        return self._chosen[tensor]

    def of(self, layer: Layer) -> tuple[str, Floats | None, list[onnx.NodeProto]]:
        """The tensor to read, its factors, and the nodes to add (none the second time)."""
        tensor = layer.activation
        smoothing = self.smoothing(tensor)
        if smoothing is None or smoothing.factors is None:
            return tensor, None, []
        if tensor in self._made:
            return self._made[tensor], smoothing.factors, []
        inverse = (np.float32(1.0) / smoothing.factors).astype(np.float32)
        if self._folded(tensor, inverse):
            self._made[tensor] = tensor
            return tensor, smoothing.factors, []
        graph = self._place.graph
        name = self._made[tensor] = graph.fresh_name(f"{tensor}.{self._stem}")
        constant = graph.add_constant(f"{tensor}.{self._stem}.factors", inverse)
        return name, smoothing.factors, [graph.node("Mul", [tensor, constant], [name])]

    def _choose(self, tensor: str) -> Smoothing | None:
        activation = self._activations.get(tensor)
        if activation is None:
            return None
        layers = self._layers[tensor]
        if any(layer.weight in self._place.shared for layer in layers):
            return Smoothing(None, activation.low, activation.high)  # one weight cannot take two factors
        matrices = [layer.matrix(self._place.graph) for layer in layers]
        return choose(matrices, activation, levels=self._levels, padded=self._padded)

    def _folded(self, tensor: str, inverse: Floats) -> bool:
        """Let the norm that makes the tensor do it, if nothing else reads it."""
        place, norm = self._place, self._place.producer(tensor)
        own = [id(layer.node) for layer in self._layers[tensor]]
        if norm is None or norm.op_type not in NORMS or place.is_output(tensor):
            return False
        if any(id(node) not in own for node in place.readers(tensor)):
            return False
        parameters = [place.graph.constant(name) for name in norm.input[1:3] if name]
        if not parameters or any(value is None or value.shape != inverse.shape for value in parameters):
            return False
        changed = onnx.NodeProto()
        changed.CopyFrom(norm)
        for position, value in enumerate(parameters, start=1):
            assert value is not None
            name = f"{norm.input[position]}.{self._stem}"
            changed.input[position] = place.graph.add_constant(name, (value * inverse).astype(np.float32))
        place.graph.replace(norm, [changed])
        return True
