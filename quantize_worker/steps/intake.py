"""Cheap checks of an upload before any library parses it in earnest.

onnx.checker is no gate: small files can keep it, ONNX Runtime and a quantizer busy for ever.
What is checked here costs time linear in the file; the sandbox's limits catch the rest.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import onnx
import onnx.defs
import onnx.helper
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from quantize_worker.contract import SourceFile
from quantize_worker.errors import ModelRefused
from quantize_worker.steps.graph import CONTRIB_DOMAIN, DEFAULT_DOMAINS, nodes_in, nodes_of, tensors_of
from quantize_worker.steps.skeleton import WrongField, fields, read_skeleton
from quantize_worker.steps.tensors import bytes_of

MAXIMUM_GRAPH_BYTES = (1 << 31) - 1  # protobuf's own limit; larger weights go into external data
MAXIMUM_UPLOAD_BYTES = 32 << 30
MAXIMUM_FILES = 4096
MAXIMUM_NODES = 1_000_000  # after every function is written out
CONFIG_FILE = "config.json"
CLASSIC_DOMAIN = "ai.onnx.ml"
KNOWN_DOMAINS = {*DEFAULT_DOMAINS, CLASSIC_DOMAIN, CONTRIB_DOMAIN}
_EXPORT = "Export the model to ONNX (for PyTorch: torch.onnx.export) and upload that file."
_SIGNATURES = {
    b"PK\x03\x04": "This is a zip archive, perhaps a PyTorch checkpoint.",
    b"\x89HDF": "This is an HDF5 file, perhaps a Keras model.",
    b"<!DO": "This is a web page.",
    b"<htm": "This is a web page.",
    b"vers": "This is a Git LFS pointer, not the file itself.",
    b"GGUF": "This is a GGUF file.",
}
_IR_VERSION_KEY = 0x08  # the first byte that every exporter writes
_LAST_FIELD = 64  # ModelProto's field numbers are below


def entry_of(files: Sequence[SourceFile]) -> str:
    """Path of what describes the network: the first ``.onnx``, else a ``config.json`` with safetensors beside it.

    Raises:
        ModelRefused: if there is none, or the upload is too large.
    """
    if len(files) > MAXIMUM_FILES or sum(file.size_bytes for file in files) > MAXIMUM_UPLOAD_BYTES:
        raise ModelRefused("too_large", "The upload is larger than 32 GiB or has over 4096 files; reduce it.")
    graphs = [file for file in files if file.path.endswith(".onnx")]
    if not graphs:
        return _configuration_of([file.path for file in files])
    if graphs[0].size_bytes > MAXIMUM_GRAPH_BYTES:
        raise ModelRefused(
            "too_large", "An ONNX graph holds 2 GiB at most; save its weights as external data."
        )
    return graphs[0].path


def is_safetensors(entry: str) -> bool:
    """Whether an entry stands for a network that is still to be written as ONNX."""
    return entry.endswith(CONFIG_FILE)


def read_model(folder: Path, files: Sequence[SourceFile]) -> onnx.ModelProto:
    """Parse the graph, without its weights, after checking that all is whole and inside.

    Args:
        folder: where the upload's files lie under their paths.
        files: the upload.

    Returns:
        The model; large weights are references to external data or to the file itself.

    Raises:
        ModelRefused: with the code and what to do.
    """
    entry = entry_of(files)
    check_form(folder / entry)
    try:
        model = read_skeleton(folder / entry)
    except DecodeError:
        raise ModelRefused("not_onnx", f"The file does not parse as an ONNX model. {_EXPORT}") from None
    if not model.graph.node or not model.graph.output:
        raise ModelRefused("not_onnx", f"The file holds no ONNX graph with nodes and outputs. {_EXPORT}")
    _check_external_data(model, entry, {file.path: file.size_bytes for file in files})
    _check_size_of_functions(model)
    _check_opset(model)
    _check_domains(model)
    return model


def check_form(path: Path) -> None:
    """Walk a file's top-level protobuf fields: tells a truncated model from something else.

    Raises:
        ModelRefused: truncated or not_onnx.
    """
    if not path.stat().st_size:
        raise ModelRefused("truncated", "The file is empty; upload it again as a new version.")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        _check_form(view)


def _configuration_of(paths: list[str]) -> str:
    """The outermost ``config.json`` that has a ``.safetensors`` file in its folder."""
    weights = {PurePosixPath(path).parent for path in paths if path.endswith(".safetensors")}
    configurations = [
        path
        for path in sorted(paths, key=lambda path: (path.count("/"), path))
        if PurePosixPath(path).name == CONFIG_FILE and PurePosixPath(path).parent in weights
    ]
    if configurations:
        return configurations[0]
    if weights:
        raise ModelRefused(
            "missing_file", f"There is no {CONFIG_FILE} beside the .safetensors file; upload it as well."
        )
    raise ModelRefused(
        "not_onnx",
        f"The upload has no file that ends in .onnx, and no .safetensors file with a {CONFIG_FILE}. {_EXPORT}",
    )


def _check_form(view: memoryview) -> None:
    for signature, meaning in _SIGNATURES.items():
        if view[: len(signature)] == signature:
            raise ModelRefused("not_onnx", f"{meaning} {_EXPORT}")
    count = 0
    try:
        for field in fields(view, 0, len(view)):
            if not 0 < field.number < _LAST_FIELD:
                raise WrongField(f"field {field.number}")
            count += 1
    except WrongField:
        raise ModelRefused("not_onnx", f"The file is not an ONNX model. {_EXPORT}") from None
    except IndexError:
        if view[0] == _IR_VERSION_KEY or count:
            raise ModelRefused(
                "truncated", "The file ends in the middle of the model; upload it again as a new version."
            ) from None
        raise ModelRefused("not_onnx", f"The file is not an ONNX model. {_EXPORT}") from None


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
        _check_extent(tensor, facts, sizes[path], path)


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


def _check_extent(tensor: onnx.TensorProto, facts: dict[str, str], size: int, path: str) -> None:
    try:
        needed = bytes_of(tensor.data_type, tuple(tensor.dims))
        offset = int(facts.get("offset") or 0)
        length = int(facts.get("length") or needed)
    except (ValueError, KeyError, TypeError):
        offset = length = needed = -1
    if offset < 0 or length != needed or length < 0:
        raise ModelRefused(
            "invalid_model", f"The external data of {tensor.name!r} has no valid extent; export it again."
        )
    if offset + length > size:
        raise ModelRefused(
            "truncated",
            f"{path!r} is shorter than the graph says (at {tensor.name!r}); upload it again as a new version.",
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


def _check_opset(model: onnx.ModelProto) -> None:
    if model.ir_version > onnx.IR_VERSION:
        raise ModelRefused(
            "unknown_opset",
            f"The file is of ONNX's format {model.ir_version}; this worker's tools know formats up to "
            f"{onnx.IR_VERSION}. Export it with opset 21.",
        )
    for entry in model.opset_import:
        newest = _newest_opsets().get(entry.domain)
        if newest is not None and entry.version > newest:
            raise ModelRefused(
                "unknown_opset",
                f"The model is of opset {entry.version} of {entry.domain or 'ai.onnx'}; this worker's tools "
                f"know opsets up to {newest}. Export it with opset 21 (3 of ai.onnx.ml).",
            )


def _newest_opsets() -> dict[str, int]:
    newest = onnx.defs.onnx_opset_version()
    classic = max(row[3] for row in onnx.helper.VERSION_TABLE)  # release, IR, ai.onnx, ai.onnx.ml, …
    return {**dict.fromkeys(DEFAULT_DOMAINS, newest), CLASSIC_DOMAIN: classic, CONTRIB_DOMAIN: 1}


def _check_domains(model: onnx.ModelProto) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    foreign = {
        f"{node.domain}.{node.op_type}": node.name or next(iter(node.output), "")
        for node in nodes_of(model)
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in own
    }
    if foreign:
        listed = ", ".join(f"{kind} (node {name!r})" for kind, name in sorted(foreign.items())[:5])
        raise ModelRefused(
            "unsupported_operator",
            f"The model uses custom operators that no device has: {listed}. "
            "Replace them by standard ONNX operators.",
        )
