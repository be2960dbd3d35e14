"""Candidates: what is stored is what the runtime computes, and it comes back from its file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantize_worker.formats import FORMATS, Format
from quantize_worker.steps import moments as second_moments
from quantize_worker.steps.activation import MOST, Activation
from quantize_worker.steps.candidates import (
    Blocks,
    make,
    make_all,
    metrics_of,
    path_of,
    read,
    size_bytes,
    write,
)
from quantize_worker.steps.gptq import cost
from quantize_worker.steps.moments import Moments

BLOCK_FORMATS = [form for form in FORMATS.values() if form.block is not None]
INT4_FORMATS = [form for form in BLOCK_FORMATS if form.bits == 4]


def weight_of(rows: int, columns: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, (rows, columns)).astype(np.float32)


def activation_of(columns: int, folder: Path, seed: int = 5) -> Activation:
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((columns // 4, columns))
    rows = (generator.standard_normal((400, len(mixing))) @ mixing).astype(np.float32)
    rows += 0.1 * generator.standard_normal(rows.shape).astype(np.float32)
    stem = folder / "x"
    total = Moments(stem.with_name(f"x.{MOST}"), columns, 64)
    total.add(rows, 1 / len(rows))
    total.close()
    return Activation(squares=np.square(rows).mean(axis=0), stem=stem, shares={MOST: 1.0}, relevant=400)


def run(blocks: Blocks, operator: str, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime makes of the blocks, with folded scales as builds write them."""
    rows, columns = blocks.shape
    values = blocks.values if operator == "MatMulNBits" else blocks.values.reshape(rows, -1)
    constants = {"values": values, "codes": blocks.scale_codes, "row_scales": blocks.row_scales}
    inputs = ["x", "values"] if operator == "MatMulNBits" else ["values", "x"]
    inputs.append("scales")
    if blocks.zero_points is not None:
        constants["zeros"] = blocks.zero_points
        inputs.append("zeros")
    attributes = (
        {"K": columns, "N": rows, "accuracy_level": 1}
        if operator == "MatMulNBits"
        else {"gather_axis": 0, "quantize_axis": 1}
    )
    nodes = [
        helper.make_node("Cast", ["codes"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "row_scales"], ["scales"]),
        helper.make_node(
            operator,
            inputs,
            ["y"],
            domain="com.microsoft",
            bits=blocks.bits,
            block_size=blocks.block,
            **attributes,
        ),
    ]
    kind = TensorProto.FLOAT if x.dtype == np.float32 else TensorProto.INT64
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("form", BLOCK_FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("columns", [128, 200])
def test_the_runtime_multiplies_by_what_is_dequantized(form: Format, columns: int) -> None:
    blocks = make(weight_of(48, columns), form, None)
    x = np.random.default_rng(1).standard_normal((5, columns)).astype(np.float32)
    expected = x @ blocks.dequantized().T
    np.testing.assert_allclose(run(blocks, "MatMulNBits", x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", BLOCK_FORMATS, ids=lambda form: form.name)
def test_the_runtime_looks_up_what_is_dequantized(form: Format) -> None:
    blocks = make(weight_of(70, 384), form, None)
    chosen = np.array([[0, 69], [3, 3]], np.int64)
    np.testing.assert_allclose(
        run(blocks, "GatherBlockQuantized", chosen), blocks.dequantized()[chosen], rtol=1e-6
    )


@pytest.mark.parametrize("form", BLOCK_FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("columns", [96, 130])
def test_blocks_come_back_from_their_file(form: Format, columns: int, tmp_path: Path) -> None:
    blocks = make(weight_of(9, columns), form, None)
    path = path_of(tmp_path, 7, form.name)
    write(path, blocks)
    found = read(path)
    np.testing.assert_array_equal(found.dequantized(), blocks.dequantized())
    assert (found.bits, found.block, found.shape) == (form.bits, form.block, (9, columns))
    assert (found.zero_points is None) == form.symmetric
    assert path.name == f"0007.{form.name}.npz"
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("form", BLOCK_FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("columns", [128, 130])
def test_the_size_is_known_beforehand(form: Format, columns: int) -> None:
    assert form.block is not None
    expected = size_bytes(11, columns, bits=form.bits, block=form.block, symmetric=form.symmetric)
    assert make(weight_of(11, columns), form, None).size_bytes == expected


@pytest.mark.parametrize("columns", [128, 200])
def test_no_format_is_worse_than_plain_rounding_where_moments_are_known(columns: int, tmp_path: Path) -> None:
    weight, activation = weight_of(40, columns), activation_of(columns, tmp_path)
    metrics = metrics_of(activation, columns)
    assert metrics is not None
    aware = make_all(weight, INT4_FORMATS, metrics)
    plain = make_all(weight, INT4_FORMATS, None)
    for form, one, other in zip(INT4_FORMATS, aware, plain, strict=True):
        errors = [
            cost(np.ascontiguousarray((blocks.dequantized() - weight).T), metrics[0].moments).sum()
            for blocks in (one, other)
        ]
        assert errors[0] < 0.8 * errors[1], form.name


def test_smaller_blocks_and_zero_points_lower_the_error(tmp_path: Path) -> None:
    weight, activation = weight_of(64, 256), activation_of(256, tmp_path)
    metrics = metrics_of(activation, 256)
    assert metrics is not None
    errors = {}
    for form, blocks in zip(INT4_FORMATS, make_all(weight, INT4_FORMATS, metrics), strict=True):
        change = np.ascontiguousarray((blocks.dequantized() - weight).T)
        errors[form.name] = cost(change, metrics[0].moments).sum()
    assert errors["int4-b16"] < errors["int4-b32"] < errors["int4-b128"]
    for block in (16, 32, 128):
        assert errors[f"int4-b{block}"] < errors[f"int4-b{block}-sym"]


def test_wide_layers_have_moments_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_moments, "MAXIMUM_COLUMNS", 128)
    activation = activation_of(300, tmp_path)
    weight = weight_of(32, 300)
    found = activation.moments()
    assert found is not None
    assert [len(block) for block in found] == [128, 128, 44]
    form = FORMATS["int4-b32"]
    aware, plain = make(weight, form, activation), make_all(weight, [form], None)[0]
    for span, block in zip(second_moments.spans(300), found, strict=True):
        errors = [
            cost(np.ascontiguousarray((one.dequantized() - weight).T[span]), np.asarray(block)).sum()
            for one in (aware, plain)
        ]
        assert errors[0] < errors[1]


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    weight, activation = weight_of(64, 128), activation_of(128, tmp_path)
    for run_number in (1, 2):
        write(tmp_path / f"{run_number}.npz", make(weight.copy(), FORMATS["int4-b32"], activation))
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_rows_are_a_part_of_the_whole() -> None:
    blocks = make(weight_of(20, 64), FORMATS["int4-b16"], None)
    chosen = np.array([3, 4, 19])
    np.testing.assert_array_equal(blocks.rows(chosen).dequantized(), blocks.dequantized()[chosen])
    np.testing.assert_array_equal(blocks.rows(slice(5, 9)).dequantized(), blocks.dequantized()[5:9])


def test_a_weight_that_is_no_array_in_memory_is_read_in_pieces(tmp_path: Path) -> None:
    weight = weight_of(50, 64)
    np.save(tmp_path / "w.npy", weight.T)  # as a MatMul stores it
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r").T
    form = FORMATS["int4-b32"]
    np.testing.assert_array_equal(make(mapped, form, None).values, make(weight, form, None).values)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write(path, make(weight_of(4, 32), FORMATS["int4-b32"], None))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(zipfile.BadZipFile):
        read(path)
