"""Stored tensors, read where they lie: inline in a proto, or as a read-only view on a mapped file.

Mapped pages belong to the page cache: however large a model is, reading it takes no memory that
the kernel could not take back.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
PIECE_BYTES = 64 << 20  # what is handled at once of a large tensor
PACKED_BITS: dict[int, int] = {  # several values share a byte
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
    TensorProto.FLOAT6E2M3: 6,
    TensorProto.FLOAT6E3M2: 6,
}
_VALUE_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
)


class Folder:
    """The files beside a graph, each mapped once, when first needed.

    Args:
        path: the folder; None for a model that has no external data.
        own: the name of the graph's own file.
    """

    def __init__(self, path: Path | None, own: str = "") -> None:
        self._path, self._own = path, own
        self._maps: dict[str, Bytes] = {}

    def file(self, location: str) -> Bytes:
        """All bytes of a file, mapped read-only.

        Raises:
            ValueError: if the model came without a folder.
        """
        if self._path is None:
            raise ValueError("a model without a folder has no external data")
        if location not in self._maps:
            with (self._path / location).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[location] = np.frombuffer(mapped, np.uint8)
        return self._maps[location]

    def is_own(self, tensor: TensorProto) -> bool:
        """Whether a tensor's values lie in the graph's own file."""
        return is_external(tensor) and extent(tensor)[0] == self._own

    def path(self, location: str) -> Path:
        """Where an external file lies."""
        assert self._path is not None
        return self._path / location

    def content(self, tensor: TensorProto) -> Bytes:
        """A tensor's bytes as stored (little-endian): a view where it is external."""
        if tensor.data_location != TensorProto.EXTERNAL:
            return np.frombuffer(raw_bytes(tensor), np.uint8)
        location, offset, length = extent(tensor)
        return self.file(location)[offset : offset + length] if length else np.empty(0, np.uint8)

    def value(self, tensor: TensorProto) -> Array:
        """A tensor's value: a read-only view where its type allows, without reading it."""
        if tensor.data_type == TensorProto.STRING or tensor.data_location != TensorProto.EXTERNAL:
            value: Array = numpy_helper.to_array(tensor)
            value.flags.writeable = False
            return value
        content = self.content(tensor)
        if tensor.data_type in PACKED_BITS:
            packed = with_content(header(tensor, tensor.name), content.tobytes())
            return np.asarray(numpy_helper.to_array(packed))
        return content.view(dtype_of(tensor.data_type)).reshape(tuple(tensor.dims))


def dtype_of(data_type: int) -> np.dtype[Any]:
    """The numpy type of an ONNX element type; ``ml_dtypes`` has those that numpy lacks."""
    kind: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
    return kind


def bytes_of(data_type: int, dims: tuple[int, ...]) -> int:
    """Bytes that a tensor takes as raw data; 0 for strings."""
    count = math.prod(dims)
    if data_type == TensorProto.STRING:
        return 0
    if data_type in PACKED_BITS:
        return -(-count * PACKED_BITS[data_type] // 8)
    return int(count * dtype_of(data_type).itemsize)


def extent(tensor: TensorProto) -> tuple[str, int, int]:
    """Location, offset and length of external data; a missing length is what the shape needs."""
    entries = {item.key: item.value for item in tensor.external_data}
    needed = bytes_of(tensor.data_type, tuple(tensor.dims))
    return entries.get("location", ""), int(entries.get("offset") or 0), int(entries.get("length") or needed)


def raw_bytes(tensor: TensorProto) -> bytes:
    """An inline tensor's values as ONNX's raw data (little-endian)."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    if tensor.data_type == TensorProto.STRING:
        return b""
    return bytes(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def header(tensor: TensorProto, name: str) -> TensorProto:
    """Name, type and shape of a tensor, without its values."""
    return TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)


def with_content(tensor: TensorProto, content: bytes) -> TensorProto:
    """The same tensor with these bytes inline."""
    tensor.raw_data = content
    return tensor


def point_outside(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Turn a tensor into a reference to external data."""
    for field in _VALUE_FIELDS:
        tensor.ClearField(field)
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def pieces(value: Array) -> Iterator[Array]:
    """An array in blocks of rows of at most :data:`PIECE_BYTES`, each contiguous."""
    if value.nbytes <= PIECE_BYTES or not value.ndim:
        yield np.ascontiguousarray(value)
        return
    if value.flags.c_contiguous and value.ndim > 1:
        value = value.reshape(-1)
    rows = max(1, PIECE_BYTES // max(1, value.nbytes // len(value)))
    for start in range(0, len(value), rows):
        block = value[start : start + rows]
        if block.nbytes > PIECE_BYTES and block.ndim > 1:
            yield from pieces(block[0])  # a single row that is too large itself
        else:
            yield np.ascontiguousarray(block)


def tensor_of(value: Array | np.generic, name: str) -> TensorProto:
    """An array as an inline tensor."""
    return numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)


def data_type_of(value: Array | np.generic) -> int:
    """The ONNX element type of an array."""
    return int(helper.np_dtype_to_tensor_dtype(value.dtype))


def is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)
