"""FP16 weights and arithmetic for the whole model; inputs and outputs keep their types.

ONNX Runtime's converter decides which nodes compute in FP16. It wants all weights in memory, so it gets
stand-ins for the large ones, of one number each; the weights follow in blocks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference
from onnxruntime.transformers.float16 import convert_float_to_float16

from quantize_worker.errors import BuildFailed
from quantize_worker.steps.datafile import DataFile
from quantize_worker.steps.graph import Graph, nodes_in, subgraphs_of
from quantize_worker.steps.rewrite.scratch import Array, parts
from quantize_worker.steps.skeleton import read_skeleton
from quantize_worker.steps.tensors import Folder, is_external, point_outside

APART = ".apart"
HALF_MAX = float(np.finfo(np.float16).max)
HALF_MIN = float(np.finfo(np.float16).smallest_subnormal)


def convert(model: Path, artifact: Path, scratch: Path) -> list[int]:
    """Convert a model and write it.

    Args:
        model: an ONNX file with its external data beside it.
        artifact: folder for the result.
        scratch: a folder for the weights on their way.

    Returns:
        What :meth:`quantize_worker.steps.graph.Graph.write` does.

    Raises:
        BuildFailed: conversion_failed, if the converter gives up on an operator; disk_full.
    """
    source = shape_inference.infer_shapes(read_skeleton(model))
    _keep_apart(source.graph)
    large = {tensor.name: _copied(tensor) for tensor in source.graph.initializer if is_external(tensor)}
    for tensor in source.graph.initializer:
        if tensor.name in large:
            tensor.CopyFrom(_stand_in(tensor))
    converted = _converted(source)
    files = Folder(model.parent)
    with DataFile(scratch) as data:
        for tensor in converted.graph.initializer:
            if tensor.name in large:
                _put_back(tensor, large[tensor.name], files, data)
    return Graph(converted, scratch).write(artifact)


def _keep_apart(graph: onnx.GraphProto) -> None:
    """Put a Reshape to the same shape between Transposes of a sequence's first axes and products.

    ONNX Runtime 1.32 crashes when it fuses the two in FP16 on the CPU.
    """
    products = [node for node in graph.node if node.op_type == "MatMul"]
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "Transpose" or _permutation(node) != [1, 0, 2]:
            continue
        readers = [reader for reader in products if node.output[0] in reader.input]
        if not readers:
            continue
        apart = f"{node.output[0]}{APART}"
        shape = onnx.numpy_helper.from_array(np.array([0, 0, -1], np.int64), f"{apart}.shape")
        graph.initializer.append(shape)
        nodes.append(helper.make_node("Reshape", [node.output[0], shape.name], [apart], name=apart))
        for reader in readers:
            inputs = [apart if name == node.output[0] else name for name in reader.input]
            del reader.input[:]
            reader.input.extend(inputs)
    kept = [_copy_of(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _permutation(node: onnx.NodeProto) -> list[int]:
    return next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), [])


def _copy_of(node: onnx.NodeProto) -> onnx.NodeProto:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        made: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    except MemoryError:
        raise
    except Exception as error:  # the converter raises whatever it stumbles over
        raise BuildFailed(
            "conversion_failed", f"The model cannot be converted to FP16: {error}", fault="model"
        ) from error
    _sort(made.graph)
    return made


def _sort(graph: onnx.GraphProto) -> None:
    """Put makers before readers, as ONNX wants them: the converter appends its casts at the end.

    Depth first from each node in turn, so that nodes which are in order already stay so.
    """
    nodes = list(graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    order: dict[int, None] = {}
    for index in range(len(nodes)):
        pending = [index]
        while pending:
            ahead = [makers[name] for name in _reads(nodes[pending[-1]]) if name in makers]
            missing = [maker for maker in ahead if maker not in order and maker not in pending]
            if missing:
                pending.append(missing[0])
            else:
                order.setdefault(pending.pop())
    kept = [_copy_of(nodes[index]) for index in order]
    del graph.node[:]
    graph.node.extend(kept)


def _reads(node: onnx.NodeProto) -> list[str]:
    """What a node reads, its subgraphs' nodes included."""
    inner = [name for each in subgraphs_of(node) for child in nodes_in(each) for name in child.input]
    return [*node.input, *inner]


def _stand_in(tensor: TensorProto) -> TensorProto:
    if tensor.data_type == TensorProto.FLOAT:
        return onnx.numpy_helper.from_array(np.zeros(1, np.float32), tensor.name)
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0], raw_data=b"")


def _put_back(tensor: TensorProto, source: TensorProto, files: Folder, data: DataFile) -> None:
    """Write the weight, in the type that the converter has chosen for its stand-in."""
    chosen = tensor.data_type
    value = files.value(source)
    half = chosen == TensorProto.FLOAT16 and source.data_type == TensorProto.FLOAT
    blocks = (_halved(value[part]) if half else value[part] for part in parts(value))
    length = value.nbytes // 2 if half else value.nbytes
    start = data.append_pieces(blocks, length)
    tensor.CopyFrom(TensorProto(name=source.name, data_type=chosen, dims=source.dims))
    point_outside(tensor, data.path.name, start, length)


def _halved(block: Array) -> Array:
    """As the converter does it, in fewer passes: finite stays finite, and what is not zero stays so."""
    made = np.clip(block, -HALF_MAX, HALF_MAX).astype(np.float16)
    lost = (made == 0) & (block != 0)
    if lost.any():
        made[lost] = np.copysign(np.float16(HALF_MIN), block[lost])
    found: Array = made
    return found


def _copied(tensor: TensorProto) -> TensorProto:
    made = TensorProto()
    made.CopyFrom(tensor)
    return made
