"""Open a model in ONNX Runtime: what it takes and gives, or why it is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import onnx.checker
import onnx.helper
import onnxruntime

from quantize_worker.contract import TensorSpec
from quantize_worker.errors import ModelRefused
from quantize_worker.steps.graph import tensors_of
from quantize_worker.steps.measure import CPU_PROVIDER, is_out_of_memory
from quantize_worker.steps.skeleton import read_skeleton
from quantize_worker.steps.tensors import is_external

Specs = list[TensorSpec]
_TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}
_UNKNOWN_OPERATOR = re.compile(r"not a registered function|No Op registered|Could not find an implementation")
_UNKNOWN_OPSET = re.compile(
    r"Opset \d+ is under development|[Uu]nsupported model IR version|Unrecognized (model )?ir_version|"
    r"No schema registered for .* version"
)


def session_options(*, lean: bool = False) -> onnxruntime.SessionOptions:
    """Options for a session on one thread, silent.

    Args:
        lean: run on weights as they are mapped: nothing is folded, fused or packed, so that almost
            no memory is taken. Slower; for models too large to be copied.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if lean:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def open_session(path: Path, *, lean: bool = False) -> onnxruntime.InferenceSession:
    """A session on the CPU.

    Raises:
        ModelRefused: invalid_model, unsupported_operator or unknown_opset.
    """
    try:
        return onnxruntime.InferenceSession(str(path), session_options(lean=lean), providers=[CPU_PROVIDER])
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise runtime_refusal(str(error), path) from error


def check_model(path: Path) -> None:
    """Let the ONNX checker judge the graph; where its weights lie, intake has checked.

    Raises:
        ModelRefused: invalid_model or unknown_opset.
    """
    try:
        onnx.checker.check_model(_without_weights(read_skeleton(path)))
    except MemoryError:
        raise
    except Exception as error:  # the checker raises several unrelated kinds
        raise _checker_refusal(str(error), path) from error


def specs_of(session: onnxruntime.InferenceSession) -> tuple[Specs, Specs]:
    """Specs of a session's inputs and outputs.

    Raises:
        ModelRefused: invalid_model, if one of them is no tensor of numbers.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return [_spec(value) for value in inputs], [_spec(value) for value in outputs]


def runtime_refusal(message: str, path: Path) -> ModelRefused:
    """ONNX Runtime's own words as a refusal.

    Raises:
        MemoryError: if they mean that memory was refused.
    """
    if is_out_of_memory(message):
        raise MemoryError(message)
    text = short(message, path)
    if _UNKNOWN_OPSET.search(message):
        return ModelRefused("unknown_opset", f"The model is newer than this worker's tools: {text}{_OLDER}")
    if _UNKNOWN_OPERATOR.search(message):
        return ModelRefused(
            "unsupported_operator",
            f"ONNX Runtime lacks an operator of the model: {text} Export with another opset.",
        )
    return ModelRefused(
        "invalid_model", f"ONNX Runtime refuses the model: {text} Correct it and export it again."
    )


def short(error: object, path: Path) -> str:
    """An error's first words, without our folder's name."""
    text = " ".join(str(error).replace(f"{path.parent}/", "").split())
    return text if len(text) <= 300 else f"{text[:297]}…"


_OLDER = " Export it with opset 21 and upload that."


def _checker_refusal(message: str, path: Path) -> ModelRefused:
    text = short(message, path)
    if _UNKNOWN_OPSET.search(message):
        return ModelRefused("unknown_opset", f"The model is newer than this worker's tools: {text}{_OLDER}")
    return ModelRefused(
        "invalid_model", f"ONNX's checker refuses the model: {text} Correct it and export it again."
    )


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, which takes its external weights as inputs.

    The checker would open each file, and takes one with several hard links for an attack.
    """
    named = {value.name for value in model.graph.input}
    inline = [tensor for tensor in model.graph.initializer if not is_external(tensor)]
    outside = [tensor for tensor in model.graph.initializer if is_external(tensor)]
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in outside
        if tensor.name not in named
    )
    del model.graph.initializer[:]
    model.graph.initializer.extend(inline)
    for tensor in tensors_of(model):
        if is_external(tensor):  # of a subgraph or an attribute
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))
    return model


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
