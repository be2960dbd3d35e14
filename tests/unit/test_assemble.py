"""Recipes turned into choices, and the parts that rewriters are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantize_worker.contract import Recipe
from quantize_worker.errors import BuildFailed
from quantize_worker.formats import FORMATS
from quantize_worker.steps.assemble import choices_of, is_old
from quantize_worker.steps.candidates import make
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layers import layers_of
from quantize_worker.steps.rewrite import scratch as scratch_module
from quantize_worker.steps.rewrite.channels import round_channels
from quantize_worker.steps.rewrite.making import joined
from quantize_worker.steps.rewrite.scratch import Scratch, parts
from quantize_worker.steps.rewrite.smoothing import Smoothing, choose
from quantize_worker.steps.rewrite.workplace import Workplace


def network() -> Graph:
    """A table, a matrix and a convolution of a size that pays, and a matrix that is too small."""
    shapes = {"table": (100, 64), "w": (64, 32), "k": (16, 8, 3, 3), "tiny": (4, 4)}
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["mixed"]),
        helper.make_node("Conv", ["picture", "k"], ["seen"]),
        helper.make_node("MatMul", ["little", "tiny"], ["less"]),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["n", 8, 9, 9]),
        helper.make_tensor_value_info("little", TensorProto.FLOAT, ["n", 4]),
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("mixed", "seen", "less")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def recipe(precision: str, layers: dict[str, str] | None = None, block: int | None = None) -> Recipe:
    return Recipe(
        precision=precision,  # type: ignore[arg-type]
        accelerator="cpu",
        execution_provider="CPUExecutionProvider",
        emulated=False,
        block_size=block,
        layers=layers or {},
    )


def chosen(given: Recipe) -> dict[str, str]:
    return {choice.layer.name: choice.format.name for choice in choices_of(layers_of(network()), given)}


def test_a_recipe_names_what_is_not_fp32() -> None:
    layers = {"mixed": "int4-b16", "seen": "int8-stored"}
    assert chosen(recipe("int4", layers)) == layers


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", {}),
        ("fp16", {"rows": "fp16-stored", "mixed": "fp16-stored", "seen": "fp16-stored"}),
        ("int4", {"rows": "int4-b32", "mixed": "int4-b32"}),
        ("int8-dynamic", {"mixed": "int8-dynamic"}),
        ("int8-qdq", {"mixed": "int8-qdq", "seen": "int8-qdq"}),
    ],
)
def test_a_precision_alone_is_every_layer_that_can(precision: str, expected: dict[str, str]) -> None:
    found = chosen(recipe(precision))
    if precision.startswith("int8"):
        found.pop("rows", None)  # a table in 8 bits, in blocks that fit
    assert found == expected


def test_old_recipes_name_precisions_of_layers_that_differ() -> None:
    assert chosen(recipe("int4", {"rows": "fp32"}, block=32)) == {"mixed": "int4-b32"}
    assert chosen(recipe("int8-qdq", {"seen": "fp32"})).keys() >= {"mixed"}
    assert is_old(recipe("int4", {"mixed": "int4"}))
    assert not is_old(recipe("int4", {"mixed": "int4-b32", "seen": "fp32"}))


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (recipe("int4", {"gone": "int4-b32"}), "unknown_layer"),
        (recipe("int4", {"seen": "int4-b32"}), "unsupported_layer"),
        (recipe("int4", {"mixed": "int3-b7"}), "unsupported_layer"),
    ],
)
def test_a_recipe_that_does_not_fit_is_said(given: Recipe, code: str) -> None:
    with pytest.raises(BuildFailed) as failure:
        chosen(given)
    assert failure.value.code == code


def test_nothing_to_quantize_is_said() -> None:
    with pytest.raises(BuildFailed) as failure:
        choices_of([], recipe("int4"))
    assert failure.value.code == "nothing_to_quantize"
    assert choices_of([], recipe("fp32")) == []


def test_large_arrays_wait_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_module, "SEGMENT_BYTES", 4 << 20)
    generator = np.random.default_rng(0)
    given = [generator.integers(0, 255, (size, 1 << 10), np.uint8) for size in (3, 1500, 9000, 2000, 1024)]
    with Scratch(tmp_path) as scratch:
        kept = [scratch.keep(value) for value in given]
        assert not list(tmp_path.iterdir())  # nothing is left, however the process ends
    assert all(np.array_equal(left, right) for left, right in zip(given, kept, strict=True))
    assert kept[0] is given[0]
    kept[2][:] = 7
    assert np.array_equal(kept[1], given[1])
    assert np.array_equal(kept[3], given[3])


def test_parts_cover_an_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_module, "BLOCK_BYTES", 1 << 10)
    value = np.zeros((10, 100), np.float32)
    found = list(parts(value))
    assert [part.start for part in found] == list(range(0, 10, 2))
    assert found[-1].stop == 10
    assert len(list(parts(value, axis=1))) == 4


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_channels_are_rounded_in_blocks_as_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: tuple[int, ...]
) -> None:
    value = np.random.default_rng(1).standard_normal((24, 18, 5)).astype(np.float32)
    with Scratch(tmp_path) as scratch:
        whole = round_channels(value, axes, scratch)
        monkeypatch.setattr(scratch_module, "BLOCK_BYTES", 1 << 10)
        pieces = round_channels(value, axes, scratch)
        assert np.array_equal(whole.values, pieces.values)
        assert np.array_equal(whole.scales, pieces.scales)
        assert (
            np.abs(whole.values.astype(np.float32) * whole.scales - value).max()
            <= whole.scales.max() / 2 + 1e-6
        )
        if axes == (0,):
            scales = np.abs(value).max(axis=(1, 2), keepdims=True) / np.float32(127)
            assert np.array_equal(whole.scales, scales)
            assert np.array_equal(whole.values, np.rint(value / scales))


def test_rows_made_apart_are_the_rows_of_the_whole(tmp_path: Path) -> None:
    value = np.random.default_rng(2).standard_normal((40, 70)).astype(np.float32)
    form = FORMATS["int8-b16"]
    whole = make(value, form, None)
    with Scratch(tmp_path) as scratch:
        place = Workplace(network(), scratch)
        sections = [slice(0, 16), slice(16, 32), slice(32, 40)]
        found = joined(place, 40, sections, lambda part: make(value[part], form, None))
    assert np.array_equal(found.dequantized(), whole.dequantized())
    assert found.shape == whole.shape


@dataclass
class Seen:
    """What calibration saw of rows (n, columns)."""

    rows: np.ndarray

    @property
    def low(self) -> float:
        return min(0.0, float(self.rows.min()))

    @property
    def high(self) -> float:
        return max(0.0, float(self.rows.max()))

    @property
    def column_low(self) -> np.ndarray:
        return self.rows.min(axis=0)

    @property
    def column_high(self) -> np.ndarray:
        return self.rows.max(axis=0)

    padded_low = column_low
    padded_high = column_high

    def mean_squares(self) -> np.ndarray:
        return np.square(self.rows).mean(axis=0, dtype=np.float64)


def rounded_error(rows: np.ndarray, weight: np.ndarray, smoothing: Smoothing, levels: int) -> float:
    """Mean squared error of the product in integers."""
    factors = np.ones(rows.shape[1]) if smoothing.factors is None else smoothing.factors
    step = (smoothing.high - smoothing.low) / (levels - 1)
    x = np.clip(np.rint(rows / factors / step), smoothing.low // step, smoothing.high // step + 1) * step
    scaled = weight * factors
    steps = np.abs(scaled).max(axis=1, keepdims=True) / 127
    return float(np.square(x @ (np.rint(scaled / steps) * steps).T - rows @ weight.T).mean())


@pytest.mark.parametrize("levels", [256, 65536])
def test_smoothing_lowers_the_error_where_columns_stick_out(levels: int) -> None:
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((500, 64))
    rows[:, [5, 17]] *= 40.0
    weight = (generator.standard_normal((48, 64)) / 8).astype(np.float32)
    seen = Seen(rows.astype(np.float32))
    smoothing = choose([weight], seen, levels=levels)
    plain = Smoothing(None, seen.low, seen.high)
    gain = rounded_error(rows, weight, plain, levels) / rounded_error(rows, weight, smoothing, levels)
    assert smoothing.factors is not None
    assert gain > (10 if levels == 256 else 1)


def test_even_columns_stay_as_they_are() -> None:
    generator = np.random.default_rng(4)
    seen = Seen(generator.uniform(-1, 1, (2000, 64)).astype(np.float32))
    weight = generator.uniform(-1, 1, (48, 64)).astype(np.float32)
    assert choose([weight], seen, levels=256) == Smoothing(None, seen.low, seen.high)


def test_empty_columns_do_no_harm() -> None:
    rows = np.zeros((10, 8), np.float32)
    rows[:, 2] = 50.0
    smoothing = choose([np.zeros((4, 8), np.float32)], Seen(rows), levels=256)
    assert np.isfinite([smoothing.low, smoothing.high]).all()
    assert smoothing.factors is None or np.isfinite(smoothing.factors).all()
