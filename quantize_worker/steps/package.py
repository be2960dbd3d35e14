"""The artifact's form: a graph, its weights as aligned external data, both cut into chunks.

Cuts are at tensor boundaries, so that tensors shared by versions or builds are stored and sent
once. Equal models give equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
import zstandard
from onnx import numpy_helper

from quantize_worker.contract import ArtifactChunk, ArtifactFile

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.data"
INLINE_BYTES = 1024  # smaller tensors stay in the graph, where shape inference reads them
ALIGNMENT = 64  # a cache line
PAGE_BYTES = 4096  # tensors of a page or more start at one, so that they can be memory-mapped
SMALL_CHUNK_BYTES = 256 << 10
LARGE_CHUNK_BYTES = 4 << 20
ZSTD_LEVEL = 6


def write_model(model: onnx.ModelProto, folder: Path) -> list[int]:
    """Write ``model.onnx`` and, if there are weights, ``model.data``. The model is changed.

    Returns:
        Where tensors start in ``model.data``, ascending, and its length last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts, position = [], 0
    with (folder / DATA_FILE).open("wb") as data:
        for tensor in model.graph.initializer:
            content = _content(tensor)
            if len(content) < INLINE_BYTES or tensor.data_type == onnx.TensorProto.STRING:
                continue
            start = _aligned(position, len(content))
            data.write(b"\0" * (start - position) + content)
            _point_outside(tensor, start, len(content))
            starts.append(start)
            position = start + len(content)
    if not position:
        (folder / DATA_FILE).unlink()
    (folder / GRAPH_FILE).write_bytes(model.SerializeToString(deterministic=True))
    return [*starts, position]


def cut(path: Path, chunks: Path, *, name: str, starts: list[int] | None = None) -> ArtifactFile:
    """Cut a file into zstd frames under ``chunks``, each named by its own SHA-256.

    Args:
        path: the file.
        chunks: folder for the frames.
        name: the file's path within the artifact.
        starts: boundaries to cut at, as :func:`write_model` returns them.
    """
    chunks.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True)
    whole, made = hashlib.sha256(), []
    with path.open("rb") as file:
        for length in _lengths(starts or [0, size], size):
            content = file.read(length)
            whole.update(content)
            made.append(_store(content, compressor.compress(content), chunks))
    return ArtifactFile(path=name, sha256=whole.hexdigest(), size_bytes=size, chunks=made)


def _lengths(starts: list[int], size: int) -> Iterator[int]:
    """Lengths of the chunks: small tensors together, large ones in pieces."""
    begin = 0
    for end in [*starts[1:-1], size]:
        if end - begin < SMALL_CHUNK_BYTES and end != size:
            continue
        while end - begin > LARGE_CHUNK_BYTES:
            yield LARGE_CHUNK_BYTES
            begin += LARGE_CHUNK_BYTES
        if end > begin:
            yield end - begin
        begin = end


def _store(content: bytes, frame: bytes, chunks: Path) -> ArtifactChunk:
    stored = hashlib.sha256(frame).hexdigest()
    (chunks / stored).write_bytes(frame)
    return ArtifactChunk(
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        stored_sha256=stored,
        stored_size_bytes=len(frame),
    )


def _content(tensor: onnx.TensorProto) -> bytes:
    """The tensor's values as ONNX's raw data (little-endian)."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    if tensor.data_type == onnx.TensorProto.STRING:
        return b""
    return bytes(onnx.numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def _aligned(position: int, length: int) -> int:
    step = PAGE_BYTES if length >= PAGE_BYTES else ALIGNMENT
    return -(-position // step) * step


def _point_outside(tensor: onnx.TensorProto, start: int, length: int) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", DATA_FILE), ("offset", str(start)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
