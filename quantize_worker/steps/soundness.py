"""Weights that are no numbers: found before anything is computed with them."""

from __future__ import annotations

import numpy as np

from quantize_worker.errors import ModelRefused
from quantize_worker.steps.graph import FLOAT_TYPES, Graph
from quantize_worker.steps.tensors import pieces

_MULTIPLYING = {
    "BatchNormalization",
    "Conv",
    "ConvTranspose",
    "GRU",
    "Gemm",
    "LSTM",
    "LayerNormalization",
    "MatMul",
    "RNN",
}


def check_weights(graph: Graph) -> None:
    """Stream over all floating-point initializers.

    NaN is refused everywhere but in a scalar; infinity where it would be multiplied by: masks of
    attention are made of it.

    Raises:
        ModelRefused: non_finite_weights.
    """
    multiplied = {name for node in graph.nodes if node.op_type in _MULTIPLYING for name in node.input}
    for name in graph.constants():
        if graph.data_type(name) not in FLOAT_TYPES:
            continue
        found = _not_finite(graph, name)
        if name in multiplied and found:
            raise _refusal(name, found)
        if found == "NaN" and graph.shape(name):
            raise _refusal(name, found)


def _not_finite(graph: Graph, name: str) -> str:
    """ "NaN", "infinity" or "" """
    value, infinite = graph.constant(name), False
    assert value is not None
    for piece in pieces(value):
        if not np.isfinite(piece).all():
            if np.isnan(piece).any():
                return "NaN"
            infinite = True
    return "infinity" if infinite else ""


def _refusal(name: str, found: str) -> ModelRefused:
    return ModelRefused(
        "non_finite_weights",
        f"The weight {name!r} holds {found}; correct the model (did its training diverge?) and export it again.",
    )
