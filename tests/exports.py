"""Small models in the forms that exporters write them: what preparing has to cope with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantize_worker.contract import SourceFile

Array = NDArray[Any]
FLOAT, INT32, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL
Shape = list[int | str] | None


def listed(folder: Path) -> list[SourceFile]:
    """A folder's files as an upload lists them."""
    return [
        SourceFile(
            path=path.relative_to(folder).as_posix(),
            sha256="0" * 64,  # the child does not look
            size_bytes=path.stat().st_size,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def numbers(*shape: int, seed: int = 0) -> Array:
    scale = max(1, shape[-1] if len(shape) > 1 else 1) ** -0.5
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def value(name: str, kind: int, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, Any],
    *,
    opset: int = 17,
    domains: dict[str, int] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    ir_version: int = 8,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    imports = [helper.make_opsetid(d, v) for d, v in ({"": opset} | (domains or {})).items()]
    graph = helper.make_graph(nodes, "export", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=functions or [])


def cnn(opset: int = 9) -> onnx.ModelProto:
    """Conv, batch normalization, Relu, pooling and Gemm, weights among the inputs as of old."""
    weights = {
        "k": numbers(8, 1, 3, 3),
        "scale": np.linspace(0.5, 1.5, 8, dtype=np.float32),
        "shift": numbers(8, seed=1),
        "mean": numbers(8, seed=2),
        "variance": np.linspace(0.5, 2, 8, dtype=np.float32),
        "w": numbers(10, 8 * 16, seed=3),
        "b": numbers(10, seed=4),
    }
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["n"], name="norm"
        ),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Dropout", ["r"], ["d"], ratio=0.5),
        helper.make_node("MaxPool", ["d"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["scores"], name="gemm", transB=1),
    ]
    inputs = [value("image", FLOAT, ["batch", 1, 8, 8])]
    inputs += [value(name, FLOAT, list(array.shape)) for name, array in weights.items()]
    outputs = [value("scores", FLOAT, ["batch", 10])]
    return model(nodes, inputs, outputs, weights, opset=opset, ir_version=4 if opset > 8 else 3)


def pyramid() -> onnx.ModelProto:
    """A CNN for pictures of any size, which needs more pixels than 16."""
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["c"], strides=[4, 4]),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[6, 6]),
        helper.make_node("GlobalAveragePool", ["p"], ["y"]),
    ]
    inputs = [value("image", FLOAT, ["batch", 3, "height", "width"])]
    return model(nodes, inputs, [value("y", FLOAT, ["batch", 16, 1, 1])], {"k": numbers(16, 3, 5, 5)})


def gru() -> onnx.ModelProto:
    """A classifier over sequences of features, batch first: transposed around the operator."""
    weights = {
        "w": numbers(1, 96, 8),
        "r": numbers(1, 96, 32, seed=1),
        "b": numbers(1, 192, seed=2),
        "fc": numbers(32, 10, seed=3),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node(
            "GRU", ["xt", "w", "r", "b"], ["", "h"], name="gru", hidden_size=32, linear_before_reset=1
        ),
        helper.make_node("Squeeze", ["h"], ["hs"], axes=[0]),
        helper.make_node("MatMul", ["hs", "fc"], ["scores"], name="fc"),
    ]
    return model(
        nodes,
        [value("x", FLOAT, ["batch", "time", 8])],
        [value("scores", FLOAT, ["batch", 10])],
        weights,
        opset=11,
    )


