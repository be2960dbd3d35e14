"""What operators cost here: each distinct shape in each format, timed alone on one thread.

Operators are timed as builds contain them: a model of one layer is assembled and run, for all rows of a sample
(an encoder, or a decoder's prompt) and for one (a decoder's next token). Weights are random; only
their shapes matter. Times vary from run to run, so nothing but estimates may depend on them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantize_worker.contract import OperatorCost, Recipe, WorkerSpeed
from quantize_worker.errors import BuildFailed, ModelRefused
from quantize_worker.formats import FORMATS, Format
from quantize_worker.steps import candidates, statistics
from quantize_worker.steps.assemble import STATISTICS, assemble
from quantize_worker.steps.candidates import Blocks
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.histogram import Histogram
from quantize_worker.steps.layers import Layer, layers_of
from quantize_worker.steps.measure import CPU_PROVIDER
from quantize_worker.steps.opening import open_session, session_options
from quantize_worker.steps.sensitivity import Weighed

Array = NDArray[Any]
MAXIMUM_SHAPES = 12
MAXIMUM_ROWS = 512
MAXIMUM_WEIGHTS = 1 << 26  # of a layer that is timed
TIMED_S = 4.0  # for all of it, more or less
RUN_S = 0.02  # for one operator in one phase
RUNS = 9
SCRATCH = ".costs"
SPEED_SIDE = 384  # as the agent's micro-benchmark
SPEED_BYTES = 32 << 20
SPEED_RUNS = 5
OPSET = 21


def operator_costs(
    weighed: Sequence[Weighed], shapes: dict[str, tuple[int, ...]], folder: Path
) -> list[OperatorCost]:
    """Time the operators of a model's matrices and convolutions, those with most work first.

    Args:
        weighed: layers with their rows in a sample.
        shapes: of what meets each layer's weight in a sample, by tensor.
        folder: for scratch files.
    """
    costs: list[OperatorCost] = []
    ends = time.monotonic() + TIMED_S
    for one in _distinct(weighed):
        place = folder / SCRATCH
        try:
            bench = _Bench(one, shapes.get(one.layer.activation, ()), place)
            for name in one.layer.formats():
                if FORMATS[name].stored_only or time.monotonic() > ends:
                    continue
                costs.extend(bench.timed(name))
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return costs


def worker_speed() -> WorkerSpeed:
    """One thread of this machine, measured as the agent measures devices."""
    draw = np.random.default_rng(0)
    floats = draw.standard_normal((2, SPEED_SIDE, SPEED_SIDE), dtype=np.float32)
    eighths = draw.integers(0, 100, (2, SPEED_SIDE, SPEED_SIDE), dtype=np.uint8)
    types = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT)
    fp32 = _giga_per_s("MatMul", types, floats[0], floats[1])
    types = (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32)
    int8 = _giga_per_s("MatMulInteger", types, eighths[0], eighths[1].astype(np.int8))
    source = np.ones(SPEED_BYTES, np.uint8)
    target = np.empty_like(source)
    best_s = min(_seconds(lambda: np.copyto(target, source)) for _ in range(SPEED_RUNS))
    return WorkerSpeed(
        fp32_gflops=fp32, int8_gops=int8, memory_gb_s=round(2.0 * SPEED_BYTES / best_s / 1e9, 3)
    )


class _Bench:
    """A model of one layer, in a folder of its own."""

    def __init__(self, one: Weighed, shape: tuple[int, ...], folder: Path) -> None:
        self._layer, self._folder = one.layer, folder
        self._rows = max(1, round(one.rows))
        self._input = (
            shape if one.layer.operator == "Conv" else (min(self._rows, MAXIMUM_ROWS), one.layer.columns)
        )
        self._model, self._analysis = folder / "model.onnx", folder / "analysis"
        folder.mkdir(parents=True, exist_ok=True)
        self._model.write_bytes(_single(one.layer, self._input).SerializeToString())
        self._write_statistics()
        self._draw = np.random.default_rng(0)

    def timed(self, name: str) -> Iterator[OperatorCost]:
        """The layer in a format, for a sample's rows and, for matrices, for one."""
        session = self._session(name)
        if session is None:
            return
        rows = dict.fromkeys((self._input[0], 1)) if self._layer.is_matrix else {self._rows: None}
        for count in rows:
            shape = (count, self._layer.columns) if self._layer.is_matrix else self._input
            sample = {"x": self._draw.standard_normal(shape).astype(np.float32)}
            ms = _median_s(lambda sample=sample: session.run(None, sample)) * 1000.0  # type: ignore[misc]
            yield OperatorCost(
                operator=self._layer.operator,
                shape=[self._layer.columns, self._layer.outputs]
                if self._layer.is_matrix
                else list(self._layer.shape),
                format=name,
                rows=count,
                provider=CPU_PROVIDER,
                latency_ms=round(ms, 6),
            )

    def _session(self, name: str) -> Any:
        if name == "fp32":
            return open_session(self._model)
        layer = layers_of(Graph.read(self._model))[0]
        form = FORMATS[name]
        if form.block is not None:
            candidates.write(candidates.path_of(self._analysis, 0, name), _random(layer, form, self._draw))
        recipe = Recipe(
            precision=form.precision,
            accelerator="cpu",
            execution_provider=CPU_PROVIDER,
            emulated=False,
            layers={layer.name: name},
        )
        built = self._folder / "built"
        try:
            assemble(self._model, recipe, self._analysis, built)
            return open_session(built / "model.onnx")
        except (BuildFailed, ModelRefused):
            return None
        finally:
            shutil.rmtree(built, ignore_errors=True)

    def _write_statistics(self) -> None:
        """Ranges of what the layer will meet."""
        columns = self._input[1]
        seen = statistics.Activation(
            low=-4.0,
            high=4.0,
            column_low=np.full(columns, -4.0, np.float32),
            column_high=np.full(columns, 4.0, np.float32),
            squares=np.ones(columns),
            run_span=8.0,
            shape=self._input,
            histogram=Histogram(),
        )
        statistics.save(self._analysis / STATISTICS, {"x": seen})


