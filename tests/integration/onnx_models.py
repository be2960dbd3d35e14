"""Small ONNX models, good and hostile, for tests of the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
CLASSES = 4
FEATURES = 64


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, Any],
    *,
    opset: int = 17,
    functions: list[onnx.FunctionProto] | None = None,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions or [])


def _weight(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return (generator.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def classifier(*, opset: int = 17, batch: str | int = "n", seed: int = 0) -> onnx.ModelProto:
    """Gemm (transposed weight) - Relu - Gemm - Softmax; 64 features, 4 classes."""
    generator = np.random.default_rng(seed)
    weights = {
        "w1": _weight(generator, 128, FEATURES),
        "b1": np.zeros(128, np.float32),
        "w2": _weight(generator, 128, CLASSES) * 4,
        "b2": np.linspace(-0.1, 0.1, CLASSES).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("x", FLOAT, [batch, FEATURES])]
    outputs = [helper.make_tensor_value_info("p", FLOAT, [batch, CLASSES])]
    return model_of(nodes, inputs, outputs, weights, opset=opset)


def convolutional(*, opset: int = 17) -> onnx.ModelProto:
    """Conv - Relu - Conv - Relu - GlobalAveragePool - Flatten - Gemm, on 3x16x16 pictures."""
    generator = np.random.default_rng(1)
    weights = {
        "k1": _weight(generator, 16, 3, 3, 3),
        "c1": np.zeros(16, np.float32),
        "k2": _weight(generator, 32, 16, 3, 3),
        "w": _weight(generator, CLASSES, 32),
        "b": np.zeros(CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "k1", "c1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["ar"]),
        helper.make_node("Conv", ["ar", "k2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["cr"]),
        helper.make_node("GlobalAveragePool", ["cr"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["scores"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("image", FLOAT, ["n", 3, 16, 16])]
    outputs = [helper.make_tensor_value_info("scores", FLOAT, ["n", CLASSES])]
    return model_of(nodes, inputs, outputs, weights, opset=opset)


def embedder(*, rows: int = 500, width: int = 64) -> onnx.ModelProto:
    """Gather - MatMul - mean over tokens - unit length."""
    generator = np.random.default_rng(2)
    weights = {"table": _weight(generator, rows, width), "w": _weight(generator, width, width)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["tokens"]),
        helper.make_node("MatMul", ["tokens", "w"], ["mixed"]),
        helper.make_node("ReduceMean", ["mixed"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], ["embedding"], axis=1, p=2),
    ]
    inputs = [helper.make_tensor_value_info("ids", INT64, ["n", "seq"])]
    outputs = [helper.make_tensor_value_info("embedding", FLOAT, ["n", width])]
    return model_of(nodes, inputs, outputs, weights)


def encoder(*, rows: int = 300, width: int = 64) -> onnx.ModelProto:
    """Table - attention of one head under a mask - norm - two-layer network - norm - masked mean, of unit length."""
    generator = np.random.default_rng(4)
    weights: dict[str, Any] = {
        "table": _weight(generator, rows, width),
        **{name: _weight(generator, width, width) for name in "qkvo"},
        "up": _weight(generator, width, 2 * width),
        "down": _weight(generator, 2 * width, width),
        **{f"s{i}": np.ones(width, np.float32) for i in range(2)},
        **{f"t{i}": np.zeros(width, np.float32) for i in range(2)},
        "low": np.float32(-1e4),
        "one": np.float32(1),
        "first": np.array([1]),
        "last": np.array([2]),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Cast", ["mask"], ["m"], to=FLOAT),
        helper.make_node("Sub", ["one", "m"], ["gone"]),
        helper.make_node("Mul", ["gone", "low"], ["away"]),
        helper.make_node("Unsqueeze", ["away", "first"], ["bias"]),
        *(helper.make_node("MatMul", ["x", name], [f"{name}x"]) for name in "qkv"),
        helper.make_node("Transpose", ["kx"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["qx", "kt"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["chances"], axis=-1),
        helper.make_node("MatMul", ["chances", "vx"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "o"], ["out"]),
        helper.make_node("Add", ["x", "out"], ["h"]),
        helper.make_node("LayerNormalization", ["h", "s0", "t0"], ["hn"]),
        helper.make_node("MatMul", ["hn", "up"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["r"]),
        helper.make_node("MatMul", ["r", "down"], ["narrow"]),
        helper.make_node("Add", ["hn", "narrow"], ["y"]),
        helper.make_node("LayerNormalization", ["y", "s1", "t1"], ["yn"]),
        helper.make_node("Unsqueeze", ["m", "last"], ["m3"]),
        helper.make_node("Mul", ["yn", "m3"], ["kept"]),
        helper.make_node("ReduceMean", ["kept"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], ["embedding"], axis=1, p=2),
    ]
    inputs = [helper.make_tensor_value_info(name, INT64, ["n", "seq"]) for name in ("ids", "mask")]
    outputs = [helper.make_tensor_value_info("embedding", FLOAT, ["n", width])]
    return model_of(nodes, inputs, outputs, weights)


def mixed() -> onnx.ModelProto:
    """Convolution over features, a GRU over its steps, and a product: one of each kind."""
    generator = np.random.default_rng(6)
    weights = {
        "k": _weight(generator, 32, 16, 3),
        "w": _weight(generator, 1, 96, 32),
        "r": _weight(generator, 1, 96, 32),
        "fc": _weight(generator, 32, 10),
        "axis": np.array([0]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1]),
        helper.make_node("Relu", ["c"], ["a"]),
        helper.make_node("Transpose", ["a"], ["steps"], perm=[2, 0, 1]),
        helper.make_node("GRU", ["steps", "w", "r"], ["", "state"], hidden_size=32),
        helper.make_node("Squeeze", ["state", "axis"], ["last"]),
        helper.make_node("MatMul", ["last", "fc"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", 16, "time"])]
    outputs = [helper.make_tensor_value_info("scores", FLOAT, ["n", 10])]
    return model_of(nodes, inputs, outputs, weights)


def linear(weight: np.ndarray) -> onnx.ModelProto:
    """MatMul, from 64 features."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", FEATURES])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["n", weight.shape[1]])]
    return model_of(nodes, inputs, outputs, {"w": weight})