def lstm() -> onnx.ModelProto:
    """A tagger of tokens with lengths, time first, its state an input: axis 0 is no batch anywhere."""
    weights = {
        "table": numbers(50, 16),
        "w": numbers(2, 128, 16),
        "r": numbers(2, 128, 32, seed=1),
        "b": numbers(2, 256, seed=2),
        "fc": numbers(64, 5, seed=3),
        "shape": np.array([0, 0, -1], np.int64),
        "none": np.zeros((2, 1, 32), np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["tokens"], ["ids"], to=INT64),
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Cast", ["lengths"], ["l"], to=INT32),
        helper.make_node(
            "LSTM", ["x", "w", "r", "b", "l", "state", ""], ["y", "yh", ""], name="lstm", hidden_size=32,
            direction="bidirectional",
        ),
        helper.make_node("Transpose", ["y"], ["yt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["yt", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc"], ["tags"], name="fc"),
    ]  # fmt: skip
    inputs = [
        value("tokens", INT32, ["time", "batch"]),
        value("lengths", INT64, ["batch"]),
        value("state", FLOAT, [2, "batch", 32]),
    ]
    outputs = [value("tags", FLOAT, ["time", "batch", 5]), value("yh", FLOAT, [2, "batch", 32])]
    return model(nodes, inputs, outputs, weights)


