"""Steps that turn a model into an easier one, each from a file to a file; libraries do the work.

A step says what it did in a sentence, or nothing if there was nothing to do. Whether its result is
used is decided by who compares it with the source (:mod:`quantize_worker.steps.prepare`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
import onnxruntime

from quantize_worker.steps import constants
from quantize_worker.steps.datafile import INLINE_BYTES, write_file
from quantize_worker.steps.graph import DEFAULT_DOMAINS, Graph, nodes_of
from quantize_worker.steps.measure import CPU_PROVIDER
from quantize_worker.steps.opening import session_options, short
from quantize_worker.steps.skeleton import read_skeleton

Step = Callable[[Path, Path], str]
OPSETS = (21, 19, 17)  # tried in this order: from 21 on, 4-bit tables and 16-bit activations are standard
GROWTH = 1.05  # folding may not make the weights larger than this
_OPTIMIZED, _OPTIMIZED_DATA = "optimized.onnx", "optimized.data"
_EXTERNAL = "session.optimized_model_external_initializers"


class NotTaken(Exception):
    """A step's result is not wanted; the message says why."""


def strip(model: onnx.ModelProto) -> None:
    """Leave out what says nothing to a runtime: comments, an exporter's notes, unused domains.

    Initializers are put in the order of their first use.
    """
    model.ClearField("doc_string")
    model.graph.ClearField("doc_string")
    used = {node.domain for node in nodes_of(model)} | {function.domain for function in model.functions}
    for node in nodes_of(model):
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    kept = [entry for entry in model.opset_import if entry.domain in {*DEFAULT_DOMAINS, *used}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    _sort_initializers(model.graph)


def inline_functions(source: Path, folder: Path) -> str:
    """Write the model's own functions out."""
    model = read_skeleton(source)
    if not model.functions:
        return ""
    inlined = onnx.inliner.inline_local_functions(model)
    strip(inlined)
    Graph(inlined, source.parent, own=source.name).write(folder, linked=True)
    return f"Wrote the model's functions out: {len(model.functions)}."


def reach_constants(source: Path, folder: Path) -> str:
    """Let products read their weights directly, not through ``Identity`` or ``Transpose``.

    ONNX Runtime's folding does so too, but loads the weights, and stores a transposed table twice.
    """
    graph = Graph.read(source)
    count = constants.skip_identities(graph) + constants.skip_transposes(graph)
    if not count:
        return ""
    graph.write(folder, linked=True)
    return f"Weights now read directly that were copied or transposed first: {count}."


def upgrade(opset: int) -> Step:
    """Convert to a newer opset; the converter sees references to large weights only."""

    def step(source: Path, folder: Path) -> str:
        model = read_skeleton(source)
        before = Graph(model).opset
        if before >= opset:
            return ""
        if model.functions:
            raise NotTaken("the model has functions that could not be written out.")
        converted = onnx.version_converter.convert_version(model, opset)
        del converted.metadata_props[:]
        converted.metadata_props.extend(model.metadata_props)
        strip(converted)
        Graph(converted, source.parent, own=source.name).write(folder, linked=True)
        return f"Upgraded opset {before} to {opset}."

    return step


def optimize(*, folding: bool) -> Step:
    """Let ONNX Runtime fold constants and fuse what is equivalent on every provider.

    Its level "basic" leaves standard operators; higher ones write operators of one provider.
    """

    def step(source: Path, folder: Path) -> str:
        before = Graph.read(source)
        if _has_half_weights(before):
            raise NotTaken("its weights are in half precision, which ONNX Runtime would write as casts.")
        _save_optimized(source, folder, folding=folding)
        model = read_skeleton(folder / _OPTIMIZED)
        strip(model)
        after = Graph(model, folder, own=_OPTIMIZED)
        after.write(folder)
        for name in (_OPTIMIZED, _OPTIMIZED_DATA):
            (folder / name).unlink(missing_ok=True)
        if after.weight_bytes() > before.weight_bytes() * GROWTH + INLINE_BYTES * len(before.nodes):
            raise NotTaken("the weights would grow, as one of them is used in several forms.")
        if len(after.nodes) == len(before.nodes):
            return ""
        what = "Folded constants and fused" if folding else "Fused"
        return f"{what}: {len(before.nodes)} nodes became {len(after.nodes)}."

    return step


def infer_shapes(path: Path) -> str:
    """Add inferred types and shapes to a graph, or say why it cannot be done."""
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # several unrelated kinds
        return short(error, path)
    write_file(path, inferred.SerializeToString(deterministic=True))
    return ""


def _save_optimized(source: Path, folder: Path, *, folding: bool) -> None:
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / _OPTIMIZED)
    options.add_session_config_entry(f"{_EXTERNAL}_file_name", _OPTIMIZED_DATA)
    options.add_session_config_entry(f"{_EXTERNAL}_min_size_in_bytes", str(INLINE_BYTES))
    onnxruntime.InferenceSession(
        str(source),
        options,
        providers=[CPU_PROVIDER],
        disabled_optimizers=[] if folding else ["ConstantFolding"],
    )


def _has_half_weights(graph: Graph) -> bool:
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return any(graph.data_type(name) in half and graph.shape(name) for name in graph.constants())


def _sort_initializers(graph: onnx.GraphProto) -> None:
    rank: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            rank.setdefault(name, len(rank))
    ordered = sorted(graph.initializer, key=lambda tensor: rank.get(tensor.name, len(rank)))
    del graph.initializer[:]
    graph.initializer.extend(ordered)
