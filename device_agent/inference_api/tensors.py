"""Tensors of the Open Inference Protocol: JSON and the binary data extension, both ways."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from device_agent.errors import InferenceError
from device_agent.inference_api.messages import RequestedTensor

Tensor = npt.NDArray[Any]

NUMPY_OF: dict[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
DATATYPE_OF: dict[str, str] = {numpy: datatype for datatype, numpy in NUMPY_OF.items()}
MAX_RANK = 16


def datatype_of(dtype: str) -> str:
    """The protocol's name of a numpy type; ``BYTES`` for strings."""
    return DATATYPE_OF.get(dtype, "BYTES" if dtype == "object" else dtype)


def decode_json(tensor: RequestedTensor) -> Tensor:
    """A tensor whose data stands in the JSON, nested or flat (row-major).

    Raises:
        InferenceError: if type, count or range do not fit.
    """
    dtype, count = _dtype(tensor), _count(tensor)
    try:
        data = np.array(tensor.data)
    except (ValueError, OverflowError) as error:
        raise InferenceError(f"input {tensor.name!r}: data is ragged or out of range") from error
    if data.size != count:
        raise InferenceError(f"input {tensor.name!r}: {data.size} values, shape {tensor.shape} needs {count}")
    if data.size and not _kind_fits(data, dtype):
        raise InferenceError(f"input {tensor.name!r}: values are not {tensor.datatype}")
    return data.astype(dtype).reshape(tensor.shape)


def decode_binary(tensor: RequestedTensor, raw: memoryview) -> Tensor:
    """A tensor whose data follows the JSON (little-endian, row-major).

    Raises:
        InferenceError: if the number of bytes does not fit shape and type.
    """
    dtype, count = _dtype(tensor), _count(tensor)
    needed = count * dtype.itemsize
    if len(raw) != needed:
        raise InferenceError(f"input {tensor.name!r}: {len(raw)} bytes, shape {tensor.shape} needs {needed}")
    return np.frombuffer(raw, dtype=dtype).reshape(tensor.shape)


def encode_binary(tensor: Tensor) -> bytes:
    """Little-endian, row-major bytes."""
    return np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).tobytes()


def _dtype(tensor: RequestedTensor) -> np.dtype[Any]:
    if tensor.datatype not in NUMPY_OF:
        raise InferenceError(
            f"input {tensor.name!r}: datatype {tensor.datatype} is not supported; "
            f"use one of {', '.join(NUMPY_OF)}",
            code="unsupported_datatype",
        )
    return np.dtype(NUMPY_OF[tensor.datatype]).newbyteorder("<")


def _count(tensor: RequestedTensor) -> int:
    if len(tensor.shape) > MAX_RANK:
        raise InferenceError(f"input {tensor.name!r}: more than {MAX_RANK} dimensions")
    return math.prod(tensor.shape)


def _kind_fits(data: Tensor, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "b":
        return data.dtype.kind == "b"
    if dtype.kind == "f":
        return data.dtype.kind in "iuf"
    if data.dtype.kind not in "iu":
        return False
    limits = np.iinfo(dtype)
    return int(data.min()) >= limits.min and int(data.max()) <= limits.max
