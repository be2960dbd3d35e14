"""What benchmarks measure with: likeness, ranks, shares of multiplications, memory and processor time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.anonymous_memory import AnonymousMemory
from benchmarks.environments import prepare
from benchmarks.errors import BenchmarkFailed
from benchmarks.generated import DecoderShape, write_decoder, write_small_network
from benchmarks.multiplies import shares_by_bits
from benchmarks.ranks import rank_correlation
from benchmarks.reference import samples
from benchmarks.similarity import similarity
from benchmarks.spent import spend
from benchmarks.spoiling import swap_scales, zero_a_layer

MIB = 2**20


def test_vectors_that_only_differ_in_length_are_alike() -> None:
    vectors = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    found = similarity(vectors, 3 * vectors)
    assert found.loss == pytest.approx(0, abs=1e-12)
    assert found.top1 == 1.0


def test_a_vector_that_is_not_finite_is_like_nothing() -> None:
    vectors = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    spoilt = vectors.copy()
    spoilt[1] = np.nan
    assert similarity(vectors, spoilt).cosine == pytest.approx(0.75)


def test_top1_asks_for_the_nearest_other_vector() -> None:
    exact = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    moved = exact[[0, 2, 1, 3]]  # the second and third have changed places: all neighbours are others
    assert similarity(exact, moved).top1 == 0.0


def test_ranks_are_what_correlates() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 1, 2, 2], [1, 1, 2, 2]) == pytest.approx(1.0)


def quantized_model(path: Path) -> None:
    """x (2, 4) through a MatMul of rounded operands (4 to 8), then one in floating point (8 to 2)."""
    weights = {
        "scale": np.float32(0.1),
        "zero": np.uint8(128),
        "w8": np.ones((4, 8), np.int8),
        "w_scale": np.float32(0.01),
        "w": np.ones((8, 2), np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xr"]),
        helper.make_node("DequantizeLinear", ["w8", "w_scale"], ["wr"]),
        helper.make_node("MatMul", ["xr", "wr"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def test_multiplications_are_counted_by_the_wider_operand(tmp_path: Path) -> None:
    quantized_model(tmp_path / "model.onnx")
    found = shares_by_bits(tmp_path / "model.onnx", {"x": np.ones((2, 4), np.float32)})
    assert found == {8: pytest.approx(64 / 96), 32: pytest.approx(32 / 96)}


def test_processor_time_and_memory_of_what_a_command_starts_are_its_own(tmp_path: Path) -> None:
    child = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    parent = (
        "import subprocess, sys, time; held = bytearray(200 << 20); time.sleep(0.6);"
        f"sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)"
    )
    spent = spend([sys.executable, "-c", parent], folder=tmp_path)
    assert spent.code == 0
    assert spent.cpu_s >= 0.5
    assert spent.peak_bytes > 200 * MIB


def test_a_command_that_does_not_end_is_ended(tmp_path: Path) -> None:
    spent = spend([sys.executable, "-c", "import time; time.sleep(60)"], folder=tmp_path, timeout_s=1)
    assert spent.code == -15


def test_the_words_of_a_command_that_fails_are_kept(tmp_path: Path) -> None:
    spent = spend([sys.executable, "-c", "raise SystemExit('no luck')"], folder=tmp_path)
    assert (spent.code, spent.output_tail.strip()) == (1, "no luck")


MAPPING = """
import mmap, sys, time
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    total = sum(mapped[place] for place in range(0, len(mapped), 4096))
    held = bytearray(64 << 20)
    time.sleep(1.0)
"""


def test_mapped_pages_are_no_anonymous_memory(tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "weights"
    path.write_bytes(b"\1" * (256 * MIB))
    process = subprocess.Popen([sys.executable, "-c", MAPPING, str(path)])
    with AnonymousMemory(process.pid) as memory:
        assert process.wait(60) == 0
    assert 64 * MIB < memory.peak_bytes < 200 * MIB


def test_an_environment_that_cannot_be_made_is_told_of_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".venvs").write_text("in the way of the folder")
    prepared = prepare(tmp_path, {"a": (("x==1",),), "b": ()})
    assert prepared.pythons == {}
    assert set(prepared.failures) == {"a", "b"}
    assert "could not be made" in capsys.readouterr().out


def test_environments_must_be_pinned(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkFailed, match="not pinned"):
        prepare(tmp_path, {"a": (("x==1",), ("y",))})


def test_a_generated_decoder_runs_and_keeps_its_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    import onnxruntime as ort

    shape = DecoderShape(hidden=32, wide=64, heads=4, layers=2, vocabulary=50, sequence=6)
    size = write_decoder(tmp_path, shape)
    assert size == (tmp_path / "model.onnx.data").stat().st_size
    assert (tmp_path / "model.onnx").stat().st_size < 20_000
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    logits = session.run(None, samples(tmp_path / "evaluation.npz")[0])[0]
    assert logits.shape == (1, 50)
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1


def test_small_networks_of_different_seeds_differ(tmp_path: Path) -> None:
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        write_small_network(tmp_path / name, seed=seed, width=16, depth=1, samples=4)
        contents.append((tmp_path / name / "model.onnx").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def blocks_model(folder: Path) -> None:
    """One MatMulNBits, 64 to 8, with scales in two parts as builds have them."""
    generator = np.random.default_rng(0)
    weights = {
        "values": generator.integers(0, 256, (8, 2, 16)).astype(np.uint8),
        "codes": np.full((8, 2), 100, np.uint8),
        "rows": np.linspace(0.001, 0.01, 8, dtype=np.float32)[:, None],
    }
    nodes = [
        helper.make_node("Cast", ["codes"], ["codes_f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["codes_f", "rows"], ["scales"]),
        helper.make_node(
            "MatMulNBits",
            ["x", "values", "scales"],
            ["y"],
            domain="com.microsoft",
            K=64,
            N=8,
            bits=4,
            block_size=32,
        ),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    folder.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), str(folder / "model.onnx"))


def test_spoiling_changes_what_a_build_gives(tmp_path: Path) -> None:
    import onnxruntime as ort

    blocks_model(tmp_path / "good")
    zero_a_layer(tmp_path / "good", tmp_path / "zeroed", 0)
    swap_scales(tmp_path / "good", tmp_path / "swapped", 0)
    x = np.ones((1, 64), np.float32)
    outputs = {
        name: ort.InferenceSession(str(tmp_path / name / "model.onnx")).run(None, {"x": x})[0]
        for name in ("good", "zeroed", "swapped")
    }
    assert not outputs["zeroed"].any()
    assert outputs["good"].any()
    assert not np.allclose(outputs["good"], outputs["swapped"])
