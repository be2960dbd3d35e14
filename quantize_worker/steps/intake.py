"""Cheap checks of an upload before any library parses it in earnest.

onnx.checker is no gate: small files can keep it, ONNX Runtime and a quantizer busy for ever.
What is checked here costs time linear in the file; the sandbox's limits catch the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from quantize_worker.contract import SourceFile
from quantize_worker.errors import ModelRefused
from quantize_worker.steps.graph import CONTRIB_DOMAIN, DEFAULT_DOMAINS, nodes_in, nodes_of, tensors_of

MAXIMUM_GRAPH_BYTES = (1 << 31) - 1  # protobuf's own limit; larger weights go into external data
MAXIMUM_UPLOAD_BYTES = 32 << 30
MAXIMUM_FILES = 4096
MAXIMUM_NODES = 1_000_000  # after every function is written out
KNOWN_DOMAINS = {*DEFAULT_DOMAINS, "ai.onnx.ml", CONTRIB_DOMAIN}
_EXPORT = "Export the model to ONNX (for PyTorch: torch.onnx.export) and upload that file."
_SIGNATURES = {
    b"PK\x03\x04": "This is a zip archive, perhaps a PyTorch checkpoint.",
    b"\x89HDF": "This is an HDF5 file, perhaps a Keras model.",
    b"<!DO": "This is a web page.",
    b"<htm": "This is a web page.",
    b"vers": "This is a Git LFS pointer, not the file itself.",
    b"GGUF": "This is a GGUF file.",
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LAST_FIELD = 64  # ModelProto's field numbers are below


def entry_of(files: Sequence[SourceFile]) -> str:
    """Path of the graph among the uploaded files: the first ``.onnx``.

    Raises:
        ModelRefused: if there is none, or the upload is too large.
    """
    if len(files) > MAXIMUM_FILES or sum(file.size_bytes for file in files) > MAXIMUM_UPLOAD_BYTES:
        raise ModelRefused("too_large", "The upload is larger than 32 GiB or has over 4096 files; reduce it.")
    graphs = [file for file in files if file.path.endswith(".onnx")]
    if not graphs:
        raise ModelRefused("not_onnx", f"The upload has no file that ends in .onnx. {_EXPORT}")
    if graphs[0].size_bytes > MAXIMUM_GRAPH_BYTES:
        raise ModelRefused(
            "too_large", "An ONNX graph holds 2 GiB at most; save its weights as external data."
        )
    return graphs[0].path


def read_model(folder: Path, files: Sequence[SourceFile]) -> onnx.ModelProto:
    """Parse the graph without external data, after checking that both are whole and inside.

    Args:
        folder: where the upload's files lie under their paths.
        files: the upload.

    Raises:
        ModelRefused: with the code and what to do.
    """
    entry = entry_of(files)
    data = (folder / entry).read_bytes()
    _check_form(data)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelRefused("not_onnx", f"The file does not parse as an ONNX model. {_EXPORT}") from None
    if not model.graph.node or not model.graph.output:
        raise ModelRefused("not_onnx", f"The file holds no ONNX graph with nodes and outputs. {_EXPORT}")
    _check_external_data(model, entry, {file.path: file.size_bytes for file in files})
    _check_size_of_functions(model)
    _check_domains(model)
    return model


def _check_form(data: bytes) -> None:
    """Walk the top-level protobuf fields: tells a truncated model from something else."""
    if not data:
        raise ModelRefused("truncated", "The file is empty; upload it again as a new version.")
    for signature, meaning in _SIGNATURES.items():
        if data.startswith(signature):
            raise ModelRefused("not_onnx", f"{meaning} {_EXPORT}")
    view, position, fields = memoryview(data), 0, 0
    try:
        while position < len(view):
            position = _after_field(view, position)
            fields += 1
    except _WrongField:
        raise ModelRefused("not_onnx", f"The file is not an ONNX model. {_EXPORT}") from None
    except IndexError:
        position = len(view) + 1
    if position > len(view):
        if data[0] == 0x08 or fields:  # ir_version, the first field that every exporter writes
            raise ModelRefused(
                "truncated", "The file ends in the middle of the model; upload it again as a new version."
            )
        raise ModelRefused("not_onnx", f"The file is not an ONNX model. {_EXPORT}")


class _WrongField(Exception):
    pass


def _after_field(view: memoryview, position: int) -> int:
    key, position = _varint(view, position)
    kind, number = key & 7, key >> 3
    if not 0 < number < _LAST_FIELD:
        raise _WrongField
    if kind == _VARINT:
        return _varint(view, position)[1]
    if kind == _BYTES:
        length, position = _varint(view, position)
        return position + length
    if kind in (_FIXED64, _FIXED32):
        return position + (8 if kind == _FIXED64 else 4)
    raise _WrongField


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _WrongField


def _check_external_data(model: onnx.ModelProto, entry: str, sizes: dict[str, int]) -> None:
    for tensor in tensors_of(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        facts = {item.key: item.value for item in tensor.external_data}
        path = _inside(facts.get("location", ""), entry, tensor.name)
        if path not in sizes:
            raise ModelRefused(
                "missing_file",
                f"The weights of {tensor.name!r} are in {path!r}; upload that file with the model.",
            )
        _check_extent(facts, sizes[path], path, tensor.name)


def _inside(location: str, entry: str, tensor: str) -> str:
    """The path within the upload that ``location`` names, seen from the graph's folder."""
    path = PurePosixPath(location)
    if not location or path.is_absolute() or ".." in path.parts or "\\" in location or ":" in location:
        raise ModelRefused(
            "external_data_outside",
            f"The weights of {tensor!r} point at {location!r}, outside the upload; save external data "
            "beside the graph under a plain relative name.",
        )
    return str(PurePosixPath(entry).parent / path)


