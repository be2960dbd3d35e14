"""Parse an ONNX file without loading its weights: large inline ones become references to the file.

Protobuf parses a message whole, so a graph with 2 GB of inline weights takes 4 GB. The wire format
(protobuf.dev, "Encoding") lets us skip over them: only fields of the model, its graph and its
initializers are walked; everything else is parsed as usual.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx

from quantize_worker.steps.tensors import bytes_of, header, point_outside

INLINE_LIMIT = 64 << 10  # larger raw data is not loaded
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


class WrongField(ValueError):
    """The bytes are no protobuf message."""


class Field(NamedTuple):
    """A field of a message: its number, and where it, its content and the next one start."""

    number: int
    kind: int
    start: int
    content: int
    end: int


def read_skeleton(path: Path) -> onnx.ModelProto:
    """The model at ``path``; initializers with much raw data refer to the file itself.

    Raises:
        google.protobuf.message.DecodeError: if it does not parse.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            return onnx.ModelProto()
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            return _parsed(view, path.name)


def fields(view: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of a message that lies at ``view[start:end]``.

    Raises:
        WrongField: if there is something else.
        IndexError: if it ends in the middle of a field.
    """
    position = start
    while position < end:
        key, content = varint(view, position)
        kind = key & 7
        if kind == _VARINT:
            after = varint(view, content)[1]
        elif kind == _BYTES:
            length, content = varint(view, content)
            after = content + length
        elif kind in (_FIXED64, _FIXED32):
            after = content + (8 if kind == _FIXED64 else 4)
        else:
            raise WrongField(f"wire type {kind}")
        if after > end:
            raise IndexError(after)
        yield Field(key >> 3, kind, position, content, after)
        position = after


def varint(view: memoryview, position: int) -> tuple[int, int]:
    """A base-128 number and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WrongField("a number has more than 64 bits")


def _parsed(view: memoryview, name: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        found = list(fields(view, 0, len(view)))
        graphs = [field for field in found if field.number == _GRAPH and field.kind == _BYTES]
        if len(graphs) != 1:
            raise WrongField("a model has one graph")
        graph = _without_weights(view, graphs[0], name)
    except (WrongField, IndexError):
        model.ParseFromString(bytes(view))  # says what is wrong, or understands it
        return model
    model.ParseFromString(b"".join(bytes(view[f.start : f.end]) for f in found if f is not graphs[0]))
    model.graph.MergeFromString(graph)
    return model


def _without_weights(view: memoryview, graph: Field, name: str) -> bytes:
    parts = []
    for field in fields(view, graph.content, graph.end):
        small = field.end - field.start <= INLINE_LIMIT
        if small or field.number != _INITIALIZER or field.kind != _BYTES:
            parts.append(bytes(view[field.start : field.end]))
        else:
            parts.append(_reference(view, field, name))
    return b"".join(parts)


def _reference(view: memoryview, field: Field, name: str) -> bytes:
    """An initializer as a field of a graph, its raw data left in the file."""
    found = list(fields(view, field.content, field.end))
    raw = [f for f in found if f.number == _RAW_DATA and f.kind == _BYTES]
    if len(raw) != 1:
        return bytes(view[field.start : field.end])
    rest = b"".join(bytes(view[f.start : f.end]) for f in found if f is not raw[0])
    tensor = onnx.TensorProto.FromString(rest)
    length = raw[0].end - raw[0].content
    if length != bytes_of(tensor.data_type, tuple(tensor.dims)) or tensor.HasField("data_location"):
        return bytes(view[field.start : field.end])
    outside = header(tensor, tensor.name)
    point_outside(outside, name, raw[0].content, length)
    content: bytes = outside.SerializeToString(deterministic=True)
    return _varint_bytes(_INITIALIZER << 3 | _BYTES) + _varint_bytes(len(content)) + content


def _varint_bytes(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])