def decoder() -> onnx.ModelProto:
    """One attention layer with a cache: the mask is as long as past and present together."""
    size, heads = 32, 2
    weights = {
        "table": numbers(100, size),
        "places": numbers(64, size, seed=9),
        **{name: numbers(size, size, seed=i) for i, name in enumerate("qkvo")},
        "head": numbers(size, 100, seed=5),
        "split": np.array([0, 0, heads, size // heads], np.int64),
        "join": np.array([0, 0, size], np.int64),
        "one": np.float32(1),
        "low": np.float32(-1e4),
        "axes": np.array([1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["input_ids", "keep"], ["ids"]),
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("Gather", ["places", "position_ids"], ["placed"]),
        helper.make_node("Add", ["words", "placed"], ["x"]),
    ]
    for name in "qkv":
        nodes += [
            helper.make_node("MatMul", ["x", name], [f"{name}0"], name=f"{name}_proj"),
            helper.make_node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            helper.make_node("Transpose", [f"{name}1"], [f"{name}2"], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        helper.make_node("Concat", ["past_key", "k2"], ["present_key"], axis=2),
        helper.make_node("Concat", ["past_value", "v2"], ["present_value"], axis=2),
        helper.make_node("Transpose", ["present_key"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q2", "kt"], ["scores"]),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=FLOAT),
        helper.make_node("Sub", ["one", "m"], ["gone"]),
        helper.make_node("Mul", ["gone", "low"], ["bias"]),
        helper.make_node("Unsqueeze", ["bias", "axes"], ["bias4"]),
        helper.make_node("Add", ["scores", "bias4"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["chances"], axis=-1),
        helper.make_node("MatMul", ["chances", "present_value"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "join"], ["joined"]),
        helper.make_node("MatMul", ["joined", "o"], ["out"], name="o_proj"),
        helper.make_node("MatMul", ["out", "head"], ["logits"], name="lm_head"),
    ]
    weights["keep"] = np.array([0, -1], np.int64)
    cache: Shape = ["batch_size", heads, "past_sequence_length", size // heads]
    grown: Shape = ["batch_size", heads, "past_sequence_length + sequence_length", size // heads]
    inputs = [
        value("input_ids", INT64, ["batch_size", "sequence_length"]),
        value("attention_mask", INT64, ["batch_size", "past_sequence_length + sequence_length"]),
        value("position_ids", INT64, ["batch_size", "sequence_length"]),
        value("past_key", FLOAT, cache),
        value("past_value", FLOAT, cache),
    ]
    outputs = [
        value("logits", FLOAT, ["batch_size", "sequence_length", 100]),
        value("present_key", FLOAT, grown),
        value("present_value", FLOAT, grown),
    ]
    return model(nodes, inputs, outputs, weights)


def conditional(opset: int = 11) -> onnx.ModelProto:
    """If with a weight inside a branch, and operators whose meaning changed with opset 13."""
    branches = [
        helper.make_graph(
            [
                helper.make_node("MatMul", ["x", f"w_{name}"], [f"m_{name}"]),
                helper.make_node("Unsqueeze", [f"m_{name}"], [f"u_{name}"], axes=[0]),
                helper.make_node("Squeeze", [f"u_{name}"], [f"y_{name}"], axes=[0]),
            ],
            name,
            [],
            [value(f"y_{name}", FLOAT, ["batch", 32])],
            [numpy_helper.from_array(numbers(32, 32, seed=seed), f"w_{name}")],
        )
        for seed, name in enumerate(("then", "else"))
    ]
    nodes = [
        helper.make_node(
            "If", ["flag"], ["y"], name="choose", then_branch=branches[0], else_branch=branches[1]
        ),
        helper.make_node("MatMul", ["y", "w"], ["z"], name="last"),
    ]
    inputs = [value("flag", BOOL, []), value("x", FLOAT, ["batch", 32])]
    outputs = [value("z", FLOAT, ["batch", 8])]
    return model(nodes, inputs, outputs, {"w": numbers(32, 8)}, opset=opset)


def with_functions() -> onnx.ModelProto:
    """A layer as a function of the model, called twice."""
    inner = [
        helper.make_node("MatMul", ["a", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["b"]),
    ]
    layer = helper.make_function("local", "Layer", ["a", "w"], ["b"], inner, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("Layer", ["x", "w1"], ["h"], domain="local", name="first"),
        helper.make_node("Layer", ["h", "w2"], ["y"], domain="local", name="second"),
    ]
    weights = {"w1": numbers(32, 32), "w2": numbers(32, 32, seed=1)}
    return model(
        nodes,
        [value("x", FLOAT, ["batch", 32])],
        [value("y", FLOAT, ["batch", 32])],
        weights,
        domains={"local": 1},
        functions=[layer],
    )


def trees() -> onnx.ModelProto:
    """A tree ensemble of one stump, behind a product."""
    ensemble = helper.make_node(
        "TreeEnsembleClassifier", ["p"], ["label", "chances"], name="forest", domain="ai.onnx.ml",
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
        nodes_values=[0.0, 0.0, 0.0], nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        class_treeids=[0, 0], class_nodeids=[1, 2], class_ids=[0, 1], class_weights=[1.0, 1.0],
        classlabels_int64s=[0, 1], post_transform="NONE",
    )  # fmt: skip
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"], name="project"), ensemble]
    outputs = [value("label", INT64, ["batch"]), value("chances", FLOAT, ["batch", 2])]
    return model(
        nodes, [value("x", FLOAT, ["batch", 32])], outputs, {"w": numbers(32, 16)}, domains={"ai.onnx.ml": 3}
    )


def custom() -> onnx.ModelProto:
    """An operator that nobody but its author has."""
    nodes = [helper.make_node("Swish", ["x"], ["y"], name="odd", domain="acme")]
    return model(nodes, [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", 4])], {}, domains={"acme": 1})


def tied() -> onnx.ModelProto:
    """A table that is the last product's weight too, transposed: folding would store it twice."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Mul", ["x", "two"], ["x1"]),
        helper.make_node("Mul", ["x1", "two"], ["x2"]),
        helper.make_node("Identity", ["x2"], ["x3"]),
        helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
        helper.make_node("MatMul", ["x3", "head"], ["logits"], name="lm_head"),
    ]
    return model(
        nodes,
        [value("ids", INT64, ["batch", "seq"])],
        [value("logits", FLOAT, ["batch", "seq", 400])],
        {"table": numbers(400, 64), "two": np.float32(2)},
    )


def scalar_input() -> onnx.ModelProto:
    """A recurrent step as voice detectors have it: a state whose batch is axis 1, and a sampling rate."""
    nodes = [
        helper.make_node("Cast", ["rate"], ["r"], to=FLOAT),
        helper.make_node("Div", ["x", "r"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "w"], ["y"], name="project"),
        helper.make_node("Add", ["state", "y"], ["next"]),
    ]
    inputs = [
        value("x", FLOAT, ["batch", 64]),
        value("state", FLOAT, [2, "batch", 32]),
        value("rate", INT64, []),
    ]
    outputs = [value("y", FLOAT, ["batch", 32]), value("next", FLOAT, [2, "batch", 32])]
    return model(nodes, inputs, outputs, {"w": numbers(64, 32)})
