"""Sample sets: what is read, what is refused and with which code, what is generated, what is kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from quantize_worker.contract import TensorSpec
from quantize_worker.errors import ModelRefused
from quantize_worker.steps.axes import rows_per_run, sizes
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.inputs import index_bounds, length_inputs
from quantize_worker.steps.samples import (
    SampleSet,
    calibration_and_gate,
    read_set,
    split,
    synthetic_set,
)
from tests import exports

Array = NDArray[Any]


def spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=list(shape))


CLASSIFIER = [spec("x", "float32", "n", 4)]
RECURRENT = [spec("x", "float32", "batch", 4), spec("state", "float32", 2, "batch", 8), spec("rate", "int64")]


def saved(path: Path, **arrays: Array) -> Path:
    np.savez(path / "set.npz", **arrays)  # type: ignore[arg-type]
    return path / "set.npz"


def code_of(path: Path, specs: list[TensorSpec], **arrays: Array) -> str:
    with pytest.raises(ModelRefused) as caught:
        read_set(saved(path, **arrays), specs, kind="evaluation")
    assert "evaluation" in caught.value.message
    return caught.value.code


@pytest.mark.parametrize(
    ("specs", "rows"),
    [
        (CLASSIFIER, 1),
        ([spec("x", "float32", 4, 3)], 4),
        ([spec("x", "float32", 1, 3, "height", "width")], 1),
        (RECURRENT, 0),
        ([spec("x", "float32", "time", "batch", 3)], 0),
        ([spec("x", "float32", "batch", "n", 3), spec("mask", "bool", "batch", "n")], 1),
        ([spec("a", "float32", 2, 3), spec("b", "float32", 5, 3)], 0),
        ([spec("a", "float32", "n", 3), spec("b", "float32", 0)], 0),
    ],
)
def test_the_axis_of_samples(specs: list[TensorSpec], rows: int) -> None:
    assert rows_per_run(specs) == rows


def test_sizes_add_up() -> None:
    names = [
        "batch_size",
        "sequence_length",
        "past_sequence_length",
        "past_sequence_length + sequence_length",
    ]
    specs = [spec("x", "int64", *names, "past_sequence_length + 1", "total_sequence_length", "seq / 2")]
    found = sizes(specs, 16, 8)
    assert [found[name] for name in names] == [1, 16, 8, 24]
    assert found["past_sequence_length + 1"] == 9
    assert found["total_sequence_length"] == 24
    assert found["seq / 2"] == 16
    assert sizes(specs, 16, 0)["past_sequence_length"] == 0


def test_rows_are_samples(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = read_set(saved(tmp_path, x=x, labels=np.array([0, 1, 2])), CLASSIFIER, kind="evaluation")
    assert len(found) == 3
    np.testing.assert_array_equal(found.sample(1)["x"], x[1:2])
    np.testing.assert_array_equal(found.batch(2)["x"], x[:2])
    chosen = found.chosen([2, 0])
    np.testing.assert_array_equal(chosen.inputs["x"], x[[2, 0]])
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [2, 0]


def test_where_axis_0_is_no_batch_samples_are_stacked(tmp_path: Path) -> None:
    arrays: dict[str, Array] = {
        "x": np.zeros((5, 1, 4), np.float32),
        "state": np.ones((5, 2, 1, 8), np.float32),
        "rate": np.arange(5),
    }
    found = read_set(saved(tmp_path, **arrays), RECURRENT, kind="evaluation")
    assert (len(found), found.stacked) == (5, True)
    sample = found.sample(3)
    assert {name: value.shape for name, value in sample.items()} == {
        "x": (1, 4),
        "state": (2, 1, 8),
        "rate": (),
    }
    assert isinstance(sample["rate"], np.ndarray)
    assert sample["rate"] == 3
    assert found.batch(4)["rate"] == 0
    assert [int(s["rate"]) for s in found.chosen([4, 1]).samples()] == [4, 1]
    assert (
        code_of(tmp_path, RECURRENT, **arrays | {"rate": np.zeros((5, 1), np.int64)}) == "wrong_sample_shape"
    )
    assert code_of(tmp_path, RECURRENT, **arrays | {"rate": np.arange(4)}) == "wrong_sample_shape"


def test_any_model_s_samples_may_be_stacked(tmp_path: Path) -> None:
    found = read_set(saved(tmp_path, x=np.zeros((3, 2, 4), np.float32)), CLASSIFIER, kind="evaluation")
    assert found.stacked
    assert found.sample(0)["x"].shape == (2, 4)


@pytest.mark.parametrize(
    "labels",
    [np.arange(2), np.arange(4), np.zeros(3, np.float32), np.array(3), np.zeros((2, 3), np.int64)],
    ids=["short", "long", "floats", "scalar", "wrong way round"],
)
def test_labels_that_do_not_fit(labels: Array, tmp_path: Path) -> None:
    assert code_of(tmp_path, CLASSIFIER, x=np.zeros((3, 4), np.float32), labels=labels) == "wrong_labels"


@pytest.mark.parametrize(("shape", "kept"), [((3,), (3,)), ((3, 1), (3,)), ((3, 7), (3, 7))])
def test_labels_that_fit(shape: tuple[int, ...], kept: tuple[int, ...], tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((3, 4), np.float32), labels=np.zeros(shape, np.int32))
    labels = read_set(path, CLASSIFIER, kind="evaluation").labels
    assert labels is not None
    assert labels.shape == kept


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"y": np.zeros((3, 4), np.float32)}, "wrong_input_names"),
        ({"x": np.zeros((3, 5), np.float32)}, "wrong_sample_shape"),
        ({"x": np.zeros((0, 4), np.float32)}, "wrong_sample_shape"),
        ({"x": np.full((3, 4), np.nan, np.float32)}, "invalid_samples"),
        ({"x": np.array([["a"] * 4] * 3)}, "invalid_samples"),
    ],
)
def test_sets_that_do_not_fit(arrays: dict[str, Array], code: str, tmp_path: Path) -> None:
    assert code_of(tmp_path, CLASSIFIER, **arrays) == code


def numbered(count: int, start: int = 0) -> SampleSet:
    values = np.arange(start, start + count, dtype=np.float32)[:, None]
    return SampleSet({"x": values}, np.arange(start, start + count), 1)


def members(samples: SampleSet) -> list[int]:
    return [int(value) for value in samples.inputs["x"][:, 0]]


@pytest.mark.parametrize("count", [2, 3, 7, 100, 1000])
def test_a_split_has_no_sample_in_common(count: int) -> None:
    calibration, gate = split(numbered(count))
    assert not set(members(calibration)) & set(members(gate))
    assert sorted(members(calibration) + members(gate)) == list(range(count))
    assert 1 <= len(calibration) <= min(128, max(1, count // 2))
    assert calibration.labels is not None
    assert calibration.labels.tolist() == members(calibration)
    assert members(split(numbered(count))[0]) == members(calibration)


def test_equal_samples_go_to_one_side() -> None:
    everything = numbered(40)
    everything.inputs["x"][:] = everything.inputs["x"] % 5
    calibration, gate = split(everything)
    assert not set(members(calibration)) & set(members(gate))


def test_a_single_sample_serves_for_both() -> None:
    calibration, gate = split(numbered(1))
    assert members(calibration) == members(gate) == [0]


def test_samples_that_judge_do_not_calibrate() -> None:
    calibration, gate = calibration_and_gate(numbered(10), numbered(10, start=6))
    assert members(calibration) == list(range(10, 16))
    assert members(gate) == list(range(10))


def test_the_same_set_for_both_is_split() -> None:
    calibration, gate = calibration_and_gate(numbered(12), numbered(12))
    assert calibration.labels is not None
    assert sorted(members(calibration) + members(gate)) == list(range(12))
    assert not set(members(calibration)) & set(members(gate))


def test_sets_apart_are_left_alone() -> None:
    given = numbered(4, start=100)
    calibration, gate = calibration_and_gate(numbered(10), given)
    assert calibration is given
    assert len(gate) == 10


def test_indices_are_followed_through_casts_reshapes_and_sums() -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["c"], to=exports.FLOAT),
        helper.make_node("Unsqueeze", ["c", "axis"], ["u"]),
        helper.make_node("Reshape", ["u", "shape"], ["r"]),
        helper.make_node("Cast", ["r"], ["i"], to=exports.INT64),
        helper.make_node("Add", ["i", "two"], ["shifted"]),
        helper.make_node("Gather", ["table", "shifted"], ["a"]),
        helper.make_node("Gather", ["wide", "ids"], ["b"], axis=1),
        helper.make_node("Where", ["flag", "kind", "kind"], ["k"]),
        helper.make_node("OneHot", ["k", "depth", "onoff"], ["c1"]),
    ]
    weights = {
        "table": np.zeros((40, 3), np.float32),
        "wide": np.zeros((3, 39), np.float32),
        "two": np.int64(2),
        "axis": np.array([0]),
        "shape": np.array([-1]),
        "depth": np.int64(7),
        "onoff": np.array([0.0, 1.0], np.float32),
    }
    inputs = [exports.value(n, exports.INT64, ["n"]) for n in ("ids", "kind", "mask")]
    inputs.append(exports.value("flag", exports.BOOL, ["n"]))
    graph = Graph(exports.model(nodes, inputs, [exports.value("a", exports.FLOAT, None)], weights))
    specs = [
        spec("ids", "int64", "n"),
        spec("kind", "int64", "n"),
        spec("mask", "int64", "n"),
        spec("flag", "bool", "n"),
    ]
    assert index_bounds(graph, specs) == {"ids": 38, "kind": 7}


def test_lengths_of_sequences_are_known() -> None:
    specs = [
        spec("tokens", "int32", "time", "batch"),
        spec("lengths", "int64", "batch"),
        spec("state", "float32", 2, "batch", 32),
    ]
    graph = Graph(exports.lstm())
    assert length_inputs(graph, specs) == {"lengths"}
    made = synthetic_set(specs, bounds=index_bounds(graph, specs), lengths=length_inputs(graph, specs))
    assert made.sample(0)["lengths"].tolist() == [16]
    assert 1 < made.inputs["tokens"].max() < 50


def test_masks_let_everything_pass_and_switches_go_both_ways() -> None:
    specs = [
        spec("x", "float32", "batch", 4),
        spec("attention_mask", "float32", "batch", 4),
        spec("pad", "bool", "batch", 4),
        spec("use_cache", "bool", 1),
    ]
    made = synthetic_set(specs, bounds={})
    assert made.inputs["attention_mask"].min() == 1
    assert made.inputs["pad"].all()
    assert {bool(sample["use_cache"][0]) for sample in made.samples()} == {True, False}
