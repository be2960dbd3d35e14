"""The graph of a BERT-like encoder, node by node; weights are named, not loaded.

BERT (Devlin et al. 2018), RoBERTa (Liu et al. 2019), DistilBERT (Sanh et al. 2019). Query, key and
value projections are one multiplication. Operators are in forms that ONNX Runtime fuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quantize_worker.steps.checkpoint import Checkpoint, Floats, Streamed
from quantize_worker.steps.encoder_config import EncoderConfig

Array = NDArray[Any]
MASKED_SCORE = -10000.0  # added to scores of padding; finite in FP16 too
_PARTS = ("query", "key", "value")
_DISTIL_NAMES = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


class Encoder:
    """Writes the encoder's nodes; every method returns the name of the tensor it makes.

    After :meth:`build`, ``constants`` holds what the graph needs, in the order of first use.
    """

    def __init__(self, config: EncoderConfig, weights: Checkpoint) -> None:
        self._config, self._weights = config, weights
        self._prefix = _prefix(weights.names(), config.family)
        self._nodes: list[onnx.NodeProto] = []
        self.used: set[str] = set()  # weights of the checkpoint
        self.constants: dict[str, Array | Streamed] = {}

    def build(self) -> onnx.GraphProto:
        """The graph without its initializers."""
        inputs = ["input_ids", "attention_mask"]
        if self._takes_token_types:
            inputs.append("token_type_ids")
        hidden = self._embeddings()
        scores_mask = self._scores_mask()
        for index in range(self._config.layers):
            hidden = self._layer(f"encoder.layer.{index}", hidden, scores_mask)
        batch, seq, width = "batch", "seq", self._config.hidden
        if self._config.pooling is None:
            self._op("Identity", hidden, name="last_hidden_state")
            output = helper.make_tensor_value_info(
                "last_hidden_state", TensorProto.FLOAT, [batch, seq, width]
            )
        else:
            self._pool(hidden)
            output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, [batch, width])
        specs = [helper.make_tensor_value_info(name, TensorProto.INT64, [batch, seq]) for name in inputs]
        return helper.make_graph(self._nodes, self._config.model_type, specs, [output])

    @property
    def _takes_token_types(self) -> bool:
        """Sentence embeddings are of one text; elsewhere, a second one is told by its type."""
        return self._config.token_types > 1 and self._config.pooling is None

    def _embeddings(self) -> str:
        """Word + position + token type, normalised: (batch, seq, hidden)."""
        words = self._op("Gather", self._table("word"), "input_ids", name="words")
        embedded = self._op("Add", words, self._positions(), name="embedded")
        if self._takes_token_types:
            types = self._op("Gather", self._table("token_type"), "token_type_ids", name="types")
            embedded = self._op("Add", embedded, types, name="typed")
        return self._norm("embeddings.LayerNorm", embedded)

    def _table(self, kind: str) -> str:
        name = f"embeddings.{kind}_embeddings.weight"
        return self._constant(name, self._weights.rows(self._stored(name)))

    def _positions(self) -> str:
        """Rows of the position table, with the only token type added where there is no choice."""
        name = "embeddings.position_embeddings.weight"
        table: Array | Streamed = self._weights.rows(self._stored(name))
        if self._config.token_types and not self._takes_token_types:
            types = self._read("embeddings.token_type_embeddings.weight")
            table = self._read(name) + types[0]
        if self._config.family == "roberta":
            return self._op("Gather", self._constant(name, table), self._counted(), name="positions")
        shape = self._op("Shape", "input_ids", name="ids_shape")
        length = self._op("Gather", shape, self._constant("one", np.array([1], np.int64)), name="length")
        starts = self._constant("zero", np.array([0], np.int64))
        return self._op("Slice", self._constant(name, table), starts, length, starts, name="positions")

    def _counted(self) -> str:
        """RoBERTa's positions: tokens that are no padding count from its id on: (batch, seq)."""
        padding = self._constant("padding_id", np.array(self._config.padding, np.int64))
        padded = self._op("Equal", "input_ids", padding, name="padded")
        real = self._op("Cast", self._op("Not", padded, name="not_padded"), name="real", to=TensorProto.INT64)
        axis = self._constant("token_axis", np.array(1, np.int64))
        counted = self._op("CumSum", real, axis, name="counted")
        return self._op(
            "Add", self._op("Mul", counted, real, name="counted_real"), padding, name="position_ids"
        )

    def _scores_mask(self) -> str:
        """0 where the mask is 1, MASKED_SCORE where it is 0: (batch, 1, 1, seq)."""
        axes = self._constant("mask_axes", np.array([1, 2], np.int64))
        mask = self._op("Cast", "attention_mask", name="mask", to=TensorProto.FLOAT)
        padding = self._op("Sub", self._constant("unit", np.float32(1.0)), mask, name="padding")
        scaled = self._op(
            "Mul", padding, self._constant("masked", np.float32(MASKED_SCORE)), name="scores_mask"
        )
        return self._op("Unsqueeze", scaled, axes, name="scores_mask_4d")

    def _layer(self, name: str, hidden: str, scores_mask: str) -> str:
        attended = self._dense(f"{name}.attention.output.dense", self._attention(name, hidden, scores_mask))
        summed = self._op("Add", attended, hidden, name=f"{name}.attention.residual")
        middle = self._norm(f"{name}.attention.output.LayerNorm", summed)
        wide = self._activation(
            f"{name}.intermediate.gelu", self._dense(f"{name}.intermediate.dense", middle)
        )
        narrow = self._dense(f"{name}.output.dense", wide)
        return self._norm(
            f"{name}.output.LayerNorm", self._op("Add", narrow, middle, name=f"{name}.residual")
        )

    def _attention(self, name: str, hidden: str, scores_mask: str) -> str:
        stem, size = f"{name}.attention.self", self._config.hidden
        joined = self._linear(f"{stem}.qkv", hidden, [f"{stem}.{part}" for part in _PARTS])
        split = [f"{stem}.{part}" for part in _PARTS]
        sizes = self._constant("qkv_sizes", np.full(3, size, np.int64))
        self._nodes.append(helper.make_node("Split", [joined, sizes], split, name=f"{stem}.split", axis=-1))
        query, value = (self._by_head(part, [0, 2, 1, 3]) for part in (split[0], split[2]))
        key = self._by_head(split[1], [0, 2, 3, 1])  # (batch, heads, hidden / heads, seq)
        scores = self._op("MatMul", query, key, name=f"{stem}.scores")
        root = self._constant("score_scale", np.float32((size / self._config.heads) ** -0.5))
        masked = self._op(
            "Add", self._op("Mul", scores, root, name=f"{stem}.scaled"), scores_mask, name=f"{stem}.masked"
        )
        chances = self._op("Softmax", masked, name=f"{stem}.softmax", axis=-1)
        mixed = self._op("MatMul", chances, value, name=f"{stem}.mixed")
        back = self._op("Transpose", mixed, name=f"{stem}.merged", perm=[0, 2, 1, 3])
        return self._op("Reshape", back, self._constant("flat", np.array([0, 0, size], np.int64)), name=stem)

    def _by_head(self, tensor: str, order: list[int]) -> str:
        """(batch, seq, hidden) to (batch, seq, heads, hidden / heads), transposed by ``order``."""
        heads = self._config.heads
        shape = self._constant("by_head", np.array([0, 0, heads, self._config.hidden // heads], np.int64))
        parted = self._op("Reshape", tensor, shape, name=f"{tensor}.parted")
        return self._op("Transpose", parted, name=f"{tensor}.heads", perm=order)

    def _activation(self, name: str, x: str) -> str:
        if self._config.activation == "relu":
            return self._op("Relu", x, name=name)
        return self._gelu(name, x) if self._config.activation == "gelu" else self._tanh_gelu(name, x)

    def _gelu(self, name: str, x: str) -> str:
        """x · ½(1 + erf(x / √2)), in the form that ONNX Runtime fuses into one kernel."""
        root = self._constant("root_two", np.float32(np.sqrt(2.0)))
        erf = self._op("Erf", self._op("Div", x, root, name=f"{name}.divided"), name=f"{name}.erf")
        return self._half_of(name, x, erf)

    def _tanh_gelu(self, name: str, x: str) -> str:
        """x · ½(1 + tanh(√(2/π) (x + 0.044715 x³)))."""
        cube = self._op("Pow", x, self._constant("three", np.float32(3.0)), name=f"{name}.cube")
        small = self._op("Mul", cube, self._constant("cubic", np.float32(0.044715)), name=f"{name}.small")
        summed = self._op("Add", x, small, name=f"{name}.summed")
        root = self._constant("root_two_over_pi", np.float32(np.sqrt(2.0 / np.pi)))
        tanh = self._op("Tanh", self._op("Mul", summed, root, name=f"{name}.scaled"), name=f"{name}.tanh")
        return self._half_of(name, x, tanh)

    def _half_of(self, name: str, x: str, curve: str) -> str:
        shifted = self._op("Add", curve, self._constant("unit", np.float32(1.0)), name=f"{name}.shifted")
        doubled = self._op("Mul", x, shifted, name=f"{name}.doubled")
        return self._op("Mul", doubled, self._constant("half", np.float32(0.5)), name=name)

    def _pool(self, hidden: str) -> None:
        """One vector per text: (batch, hidden)."""
        name = "mean" if self._config.normalize else "sentence_embedding"
        pooled = {"mean": self._mean, "cls": self._first, "max": self._largest}[str(self._config.pooling)]
        vector = pooled(hidden, name)
        if self._config.normalize:
            norm = self._op("ReduceL2", vector, name="norm", axes=[1], keepdims=1)
            floor = self._constant("norm_floor", np.float32(1e-12))
            self._op(
                "Div", vector, self._op("Max", norm, floor, name="length_floor"), name="sentence_embedding"
            )

    def _mean(self, hidden: str, name: str) -> str:
        """The mean over the tokens that the mask allows."""
        mask, middle = self._pool_mask(), self._constant("axis1", np.array([1], np.int64))
        total = self._op(
            "ReduceSum", self._op("Mul", hidden, mask, name="weighted"), middle, name="total", keepdims=0
        )
        floor = self._constant("count_floor", np.float32(1e-9))
        tokens = self._op("ReduceSum", mask, middle, name="tokens", keepdims=0)
        return self._op("Div", total, self._op("Max", tokens, floor, name="count"), name=name)

    def _first(self, hidden: str, name: str) -> str:
        index = self._constant("first", np.array(0, np.int64))
        return self._op("Gather", hidden, index, name=name, axis=1)

    def _largest(self, hidden: str, name: str) -> str:
        """The largest value of each feature over the tokens that the mask allows."""
        zero = self._constant("nothing", np.float32(0.0))
        allowed = self._op("Greater", self._pool_mask(), zero, name="allowed")
        least = self._constant("least", np.float32(-1e9))
        kept = self._op("Where", allowed, hidden, least, name="kept")
        return self._op("ReduceMax", kept, name=name, axes=[1], keepdims=0)

    def _pool_mask(self) -> str:
        """(batch, seq, 1)"""
        mask = self._op("Cast", "attention_mask", name="pool_mask", to=TensorProto.FLOAT)
        return self._op("Unsqueeze", mask, self._constant("axis2", np.array([2], np.int64)), name="weights")

    def _dense(self, name: str, x: str) -> str:
        return self._linear(name, x, [name])

    def _linear(self, name: str, x: str, parts: list[str]) -> str:
        """x · weightᵀ + bias; several parts side by side are one multiplication."""
        weights = [self._stored(f"{part}.weight") for part in parts]
        shapes = [self._weights.shape(weight) for weight in weights]  # (out, in)
        biases = [self._read(f"{part}.bias") for part in parts]

        def pieces() -> Iterator[Floats]:
            stored = [self._weights.read(weight) for weight in weights]
            yield np.ascontiguousarray(np.concatenate(stored).T)

        streamed = Streamed((shapes[0][1], sum(shape[0] for shape in shapes)), pieces)
        product = self._op("MatMul", x, self._constant(f"{name}.weight", streamed), name=f"{name}.matmul")
        return self._op("Add", product, self._constant(f"{name}.bias", np.concatenate(biases)), name=name)

    def _norm(self, name: str, x: str) -> str:
        scale = self._constant(f"{name}.weight", self._read(f"{name}.weight"))
        bias = self._constant(f"{name}.bias", self._read(f"{name}.bias"))
        return self._op(
            "LayerNormalization", x, scale, bias, name=name, axis=-1, epsilon=self._config.epsilon
        )

    def _read(self, name: str) -> Floats:
        return self._weights.read(self._stored(name))

    def _stored(self, name: str) -> str:
        """What the checkpoint calls a weight that BERT calls ``name``."""
        stored = name
        if self._config.family == "distilbert" and name.startswith("encoder."):
            _, _, index, rest = name.split(".", 3)
            inner, _, kind = rest.rpartition(".")
            stored = f"transformer.layer.{index}.{_DISTIL_NAMES[inner]}.{kind}"
        stored = f"{self._prefix}{stored}"
        if stored not in self._weights.names():  # TensorFlow's names, in the oldest checkpoints
            old = stored.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
            stored = old if old in self._weights.names() else stored
        self.used.add(stored)
        return stored

    def _constant(self, name: str, value: Array | np.generic | Streamed) -> str:
        self.constants[name] = value if isinstance(value, Streamed) else np.asarray(value)
        return name

    def _op(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name


def _prefix(names: set[str], family: str) -> str:
    """Checkpoints of a network with a head call its encoder by the family's name."""
    return f"{family}." if any(name.startswith(f"{family}.embeddings.") for name in names) else ""
