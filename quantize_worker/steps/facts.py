"""What ``inspect`` finds out about a model: everything that planning needs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from quantize_worker.contract import LayerFacts, ModelFacts, Precision, SourceFile, TensorSpec
from quantize_worker.errors import ModelRefused
from quantize_worker.steps import package
from quantize_worker.steps.evaluate import accuracy, all_finite
from quantize_worker.steps.graph import DEFAULT_DOMAINS, Graph, nodes_of
from quantize_worker.steps.layers import INT4_BLOCK, Layer, layers_of
from quantize_worker.steps.measure import CPU_PROVIDER, Measured, MeasuredError, is_out_of_memory, measure
from quantize_worker.steps.samples import SampleSet
from quantize_worker.steps.weights import relative_error, round_int4, round_int8

Floats = NDArray[np.float32]
PROBED_WEIGHTS = 1 << 20  # of each layer; enough for its relative error
_TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}
_UNKNOWN_OPERATOR = re.compile(r"not a registered function|No Op registered|Could not find an implementation")
_TOOLS = ("onnx", "onnxruntime", "numpy")


def tool_versions() -> dict[str, str]:
    """Versions of what an artifact's bytes depend on."""
    return {name: package_version(name) for name in _TOOLS}


def check_and_open(path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Let the ONNX checker and ONNX Runtime judge the model.

    Returns:
        The specs of inputs and outputs.

    Raises:
        ModelRefused: invalid_model or unsupported_operator.
    """
    try:
        onnx.checker.check_model(str(path))
    except MemoryError:
        raise
    except Exception as error:  # the checker raises several unrelated kinds
        raise ModelRefused(
            "invalid_model", f"ONNX's checker refuses the model: {_short(error, path)}"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[CPU_PROVIDER])
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise runtime_refusal(str(error), path) from error
    return [_spec(value) for value in session.get_inputs()], [_spec(value) for value in session.get_outputs()]


def runtime_refusal(message: str, path: Path) -> ModelRefused:
    """ONNX Runtime's own words as a refusal."""
    if is_out_of_memory(message):
        raise MemoryError(message)
    text = _short(message, path)
    if _UNKNOWN_OPERATOR.search(message):
        return ModelRefused(
            "unsupported_operator",
            f"ONNX Runtime lacks an operator of the model: {text} Export with another opset.",
        )
    return ModelRefused("invalid_model", f"ONNX Runtime refuses the model: {text}")


def index_bounds(graph: Graph, specs: Sequence[TensorSpec]) -> dict[str, int]:
    """For inputs that directly index a constant table, the table's rows."""
    names = {spec.name for spec in specs}
    bounds: dict[str, int] = {}
    for node in graph.nodes:
        if node.op_type == "Gather" and node.domain in DEFAULT_DOMAINS and node.input[1] in names:
            table = graph.constant(node.input[0])
            if table is not None and table.ndim:
                bounds[node.input[1]] = min(len(table), bounds.get(node.input[1], len(table)))
    return bounds


def describe(
    graph: Graph,
    files: Sequence[SourceFile],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    samples: SampleSet,
    measured: Measured,
    *,
    available: int,
    on_layer: Callable[[float], None] = lambda share: None,
) -> ModelFacts:
    """Put the facts together.

    Args:
        available: samples in the whole evaluation set, of which ``samples`` may be a part.
        on_layer: called with the share of layers probed.
    """
    layers = layers_of(graph)
    probed = []
    for index, layer in enumerate(layers):
        probed.append(_probe(graph, layer))
        on_layer((index + 1) / len(layers))
    weights = {layer.weight: layer for layer in layers}
    tables = {layer.weight: layer for layer in layers if layer.operator == "Gather"}
    labels = samples.labels
    return ModelFacts(
        inputs=inputs,
        outputs=outputs,
        opset=graph.opset,
        operators=_operators(graph.model),
        parameters=graph.parameters(),
        source_bytes=sum(file.size_bytes for file in files),
        weight_bytes=graph.weight_bytes(),
        quantizable_weight_bytes=sum(4 * layer.parameters for layer in weights.values()),
        embedding_weight_bytes=sum(4 * layer.parameters for layer in tables.values()),
        layers=probed,
        samples=available,
        has_labels=labels is not None,
        synthetic_samples=samples.synthetic,
        accuracy=None if labels is None else accuracy(measured.outputs, labels),
        latency_p50_ms=measured.figures.latency_p50_ms,
        memory_bytes=measured.figures.memory_bytes,
        tool_versions=tool_versions(),
        measured_samples=len(measured.outputs),
    )


def measure_source(
    path: Path, samples: SampleSet, folder: Path, *, on_share: Callable[[float], None] = lambda share: None
) -> Measured:
    """Run the FP32 source on the evaluation samples.

    Raises:
        ModelRefused: if it cannot be run on them, or makes something of them that is not finite.
    """
    measured = _run_source(path, samples, folder, on_share)
    if all_finite(measured.outputs):
        return measured
    if samples.synthetic:
        raise ModelRefused(
            "invalid_model",
            "The model's outputs are NaN or infinite on generated inputs; upload an evaluation set "
            "with real ones, or correct the model.",
        )
    raise ModelRefused(
        "invalid_samples",
        "The FP32 model's outputs are NaN or infinite on the evaluation set: nothing can be measured "
        "against them. Leave those samples out, or correct the model.",
    )


def _run_source(path: Path, samples: SampleSet, folder: Path, on_share: Callable[[float], None]) -> Measured:
    installed = folder / "installed"
    package.write_model(Graph.read(path).finish(), installed)  # as a device would hold it
    try:
        return measure(
            installed / package.GRAPH_FILE,
            samples,
            folder,
            provider=CPU_PROVIDER,
            golden=0,
            on_share=on_share,
        )
    except MeasuredError as error:
        if samples.synthetic:
            raise ModelRefused(
                "invalid_model",
                "The model does not run on generated inputs; upload an evaluation set with real ones. "
                f"ONNX Runtime says: {_short(error.message, path)}",
            ) from error
        raise ModelRefused(
            "wrong_sample_shape",
            f"The model does not run on the evaluation set; check shapes and values. "
            f"ONNX Runtime says: {_short(error.message, path)}",
        ) from error


def _probe(graph: Graph, layer: Layer) -> LayerFacts:
    weight = _some_rows(layer, graph)
    half = weight.astype(np.float16).astype(np.float32)
    errors: dict[str, float] = {"fp16": relative_error(weight, np.nan_to_num(half))}
    for precision in layer.precisions():
        errors[precision] = _error(weight, precision)
    return LayerFacts(
        name=layer.name,
        operator=layer.operator,
        parameters=layer.parameters,
        quantizable=bool(layer.precisions()),
        sensitivity=errors,
    )


def _some_rows(layer: Layer, graph: Graph) -> Floats:
    """The weight as (channels, inner), or rows spread evenly over it."""
    stored = cast("Floats", graph.constant(layer.weight))
    by_channel = stored.T if layer.operator in ("MatMul", "Gemm") and not layer.transposed else stored
    rows = by_channel.reshape(by_channel.shape[0], -1)
    wanted = max(1, PROBED_WEIGHTS // max(1, rows.shape[1]))
    if len(rows) > wanted:
        rows = rows[np.linspace(0, len(rows) - 1, wanted).round().astype(int)]
    return np.ascontiguousarray(rows)


def _error(weight: Floats, precision: Precision) -> float:
    if precision == "int4":
        return relative_error(weight, round_int4(weight, block=INT4_BLOCK).dequantized(weight.shape[1]))
    rounded = round_int8(weight, axis=0)
    return relative_error(weight, rounded.values.astype(np.float32) * rounded.scales[:, None])


def _operators(model: onnx.ModelProto) -> dict[str, int]:
    names = (
        f"{n.domain}.{n.op_type}" if n.domain not in DEFAULT_DOMAINS else n.op_type for n in nodes_of(model)
    )
    return dict(sorted(Counter(names).items()))


def _spec(value: Any) -> TensorSpec:
    kind = re.fullmatch(r"tensor\((\w+)\)", value.type)
    if kind is None or kind.group(1) not in _TYPES:
        raise ModelRefused(
            "invalid_model",
            f"{value.name!r} is of type {value.type}; inputs and outputs must be tensors of numbers "
            "(for scikit-learn models: export with zipmap=False).",
        )
    shape = [
        dim if isinstance(dim, int) and dim >= 0 else str(dim or f"{value.name}_{axis}")
        for axis, dim in enumerate(value.shape)
    ]
    return TensorSpec(name=value.name, dtype=_TYPES[kind.group(1)], shape=shape)


def _short(error: object, path: Path) -> str:
    """An error's first words, without our folder's name."""
    text = " ".join(str(error).replace(f"{path.parent}/", "").split())
    return text if len(text) <= 300 else f"{text[:297]}…"