def _check_extent(facts: dict[str, str], size: int, path: str, tensor: str) -> None:
    try:
        offset = int(facts.get("offset") or 0)
        length = int(facts.get("length") or size - offset)
    except ValueError:
        raise ModelRefused("invalid_model", f"The external data of {tensor!r} has no valid extent.") from None
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelRefused(
            "truncated",
            f"{path!r} is shorter than the graph says (at {tensor!r}); upload it again as a new version.",
        )


def _check_size_of_functions(model: onnx.ModelProto) -> None:
    """Refuse functions that call themselves or that grow without bound when written out."""
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    for key in functions:
        _written_out(key, functions, sizes)
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in nodes_in(model.graph))
    if total > MAXIMUM_NODES:
        raise ModelRefused("too_large", "Written out, the model's functions have over a million nodes.")


def _written_out(
    start: tuple[str, str],
    functions: dict[tuple[str, str], onnx.FunctionProto],
    sizes: dict[tuple[str, str], int],
) -> None:
    """Nodes of a function with all it calls written out; without recursion, as depth is hostile."""
    stack, open_calls = [start], set[tuple[str, str]]()
    while stack:
        key = stack[-1]
        calls = [(node.domain, node.op_type) for node in functions[key].node]
        missing = [call for call in calls if call in functions and call not in sizes]
        if key in sizes or not missing:
            stack.pop()
            open_calls.discard(key)
            sizes[key] = min(sum(sizes.get(call, 1) for call in calls), MAXIMUM_NODES + 1)
            continue
        if key in open_calls and any(call in open_calls for call in missing):
            raise ModelRefused(
                "invalid_model", f"The function {key[1]!r} calls itself; inline it and export again."
            )
        open_calls.add(key)
        stack.extend(dict.fromkeys(missing))


def _check_domains(model: onnx.ModelProto) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    foreign = {
        f"{node.domain}.{node.op_type}"
        for node in nodes_of(model)
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in own
    }
    if foreign:
        raise ModelRefused(
            "unsupported_operator",
            f"The model uses custom operators ({', '.join(sorted(foreign)[:5])}) that no device has; "
            "replace them by standard ONNX operators.",
        )
