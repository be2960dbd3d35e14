"""Artifacts as the control plane publishes them: files in zstd chunks, and a manifest."""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import zstandard
from onnx import TensorProto, helper, numpy_helper

from device_agent.protocol.manifest import (
    FORMAT_VERSION,
    Chunk,
    Golden,
    Manifest,
    ManifestFile,
    Quality,
    Runtime,
)

CHUNK_BYTES = 16 * 1024
INPUTS, OUTPUTS = 24, 16


class Artifact(NamedTuple):
    manifest: Manifest
    blobs: dict[str, bytes]  # by the SHA-256 of the stored bytes


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_artifact(
    files: Mapping[str, bytes],
    *,
    model: str = "tiny",
    version: int = 1,
    min_cosine: float = 0.999,
    samples: int = 4,
    build: str | None = None,
    accelerator: str = "cpu",
    provider: str = "CPUExecutionProvider",
    emulated: bool = False,
    memory_bytes: int = 1 << 20,
    minimum_version: str = "1.17.0",
    chunk_bytes: int = CHUNK_BYTES,
) -> Artifact:
    """Chunk ``files`` and describe them; ``golden.npz`` and ``model.onnx`` must be among them."""
    blobs: dict[str, bytes] = {}
    described = [_describe(path, content, chunk_bytes, blobs) for path, content in files.items()]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        build=build or str(uuid.uuid4()),
        model=model,
        version=version,
        precision="fp32",
        runtime=Runtime(
            engine="onnxruntime",
            minimum_version=minimum_version,
            execution_provider=provider,
            accelerator=accelerator,  # type: ignore[arg-type]
            emulated=emulated,
        ),
        entry="model.onnx",
        files=described,
        golden=Golden(path="golden.npz", samples=samples, min_cosine_ppm=int(min_cosine * 1e6)),
        quality=Quality(
            metric="cosine", value_ppm=999_000, cosine_ppm=999_000, top1_agreement_ppm=1_000_000, samples=4
        ),
        size_bytes=sum(len(content) for content in files.values()),
        download_bytes=sum(len(blob) for blob in blobs.values()),
        predicted_memory_bytes=memory_bytes,
        measured_memory_bytes=memory_bytes,
        latency_p50_us=100,
        source_digest=sha256(b"source"),
        recipe_digest=sha256(b"recipe"),
        tool_versions={"onnx": onnx.__version__},
    )
    return Artifact(manifest, blobs)


def _describe(path: str, content: bytes, chunk_bytes: int, blobs: dict[str, bytes]) -> ManifestFile:
    chunks = []
    for start in range(0, len(content), chunk_bytes):
        piece = content[start : start + chunk_bytes]
        stored = zstandard.compress(piece)
        blobs[sha256(stored)] = stored
        chunks.append(
            Chunk(
                sha256=sha256(piece),
                size_bytes=len(piece),
                stored_sha256=sha256(stored),
                stored_size_bytes=len(stored),
            )
        )
    return ManifestFile(path=path, sha256=sha256(content), size_bytes=len(content), chunks=chunks)


def tiny_model(*, seed: int = 0, width: int = 256, shift: float = 0.0) -> bytes:
    """A two-layer network, ``x`` float32 (batch, 24) to ``y`` float32 (batch, 16).

    Equal seeds share their weights; ``shift`` moves the last bias alone.
    """
    draw = np.random.default_rng(seed)
    weights = {
        "w1": draw.standard_normal((INPUTS, width)).astype(np.float32),
        "w2": draw.standard_normal((width, OUTPUTS)).astype(np.float32) / width,
        "b2": np.full(OUTPUTS, shift, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["z"]),
            helper.make_node("Add", ["z", "b2"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", OUTPUTS])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def typed_model() -> bytes:
    """Several element types passed through, to test the wire: each input ``in_T`` to ``out_T``."""
    types = {
        "FP16": TensorProto.FLOAT16,
        "FP64": TensorProto.DOUBLE,
        "INT8": TensorProto.INT8,
        "UINT8": TensorProto.UINT8,
        "INT32": TensorProto.INT32,
        "INT64": TensorProto.INT64,
        "BOOL": TensorProto.BOOL,
    }
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in types],
        "typed",
        [helper.make_tensor_value_info(f"in_{name}", kind, ["n", 2]) for name, kind in types.items()],
        [helper.make_tensor_value_info(f"out_{name}", kind, ["n", 2]) for name, kind in types.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def golden(inputs: Mapping[str, Any], references: Mapping[str, Any]) -> bytes:
    """A golden file."""
    arrays = {f"input/{name}": value for name, value in inputs.items()}
    arrays |= {f"reference/{name}": value for name, value in references.items()}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def tiny_inputs(samples: int = 4) -> dict[str, Any]:
    return {"x": np.random.default_rng(7).standard_normal((samples, INPUTS)).astype(np.float32)}


def run_model(model: bytes, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs by ONNX Runtime itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def tiny_artifact(*, seed: int = 0, shift: float = 0.0, honest: bool = True, **arguments: Any) -> Artifact:
    """A small model with its golden file; a dishonest one promises other outputs than it gives."""
    model = tiny_model(seed=seed, shift=shift)
    inputs = tiny_inputs()
    references = run_model(model, inputs)
    if not honest:
        references = {name: -value for name, value in references.items()}
    files = {"model.onnx": model, "golden.npz": golden(inputs, references)}
    return make_artifact(files, **arguments)