def logarithmic() -> onnx.ModelProto:
    """Log of 64 features: NaN where they are negative."""
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", FEATURES])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["n", FEATURES])]
    return model_of([helper.make_node("Log", ["x"], ["y"])], inputs, outputs, {})


def weightless() -> onnx.ModelProto:
    """Relu alone: nothing to quantise."""
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", 8])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["n", 8])]
    return model_of([helper.make_node("Relu", ["x"], ["y"])], inputs, outputs, {})


def nested_functions(depth: int = 12, width: int = 10) -> onnx.ModelProto:
    """A small file that is width ** depth nodes when its functions are written out."""
    functions = []
    for level in range(depth):
        inner = ("", "Identity") if level == 0 else ("f", f"f{level - 1}")
        names = ["a", *(f"t{i}" for i in range(width - 1)), "b"]
        nodes = [
            helper.make_node(inner[1], [names[i]], [names[i + 1]], domain=inner[0]) for i in range(width)
        ]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        functions.append(helper.make_function("f", f"f{level}", ["a"], ["b"], nodes, imports))
    inputs = [helper.make_tensor_value_info("x", FLOAT, [1, 2])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, [1, 2])]
    call = helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="f")
    return model_of([call], inputs, outputs, {}, functions=functions, domains=("f",))


def endless_loop() -> onnx.ModelProto:
    """A constant Loop that constant folding never finishes."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", FLOAT, [1]),
        ],
    )
    nodes = [
        helper.make_node("Loop", ["count", "yes", "start"], ["last"], body=body),
        helper.make_node("Add", ["x", "last"], ["y"]),
    ]
    weights = {"count": np.int64(2**62), "yes": np.bool_(True), "start": np.zeros(1, np.float32)}
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", 1])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["n", 1])]
    return model_of(nodes, inputs, outputs, weights)


def huge_constant() -> onnx.ModelProto:
    """ConstantOfShape of 64 GiB."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    weights = {"shape": np.array([1 << 34], np.int64)}
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", 1])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["n", 1])]
    return model_of(nodes, inputs, outputs, weights)


def with_external_data(folder: Path, location: str, *, write: bool = True, short: int = 0) -> bytes:
    """The classifier with its first weight outside; the data file is written below ``folder``."""
    model = classifier()
    tensor = model.graph.initializer[0]
    data = bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(data)))):
        tensor.external_data.add(key=key, value=value)
    if write:
        path = folder / location
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[: len(data) - short])
    return model.SerializeToString()
