"""safetensors and ``config.json`` of a BERT-like encoder as ONNX, weights streamed; no PyTorch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from quantize_worker.errors import ModelRefused
from quantize_worker.steps import tensors
from quantize_worker.steps.checkpoint import Checkpoint, Streamed
from quantize_worker.steps.datafile import DATA_FILE, GRAPH_FILE, INLINE_BYTES, DataFile, write_file
from quantize_worker.steps.encoder import Array, Encoder
from quantize_worker.steps.encoder_config import EncoderConfig, read_config

OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8
# Weights that an encoder has no use for: a head of training, the pooler, position buffers.
_UNUSED = re.compile(
    r"(^|\.)(pooler|cls|lm_head|vocab_transform|vocab_layer_norm|vocab_projector)\.|position_ids$"
    r"|(^|\.)embeddings\.token_type_ids$"
)


def export(config: Path, folder: Path) -> tuple[Path, str]:
    """Write an encoder to ``folder`` as ``model.onnx`` and ``model.data``.

    Inputs ``input_ids`` and ``attention_mask``, int64, (batch, seq), and ``token_type_ids`` where types
    make a difference. Output ``sentence_embedding``, float32, (batch, hidden), where sentence-transformers'
    files say how tokens are pooled, else ``last_hidden_state``, float32, (batch, seq, hidden).

    Args:
        config: ``config.json``, with the safetensors files beside it.
        folder: an existing folder.

    Returns:
        The graph's path and a sentence on what was written.

    Raises:
        ModelRefused: unsupported_architecture, missing_file, truncated or invalid_model.
        BuildFailed: disk_full.
    """
    settings = read_config(config)
    weights = Checkpoint(config.parent)
    encoder = Encoder(settings, weights)
    graph = encoder.build()
    _check_all_used(weights.names() - encoder.used)
    with DataFile(folder) as data:
        graph.initializer.extend(_written(name, value, data) for name, value in encoder.constants.items())
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="pocketfleet",
    )
    write_file(folder / GRAPH_FILE, model.SerializeToString(deterministic=True))
    return folder / GRAPH_FILE, _said(settings)


def _said(settings: EncoderConfig) -> str:
    what = f"{settings.model_type} encoder of {settings.layers} layers"
    pooled = f", {settings.pooling} pooling" if settings.pooling else ""
    left = f" Its head ({settings.head}) was left out." if settings.head else ""
    return f"Wrote the safetensors as ONNX: {what}{pooled}.{left}"


def _check_all_used(left: set[str]) -> None:
    unknown = sorted(name for name in left if not _UNUSED.search(name))
    if unknown:
        raise ModelRefused(
            "unsupported_architecture",
            f"The safetensors files have weights that this exporter does not know ({', '.join(unknown[:3])}, "
            f"{len(unknown)} in all). Export the model to ONNX and upload that.",
        )


def _written(name: str, value: Array | Streamed, data: DataFile) -> onnx.TensorProto:
    if not isinstance(value, Streamed):
        if value.nbytes < INLINE_BYTES:
            return tensors.tensor_of(value, name)
        value = _as_streamed(value)
    tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=value.shape)
    length = tensors.bytes_of(TensorProto.FLOAT, value.shape)
    tensors.point_outside(tensor, DATA_FILE, data.append_pieces(value.pieces(), length), length)
    return tensor


def _as_streamed(value: Array) -> Streamed:
    def pieces() -> Iterator[Array]:
        yield np.ascontiguousarray(value, np.float32)

    return Streamed(value.shape, pieces)
