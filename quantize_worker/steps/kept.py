"""Nodes with weights that no format is for: they stay as they are, and each says why."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from quantize_worker.contract import KeptNode
from quantize_worker.steps.graph import (
    CONTRIB_DOMAIN,
    DEFAULT_DOMAINS,
    Graph,
    subgraphs_of,
    tensors_in,
)
from quantize_worker.steps.tensors import bytes_of

MINIMUM_BYTES = 1024  # smaller weights are not worth a word
_FLOAT = onnx.TensorProto.FLOAT
_CONTROL_FLOW = "the weights inside its sub-graph ({size:,} bytes) stay in their precision: only the main graph is rewritten"
_TREES = "its trees compare numbers one by one; they are not multiplied, so there is nothing to quantize"
_CLASSIC = "classic machine learning keeps its numbers as attributes, which stay as they are"
_FUNCTION = "it calls a function of the model that could not be written out"
_QUANTIZED = "its weights are quantized already"
_FUSED = "its weights are inside a fused operator that takes no other precision"
_HALF = "its weights are in half precision already"
_QUANTIZED_OPERATORS = {
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "GatherBlockQuantized",
    "MatMulBnb4",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QAttention",
    "QEmbedLayerNormalization",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
    "QMoE",
}
_FUSED_OPERATORS = {
    "Attention",
    "DecoderAttention",
    "DecoderMaskedSelfAttention",
    "EmbedLayerNormalization",
    "LongformerAttention",
    "MoE",
    "PackedAttention",
}


def kept_nodes(graph: Graph) -> list[KeptNode]:
    """What will not be quantized in a prepared model, in the graph's order."""
    functions = {(function.domain, function.name) for function in graph.model.functions}
    found = []
    for node in graph.nodes:
        reason = _reason(graph, node, functions)
        if reason:
            operator = node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"
            found.append(
                KeptNode(name=node.name or next(iter(node.output), ""), operator=operator, reason=reason)
            )
    return found


def _reason(graph: Graph, node: onnx.NodeProto, functions: set[tuple[str, str]]) -> str:
    if (node.domain, node.op_type) in functions:
        return _FUNCTION
    if node.domain == "ai.onnx.ml":
        return _TREES if "Tree" in node.op_type else _CLASSIC
    inner = _inner_bytes(node)
    if inner >= MINIMUM_BYTES:
        return _CONTROL_FLOW.format(size=inner)
    weights = [name for name in node.input if graph.is_constant(name)]
    large = [name for name in weights if graph.stored_bytes(name) >= MINIMUM_BYTES]
    if not large:
        return ""
    if node.op_type in _QUANTIZED_OPERATORS:
        return _QUANTIZED
    if node.domain == CONTRIB_DOMAIN and node.op_type in _FUSED_OPERATORS:
        return _FUSED
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return _HALF if any(graph.data_type(name) in half for name in large) else ""


def _inner_bytes(node: onnx.NodeProto) -> int:
    """Bytes of floating-point weights in a node's sub-graphs."""
    return sum(
        bytes_of(tensor.data_type, tuple(tensor.dims))
        for tensor in _inner_tensors(node)
        if tensor.data_type == _FLOAT
    )


def _inner_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for scope in subgraphs_of(node):
        yield from tensors_in(scope)
