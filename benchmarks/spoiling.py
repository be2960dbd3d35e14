"""Spoils a good INT4 build, by a seed: what a bug in a packer or a bad disk would give."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.errors import BenchmarkFailed
from benchmarks.reference import Array


def keep(build: Path, folder: Path) -> None:
    """Copy a build's model; what is spoilt later starts from it."""
    folder.mkdir()
    for path in build.glob("model.*"):
        shutil.copyfile(path, folder / path.name)


def zero_a_layer(build: Path, out: Path, seed: int) -> None:
    """All scales of one matrix become zero."""
    _change(build, out, seed, lambda scales, generator: np.zeros_like(scales))


def swap_scales(build: Path, out: Path, seed: int) -> None:
    """The scales of one matrix go to other rows than their own."""
    _change(build, out, seed, lambda scales, generator: generator.permutation(scales, axis=0))


def discard(folder: Path) -> None:
    shutil.rmtree(folder)


def _change(build: Path, out: Path, seed: int, change: object) -> None:
    """Change the scales of one MatMulNBits, chosen by the seed."""
    assert callable(change)
    model = onnx.load(str(build / "model.onnx"))
    generator = np.random.default_rng(seed)
    sources = _scale_initializers(model)
    if not sources:
        raise BenchmarkFailed("the build has no matrix in four bits to spoil")
    tensor = sources[generator.integers(len(sources))]
    scales: Array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(scales, generator), tensor.name))
    out.mkdir()
    onnx.save(model, str(out / "model.onnx"))


def _scale_initializers(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Per MatMulNBits the stored tensor that its scales are proportional to, row by row."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        name = node.input[2]
        while name not in constants:  # row scales come last: Mul(Cast(codes), row scales), perhaps reshaped
            maker = makers[name]
            stored = [entry for entry in maker.input if entry in constants]
            name = stored[-1] if maker.op_type == "Mul" and stored else maker.input[0]
        found.append(constants[name])
    return found
