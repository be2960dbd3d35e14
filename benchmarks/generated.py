"""Models made by script: small networks for queues, and a decoder of several gigabytes for memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.reference import Array

OPSET, IR_VERSION = 17, 8
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def write_small_network(
    folder: Path, *, seed: int, width: int = 256, depth: int = 6, samples: int = 96
) -> None:
    """Residual layers, each wide layer back to ``width``: ``model.onnx``, and the sets ``calibration.npz`` and
    ``evaluation.npz`` of ``samples`` each."""
    generator = np.random.default_rng(seed)
    graph = _Graph()
    hidden = "x"
    for index in range(depth):
        wide = graph.op("MatMul", hidden, graph.weight(generator, f"up{index}", width, 4 * width))
        bent = graph.op(
            "Relu", graph.op("Add", wide, graph.constant(f"b{index}", _bias(generator, 4 * width)))
        )
        back = graph.op("MatMul", bent, graph.weight(generator, f"down{index}", 4 * width, width))
        hidden = graph.norm(graph.op("Add", hidden, back), f"norm{index}", width)
    graph.nodes.append(helper.make_node("Identity", [hidden], ["y"]))
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["batch", width])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["batch", width])]
    made = graph.model(inputs, outputs)
    (folder / "model.onnx").write_bytes(made.SerializeToString(deterministic=True))
    for name in ("calibration", "evaluation"):
        x = generator.standard_normal((samples, width)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x)


@dataclass(frozen=True)
class DecoderShape:
    """Of a decoder-like network: what it reads is ``sequence`` token ids.

    With the defaults: 856 million parameters, 3.4 GB.
    """

    hidden: int = 2048
    wide: int = 8192
    heads: int = 16
    layers: int = 14
    vocabulary: int = 36864
    sequence: int = 16


def write_decoder(folder: Path, shape: DecoderShape, *, samples: int = 4) -> int:
    """``model.onnx`` with ``model.onnx.data`` beside it, written tensor by tensor, and both sets.

    Returns:
        bytes of the FP32 weights.
    """
    with (folder / "model.onnx.data").open("wb") as data:
        graph = _Decoder(shape, data)
        proto = graph.build()
        size = data.tell()
    (folder / "model.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    generator = np.random.default_rng(1)
    for name in ("calibration", "evaluation"):
        ids = generator.integers(0, shape.vocabulary, (samples, shape.sequence))
        np.savez(folder / f"{name}.npz", input_ids=ids)
    return size


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Array) -> str:
        self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, generator: np.random.Generator, name: str, rows: int, columns: int) -> str:
        return self.constant(name, _matrix(generator, rows, columns))

    def norm(self, hidden: str, name: str, width: int) -> str:
        scale = self.constant(f"{name}.scale", np.ones(width, np.float32))
        bias = self.constant(f"{name}.bias", np.zeros(width, np.float32))
        return self.op("LayerNormalization", hidden, scale, bias, axis=-1)

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "generated", inputs, outputs, self.tensors)
        imports = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


class _Decoder(_Graph):
    """Causal attention and wide layers; large matrices go to the data file as they are made."""

    def __init__(self, shape: DecoderShape, data: Any) -> None:
        super().__init__()
        self._shape, self._data = shape, data
        self._generator = np.random.default_rng(0)

    def build(self) -> onnx.ModelProto:
        shape = self._shape
        table = self.weight(self._generator, "embedding", shape.vocabulary, shape.hidden)
        hidden = self.op("Mul", self.op("Gather", table, "input_ids"), self._scalar("embedding_scale", 30.0))
        mask = np.triu(np.full((shape.sequence, shape.sequence), -1e4, np.float32), k=1)
        self.constant("causal", mask)
        self.constant("split_heads", np.array([0, 0, shape.heads, shape.hidden // shape.heads], np.int64))
        self.constant("join_heads", np.array([0, 0, shape.hidden], np.int64))
        for index in range(shape.layers):
            hidden = self._layer(f"layer{index}", hidden)
        last = self.op("Gather", self.norm(hidden, "last", shape.hidden), self._index(), axis=1)
        head = self.weight(self._generator, "head", shape.hidden, shape.vocabulary)
        self.nodes.append(helper.make_node("MatMul", [last, head], ["logits"], name="logits"))
        inputs = [helper.make_tensor_value_info("input_ids", INT64, ["batch", shape.sequence])]
        outputs = [helper.make_tensor_value_info("logits", FLOAT, ["batch", shape.vocabulary])]
        return self.model(inputs, outputs)

    def weight(self, generator: np.random.Generator, name: str, rows: int, columns: int) -> str:
        tensor = onnx.TensorProto(name=name, data_type=FLOAT, dims=[rows, columns])
        offset = self._data.tell()
        step = max(1, (1 << 22) // columns)
        for start in range(0, rows, step):  # a few megabytes at a time
            count = min(step, rows - start)
            values = generator.standard_normal((count, columns), dtype=np.float32) / np.float32(rows**0.5)
            self._data.write(values.tobytes())
        entries = {"location": "model.onnx.data", "offset": offset, "length": self._data.tell() - offset}
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name

    def _layer(self, name: str, hidden: str) -> str:
        shape = self._shape
        attended = self._attention(name, self.norm(hidden, f"{name}.before", shape.hidden))
        hidden = self.op("Add", hidden, attended)
        inner = self.norm(hidden, f"{name}.middle", shape.hidden)
        wide = self.op("MatMul", inner, self._matrix(f"{name}.up", shape.hidden, shape.wide))
        bent = self.op("Mul", wide, self.op("Sigmoid", wide))
        return self.op(
            "Add", hidden, self.op("MatMul", bent, self._matrix(f"{name}.down", shape.wide, shape.hidden))
        )

    def _attention(self, name: str, hidden: str) -> str:
        width = self._shape.hidden
        query, key, value = (
            self.op(
                "Reshape",
                self.op("MatMul", hidden, self._matrix(f"{name}.{part}", width, width)),
                "split_heads",
            )
            for part in ("query", "key", "value")
        )
        scores = self.op(
            "MatMul",
            self.op("Transpose", query, perm=[0, 2, 1, 3]),
            self.op("Transpose", key, perm=[0, 2, 3, 1]),
        )
        scaled = self.op("Mul", scores, self._scalar(f"{name}.root", (width / self._shape.heads) ** -0.5))
        chances = self.op("Softmax", self.op("Add", scaled, "causal"), axis=-1)
        mixed = self.op("MatMul", chances, self.op("Transpose", value, perm=[0, 2, 1, 3]))
        joined = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), "join_heads")
        return self.op("MatMul", joined, self._matrix(f"{name}.out", width, width))

    def _matrix(self, name: str, rows: int, columns: int) -> str:
        return self.weight(self._generator, name, rows, columns)

    def _scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def _index(self) -> str:
        return self.constant("last_token", np.array(self._shape.sequence - 1, np.int64))


def _matrix(generator: np.random.Generator, rows: int, columns: int) -> Array:
    return (generator.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)


def _bias(generator: np.random.Generator, width: int) -> Array:
    return (0.1 * generator.standard_normal(width)).astype(np.float32)