def _distinct(weighed: Sequence[Weighed]) -> list[Weighed]:
    """One layer per operator and shape, those with most multiplications first."""
    found: dict[tuple[Any, ...], Weighed] = {}
    for one in weighed:
        layer = one.layer
        timed = layer.plain and (layer.is_matrix or layer.operator == "Conv")
        if timed and one.rows and layer.parameters <= MAXIMUM_WEIGHTS:
            found.setdefault((layer.operator, layer.shape, round(one.rows)), one)
    order = sorted(found.values(), key=lambda one: -one.layer.parameters * one.rows)
    return order[:MAXIMUM_SHAPES]


def _single(layer: Layer, shape: tuple[int, ...]) -> onnx.ModelProto:
    """A model of this layer alone, with random weights and without its bias."""
    weight = np.random.default_rng(1).standard_normal(layer.shape).astype(np.float32) / 16
    node = onnx.NodeProto()
    node.CopyFrom(layer.node)
    del node.input[:], node.output[:]
    node.input.extend(["x", "w"])
    node.output.extend(["y"])
    symbolic: list[Any] = ["n", *shape[1:]]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, symbolic)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _random(layer: Layer, form: Format, draw: np.random.Generator) -> Blocks:
    """Blocks of any values."""
    assert form.block is not None
    blocks = -(-layer.columns // form.block)
    values = draw.integers(0, 256, (layer.outputs, blocks, form.block * form.bits // 8), dtype=np.uint8)
    codes = draw.integers(1, 256, (layer.outputs, blocks), dtype=np.uint8)
    width = -(-blocks * form.bits // 8)
    zeros = None if form.symmetric else draw.integers(0, 256, (layer.outputs, width), dtype=np.uint8)
    scales = np.full((layer.outputs, 1), 1e-4, np.float32)
    return Blocks(values, codes, scales, zeros, form.bits, form.block, (layer.outputs, layer.columns))


def _giga_per_s(operator: str, types: tuple[int, int, int], left: Array, right: Array) -> float:
    values = [helper.make_tensor_value_info(n, t, ["m", "n"]) for n, t in zip("abc", types, strict=True)]
    values[1] = helper.make_tensor_value_info("b", types[1], ["n", "k"])
    values[2] = helper.make_tensor_value_info("c", types[2], ["m", "k"])
    graph = helper.make_graph([helper.make_node(operator, ["a", "b"], ["c"])], "gemm", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=[CPU_PROVIDER]
    )
    inputs = {"a": left, "b": right}
    session.run(None, inputs)
    best_s = min(_seconds(lambda: session.run(None, inputs)) for _ in range(SPEED_RUNS))
    return round(2.0 * SPEED_SIDE**3 / best_s / 1e9, 3)


def _median_s(action: Callable[[], object]) -> float:
    action()
    taken: list[float] = []
    while len(taken) < RUNS and (sum(taken) < RUN_S or len(taken) < 3):
        taken.append(_seconds(action))
    return float(np.median(taken))


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return max(time.perf_counter() - started, 1e-9)
