"""Which nodes are layers, and what they can take."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layers import Layer, layers_of, products_of

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def graph_of(*nodes: onnx.NodeProto, **weights: tuple[int, ...]) -> Graph:
    tensors = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, None),
        helper.make_tensor_value_info("ids", INT64, None),
    ]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)]
    made = helper.make_graph(list(nodes), "g", inputs, outputs, tensors)
    return Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]))


def only(graph: Graph) -> Layer:
    [layer] = layers_of(graph)
    return layer


def node(operator: str, *inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [output], **attributes)


@pytest.mark.parametrize(
    ("operator", "attributes", "shape", "transposed"),
    [("MatMul", {}, (64, 48), False), ("Gemm", {}, (64, 48), False), ("Gemm", {"transB": 1}, (48, 64), True)],
)
def test_a_matrix_is_given_as_out_by_in(
    operator: str, attributes: dict[str, Any], shape: tuple[int, int], transposed: bool
) -> None:
    graph = graph_of(node(operator, "x", "w", **attributes), w=shape)
    layer = only(graph)
    assert (layer.columns, layer.outputs, layer.transposed) == (64, 48, transposed)
    assert layer.matrix(graph).shape == (48, 64)
    assert layer.activation == "x"
    assert {"int4-b32", "int8-dynamic", "int8-qdq", "int8-b16"} <= set(layer.formats())
    assert "int4-b128" not in layer.formats()  # a block is wider than the layer


@pytest.mark.parametrize(
    ("made", "weights"),
    [
        (node("MatMul", "x", "w"), {"w": (4, 64, 64)}),  # a stack of matrices
        (node("MatMul", "w", "x"), {"w": (64, 64)}),  # the weight on the left
        (node("Gemm", "x", "w", alpha=2.0), {"w": (64, 64)}),
        (node("Gemm", "x", "w", transA=1), {"w": (64, 64)}),
        (node("Gather", "w", "ids", axis=1), {"w": (64, 64)}),
        (node("Add", "x", "w"), {"w": (64, 64)}),
        (node("ConvTranspose", "x", "w"), {"w": (16, 8, 3, 3)}),
        (node("Custom", "x", "w", domain="mine"), {"w": (64, 64)}),
    ],
)
def test_other_uses_are_stored_only(made: onnx.NodeProto, weights: dict[str, tuple[int, ...]]) -> None:
    layer = only(graph_of(made, **weights))
    assert layer.formats() == ("fp32", "fp16-stored", "int8-stored")
    assert not layer.is_matrix
    assert not layer.is_table


@pytest.mark.parametrize(("width", "blocks"), [(384, {16, 32, 128}), (96, {16, 32}), (48, {16}), (40, set())])
def test_a_table_takes_whole_blocks_only(width: int, blocks: set[int]) -> None:
    layer = only(graph_of(node("Gather", "w", "ids"), w=(100, width)))
    assert layer.is_table
    found = {name for name in layer.formats() if name.startswith("int4")}
    assert found == {f"int4-b{block}{end}" for block in blocks for end in ("", "-sym")}


@pytest.mark.parametrize(
    ("made", "weights"),
    [
        (node("MatMul", "x", "w"), {"w": (8, 8)}),  # small
        (node("Add", "x", "w"), {"w": (4096,)}),  # a vector
        (node("Mul", "x", "x"), {}),
        (node("Identity", "ids"), {"w": (64, 64)}),
    ],
)
def test_what_is_small_or_no_weight_is_no_layer(
    made: onnx.NodeProto, weights: dict[str, tuple[int, ...]]
) -> None:
    assert layers_of(graph_of(made, **weights)) == []


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrent_node_is_one_layer_with_two_weights(operator: str, gates: int) -> None:
    made = helper.make_node(operator, ["x", "w", "r"], ["", "h"], hidden_size=32)
    layer = only(graph_of(made, w=(1, gates * 32, 16), r=(1, gates * 32, 32)))
    assert layer.weights == {"w": (1, gates * 32, 16), "r": (1, gates * 32, 32)}
    assert layer.parameters == gates * 32 * 48
    assert layer.channel_axes == (0, 1)
    assert layer.name == "h"
    assert ("int8-dynamic" in layer.formats()) == (operator == "LSTM")


def test_layers_may_share_a_weight() -> None:
    made = [
        node("Gather", "w", "ids", output="rows"),
        node("MatMul", "rows", "w", output="y"),
    ]
    table, matrix = layers_of(graph_of(*made, w=(64, 64)))
    assert table.weight == matrix.weight == "w"
    assert table.name != matrix.name


def test_weights_of_one_node_have_different_names() -> None:
    graph = graph_of(node("Where", "x", "a", "b"), a=(64, 64), b=(64, 64))
    assert [layer.name for layer in layers_of(graph)] == ["y", "y#b"]
    assert [layer.weight for layer in layers_of(graph)] == ["a", "b"]


def test_products_are_of_two_activations() -> None:
    graph = graph_of(
        node("MatMul", "x", "w", output="q"),
        node("MatMul", "q", "x", output="scores"),
        node("MatMul", "scores", "tiny", output="y"),
        w=(64, 64),
        tiny=(4, 4),
    )
    assert [product.output[0] for product in products_of(graph)] == ["scores"]
