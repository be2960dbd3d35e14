"""The lazy graph: what it reads, what it writes, and what it leaves in files."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantize_worker.errors import BuildFailed
from quantize_worker.steps import datafile, package, skeleton, tensors
from quantize_worker.steps.graph import Graph

Array = NDArray[Any]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def value_info(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def chain(count: int = 1, width: int = 32) -> onnx.ModelProto:
    """``count`` products and additions of small constants, one after the other."""
    nodes, weights = [], []
    for index in range(count):
        nodes += [
            helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"m{index}"], name=f"mul{index}"),
            helper.make_node("Add", [f"m{index}", f"b{index}"], [f"x{index + 1}"], name=f"add{index}"),
        ]
        weights += [
            numpy_helper.from_array(values(width, width, seed=index), f"w{index}"),
            numpy_helper.from_array(values(width, seed=index), f"b{index}"),
        ]
    inputs, outputs = [value_info("x0", FLOAT, ["n", width])], [value_info(f"x{count}", FLOAT, ["n", width])]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "source.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def answers(path: Path, **inputs: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    path = saved(chain(2, width=160), tmp_path)
    graph = Graph.read(path)
    references = [t for t in graph.model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert [t.name for t in references] == ["w0", "w1"]
    assert all(not t.raw_data for t in references)
    np.testing.assert_array_equal(graph.constant("w1"), values(160, 160, seed=1))
    np.testing.assert_array_equal(graph.constant("b1"), values(160, seed=1))
    assert graph.shape("w0") == (160, 160)
    assert graph.parameters() == 2 * (160 * 160 + 160)
    assert graph.weight_bytes() == 4 * graph.parameters()


def test_a_skeleton_is_the_model_less_its_weights(tmp_path: Path) -> None:
    model = chain(2, width=160)
    model.metadata_props.add(key="k", value="v")
    read = skeleton.read_skeleton(saved(model, tmp_path))
    for made, expected in zip(read.graph.initializer, model.graph.initializer, strict=True):
        assert (made.name, made.dims) == (expected.name, expected.dims)
    del read.graph.initializer[:], model.graph.initializer[:]
    assert read == model


@pytest.mark.parametrize("name", ["w0", "b0"])
def test_constants_are_read_only(name: str, tmp_path: Path) -> None:
    value = Graph.read(saved(chain(1, width=160), tmp_path)).constant(name)
    assert value is not None
    with pytest.raises(ValueError, match="read-only"):
        value[0] = 1.0


def test_what_is_written_computes_the_same(tmp_path: Path) -> None:
    path = saved(chain(3, width=160), tmp_path)
    starts = Graph.read(path).write(tmp_path / "out")
    x = values(2, 160)
    np.testing.assert_array_equal(answers(path, x0=x)[0], answers(tmp_path / "out" / "model.onnx", x0=x)[0])
    assert starts[-1] == (tmp_path / "out" / "model.data").stat().st_size
    assert all(start % datafile.PAGE_BYTES == 0 for start in starts[:-1])
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))


def test_equal_graphs_give_equal_bytes_and_can_be_written_over_themselves(tmp_path: Path) -> None:
    path = saved(chain(2, width=160), tmp_path)
    Graph.read(path).write(tmp_path / "a")
    before = [(tmp_path / "a" / name).read_bytes() for name in ("model.onnx", "model.data")]
    Graph.read(tmp_path / "a" / "model.onnx").write(tmp_path / "a")
    assert [(tmp_path / "a" / name).read_bytes() for name in ("model.onnx", "model.data")] == before
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["model.data", "model.onnx"]


def test_dead_initializers_are_left_out(tmp_path: Path) -> None:
    graph = Graph.read(saved(chain(2, width=160), tmp_path))
    graph.add_constant("spare", values(64, 64))
    last = graph.nodes[-2]
    graph.replace(last, [graph.node("Identity", [last.input[0]], list(last.output))])
    graph.write(tmp_path / "out")
    names = {t.name for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert names == {"w0", "b0", "b1"}


def test_new_constants_are_kept_without_a_copy_and_written(tmp_path: Path) -> None:
    graph = Graph.read(saved(chain(1, width=64), tmp_path))
    weight = values(64, 64, seed=9).T  # not contiguous
    name = graph.add_constant("w0", weight)
    assert name != "w0"
    assert np.shares_memory(graph.constant(name), weight)
    old = graph.nodes[0]
    graph.replace(old, [graph.node("MatMul", ["x0", name], ["m0"])])
    graph.write(tmp_path / "out")
    x = values(3, 64)
    expected = x @ weight + values(64)
    np.testing.assert_allclose(
        answers(tmp_path / "out" / "model.onnx", x0=x)[0], expected, rtol=1e-4, atol=1e-4
    )


def test_scalars_keep_their_rank(tmp_path: Path) -> None:
    graph = Graph(chain())
    name = graph.add_constant("half", np.float32(0.5))
    assert graph.shape(name) == ()
    old = graph.nodes[-1]
    graph.replace(old, [graph.node("Mul", [old.input[0], name], list(old.output))])
    (half,) = [t for t in graph.finish().graph.initializer if t.name == name]
    assert list(half.dims) == []


def test_a_replacement_may_keep_the_node_and_be_replaced_again() -> None:
    graph = Graph(chain(2))
    old = graph.nodes[0]
    before = graph.node("Relu", ["x0"], ["r"])
    graph.replace(old, [before, old])
    graph.replace(before, [graph.node("Abs", ["x0"], ["r"])])
    graph.replace(old, [])
    assert [node.op_type for node in graph.nodes] == ["Abs", "Add", "MatMul", "Add"]
    with pytest.raises(KeyError):
        graph.replace(old, [])


class CountingList(list[onnx.NodeProto]):
    """Counts how often its items are looked through."""

    looks = 0

    def __iter__(self) -> Any:
        CountingList.looks += 1
        return super().__iter__()


def test_replacements_do_not_look_through_all_nodes() -> None:
    graph = Graph(chain(1500, width=4))
    slots = graph._slots = CountingList(graph._slots)
    assert slots is graph._slots
    for node in list(graph.nodes):
        graph.replace(node, [graph.node("Identity", [node.input[0]], list(node.output))])
    assert CountingList.looks == 1
    assert {node.op_type for node in graph.nodes} == {"Identity"}


def test_constants_of_nodes_become_initializers() -> None:
    nodes = [
        helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(np.array([1, 2], np.float32))),
        helper.make_node("Constant", [], ["b"], value_float=2.5),
        helper.make_node("Constant", [], ["c"], value_ints=[3, 4]),
        helper.make_node("Mul", ["a", "b"], ["y"]),
    ]
    outputs = [value_info("y", FLOAT, [2]), value_info("c", INT64, [2])]
    graph = Graph(helper.make_model(helper.make_graph(nodes, "g", [], outputs)))
    assert [node.op_type for node in graph.nodes] == ["Mul"]
    assert graph.constant("b") == np.float32(2.5)
    assert graph.shape("b") == ()
    assert {t.name for t in graph.finish().graph.initializer} == {"a", "b", "c"}
    np.testing.assert_array_equal(graph.constant("c"), np.array([3, 4], np.int64))


@pytest.mark.parametrize(
    "value",
    [
        np.arange(-1024, 1024).astype(ml_dtypes.bfloat16),
        (np.arange(6000) % 16).astype(ml_dtypes.uint4),
        (np.arange(6001) % 16 - 8).astype(ml_dtypes.int4),
        np.arange(3000).astype(np.float16),
        np.arange(3000) % 3 == 0,
        np.arange(3000).astype(np.uint8),
    ],
    ids=lambda value: str(value.dtype),
)
def test_every_type_survives(value: Array, tmp_path: Path) -> None:
    kind = tensors.data_type_of(value)
    outputs = [value_info("y", kind, list(value.shape))]
    node = helper.make_node("Identity", ["w"], ["y"])
    weights = [numpy_helper.from_array(value, "w")]
    made = helper.make_model(helper.make_graph([node], "g", [], outputs, weights))
    first = Graph(made)
    second = Graph(made)
    second.replace(second.nodes[0], [second.node("Identity", [second.add_constant("v", value)], ["y"])])
    for name, graph in (("w", first), ("v", second)):
        graph.write(tmp_path / name)
        again = Graph.read(tmp_path / name / "model.onnx")
        assert again.model.graph.initializer[0].data_location == TensorProto.EXTERNAL
        assert again.stored_bytes(name) == (tmp_path / name / "model.data").stat().st_size
        np.testing.assert_array_equal(again.constant(name), value)
        np.testing.assert_array_equal(numpy_helper.to_array(again.finish().graph.initializer[0]), value)


def conditional(weight: Array) -> onnx.ModelProto:
    """If: one branch multiplies by a weight of its own."""
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["t"])],
        "then",
        [],
        [value_info("t", FLOAT, None)],  # type: ignore[arg-type]
        [numpy_helper.from_array(weight, "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "outer"], ["e"])],
        "else",
        [],
        [value_info("e", FLOAT, None)],  # type: ignore[arg-type]
    )
    node = helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=other)
    inputs = [value_info("flag", TensorProto.BOOL, []), value_info("x", FLOAT, ["n", 64])]
    graph = helper.make_graph(
        [node], "g", inputs, [value_info("y", FLOAT, ["n", 64])], [numpy_helper.from_array(weight, "outer")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_external_weights_of_subgraphs_come_along(tmp_path: Path) -> None:
    weight = values(64, 64)
    path = tmp_path / "source.onnx"
    onnx.save(
        conditional(weight),
        path,
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    graph = Graph.read(path)
    graph.write(tmp_path / "out")
    (tmp_path / "w.bin").unlink()
    x = values(2, 64)
    for flag in (True, False):
        (found,) = answers(tmp_path / "out" / "model.onnx", flag=np.array(flag), x=x)
        np.testing.assert_allclose(found, x @ weight, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "out" / "model.data").stat().st_size >= 2 * weight.nbytes


def test_links_leave_the_weights_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    model = chain(2, width=160)
    path = tmp_path / "source.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights/a.bin", size_threshold=0)
    graph = Graph.read(path)
    old = graph.nodes[0]
    new = graph.add_constant("new", values(160, 160, seed=5))
    graph.replace(old, [graph.node("MatMul", ["x0", new], list(old.output))])
    graph.write(tmp_path / "out", linked=True)
    assert (tmp_path / "out" / "source.0.data").stat().st_ino == (
        tmp_path / "weights" / "a.bin"
    ).stat().st_ino
    assert (tmp_path / "out" / "model.data").stat().st_size == 4 * 160 * 160
    assert np.isfinite(answers(tmp_path / "out" / "model.onnx", x0=values(1, 160))[0]).all()
    Graph.read(tmp_path / "out" / "model.onnx").write(tmp_path / "whole")
    assert [p.name for p in sorted((tmp_path / "whole").iterdir())] == ["model.data", "model.onnx"]
    x = values(2, 160)
    np.testing.assert_array_equal(
        answers(tmp_path / "out" / "model.onnx", x0=x)[0], answers(tmp_path / "whole" / "model.onnx", x0=x)[0]
    )


def test_initializers_among_the_inputs_are_no_inputs_any_more(tmp_path: Path) -> None:
    model = chain(1, width=64)
    model.ir_version = 3
    model.graph.input.append(value_info("w0", FLOAT, [64, 64]))
    Graph(model).write(tmp_path)
    made = onnx.load(tmp_path / "model.onnx")
    assert [value.name for value in made.graph.input] == ["x0"]
    assert made.ir_version >= 4


def test_contrib_operators_are_imported() -> None:
    graph = Graph(chain())
    old = graph.nodes[0]
    graph.replace(old, [graph.node("FusedMatMul", list(old.input), list(old.output), domain="com.microsoft")])
    assert {o.domain for o in graph.finish().opset_import} == {"", "com.microsoft"}


@pytest.mark.parametrize(
    "value", [values(7, 5), values(5, 7).T, values(3, 4, 5).transpose(2, 0, 1), values(11)]
)
def test_pieces_are_the_whole(value: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "PIECE_BYTES", 24)
    parts = list(tensors.pieces(value))
    assert len(parts) > 1
    assert max(part.nbytes for part in parts) <= 24
    assert b"".join(part.tobytes() for part in parts) == value.tobytes()


def test_a_full_disk_is_said_and_nothing_half_written_stays(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(BuildFailed) as caught, datafile.room():
        full.write_bytes(b"x" * 100_000)
    assert caught.value.code == "disk_full"
    (tmp_path / "model.data.partial").symlink_to(full)
    with pytest.raises(BuildFailed, match="full"):
        Graph(chain(2, width=160)).write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_trouble_with_files_is_not_called_a_full_disk() -> None:
    with pytest.raises(PermissionError), datafile.room():
        raise PermissionError(errno.EACCES, "no")


def test_pieces_that_do_not_add_up_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 bytes"), datafile.DataFile(tmp_path) as data:
        data.append(np.zeros(1, np.float32), 8)
    assert list(tmp_path.iterdir()) == []


def test_cutting_covers_the_file(tmp_path: Path) -> None:
    starts = Graph(chain(2, width=320)).write(tmp_path)
    file = package.cut(tmp_path / "model.data", tmp_path / "chunks", name="model.data", starts=starts)
    assert sum(chunk.size_bytes for chunk in file.chunks) == file.size_bytes == starts[-1]
    assert [chunk.size_bytes for chunk in file.chunks][:2] == [4 * 320 * 320, 4 * (320 + 320 * 320) + 2816]
