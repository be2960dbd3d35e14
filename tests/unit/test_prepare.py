"""Preparing an upload: what is done, what is left out, what is refused; always the same bytes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantize_worker.errors import ModelRefused
from quantize_worker.steps import rewriting
from quantize_worker.steps.generated import fitting_set
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.opening import open_session
from quantize_worker.steps.parity import Reference, agrees
from quantize_worker.steps.prepare import Prepared, prepare
from tests import exports
from tests.exports import listed

Array = NDArray[Any]
MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "cnn": exports.cnn,
    "pyramid": exports.pyramid,
    "gru": exports.gru,
    "lstm": exports.lstm,
    "decoder": exports.decoder,
    "conditional": exports.conditional,
    "functions": exports.with_functions,
    "trees": exports.trees,
    "tied": exports.tied,
    "scalar": exports.scalar_input,
}


def prepared(model: onnx.ModelProto | Path, folder: Path, **options: int) -> Prepared:
    source = folder / "source"
    source.mkdir(parents=True, exist_ok=True)
    if isinstance(model, onnx.ModelProto):
        (source / "upload.onnx").write_bytes(model.SerializeToString())
    return prepare(source, listed(source), folder / "analysis" / "model", **options)  # type: ignore[arg-type]


def refused(model: onnx.ModelProto, folder: Path) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        prepared(model, folder)
    assert not list((folder / "analysis").glob("*.work"))
    return caught.value


def operators(found: Prepared) -> list[str]:
    return [node.op_type for node in Graph.read(found.path).nodes]


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", MODELS)
def test_what_is_prepared_computes_what_the_source_does(name: str, tmp_path: Path) -> None:
    found = prepared(MODELS[name](), tmp_path)
    before, after = session(tmp_path / "source" / "upload.onnx"), session(found.path)
    assert [spec.name for spec in found.inputs] == [value.name for value in after.get_inputs()]
    for sample in found.generated.samples():
        pairs = list(zip(before.run(None, sample), after.run(None, sample), strict=True))
        assert all(agrees(left, right) for left, right in pairs)
        assert all(np.isfinite(left).all() for left, _ in pairs)
    assert Graph.read(found.path).opset == 21
    assert "Left out" not in " ".join(found.did)
    assert {path.name for path in found.path.parent.iterdir()} <= {"model.onnx", "model.data"}


@pytest.mark.parametrize("name", ["cnn", "lstm", "conditional", "functions", "tied"])
def test_equal_uploads_give_equal_bytes_in_any_process(name: str, tmp_path: Path) -> None:
    made = MODELS[name]()
    folders = [tmp_path / "here", tmp_path / "there"]
    prepared(made, folders[0])
    (folders[1] / "source").mkdir(parents=True)
    (folders[1] / "source" / "upload.onnx").write_bytes(made.SerializeToString())
    code = (
        "import sys; from pathlib import Path; from tests.unit.test_prepare import prepared; "
        "prepared(Path(), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(folders[1])], check=True)
    digests = [
        {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (folder / "analysis" / "model").iterdir()
        }
        for folder in folders
    ]
    assert digests[0] == digests[1]


def test_normalization_is_folded_into_the_convolution_before_it(tmp_path: Path) -> None:
    found = prepared(exports.cnn(9), tmp_path)
    assert operators(found) == ["Conv", "Relu", "MaxPool", "Flatten", "Gemm"]
    assert found.did[0] == "Upgraded opset 9 to 21."
    assert [spec.name for spec in found.inputs] == ["image"]


@pytest.mark.parametrize("opset", [7, 8, 13, 21])
def test_every_opset_is_brought_to_21(opset: int, tmp_path: Path) -> None:
    model = exports.model(
        [helper.make_node("Conv", ["x", "k"], ["y"])],
        [exports.value("x", exports.FLOAT, ["n", 4, 8, 8])],
        [exports.value("y", exports.FLOAT, ["n", 8, 6, 6])],
        {"k": exports.numbers(8, 4, 3, 3)},
        opset=opset,
        ir_version=10,
    )
    found = prepared(model, tmp_path)
    assert Graph.read(found.path).opset == 21
    assert bool(found.did) == (opset < 21)


def test_shapes_are_inferred(tmp_path: Path) -> None:
    found = prepared(exports.cnn(), tmp_path)
    infos = {value.name: value for value in onnx.load(found.path).graph.value_info}
    gemm_input = Graph.read(found.path).nodes[-1].input[0]
    assert [dim.dim_value for dim in infos[gemm_input].type.tensor_type.shape.dim][1:] == [128]


def test_comments_and_unused_domains_are_left_out(tmp_path: Path) -> None:
    model = exports.gru()
    model.graph.node[0].doc_string = "File /home/somebody/secret.py, line 7"
    model.graph.node[0].metadata_props.add(key="pkg.torch.stack_trace", value="somebody")
    model.opset_import.append(helper.make_opsetid("acme", 3))
    model.metadata_props.add(key="classes", value="ten")
    found = onnx.load(prepared(model, tmp_path).path)
    assert b"somebody" not in found.SerializeToString()
    assert {entry.domain for entry in found.opset_import} == {""}
    assert [entry.key for entry in found.metadata_props] == ["classes"]


def test_functions_are_written_out(tmp_path: Path) -> None:
    found = prepared(exports.with_functions(), tmp_path)
    assert operators(found) == ["MatMul", "Relu", "MatMul", "Relu"]
    assert not Graph.read(found.path).model.functions


def test_a_weight_inside_a_branch_is_kept_and_said(tmp_path: Path) -> None:
    found = prepared(exports.conditional(), tmp_path)
    (kept,) = found.kept
    assert (kept.name, kept.operator) == ("choose", "If")
    assert "8,192 bytes" in kept.reason
    flags = {bool(sample["flag"]) for sample in found.generated.samples()}
    assert flags == {True, False}


def test_trees_are_kept_and_said(tmp_path: Path) -> None:
    found = prepared(exports.trees(), tmp_path)
    assert [(kept.name, kept.operator) for kept in found.kept] == [
        ("forest", "ai.onnx.ml.TreeEnsembleClassifier")
    ]


def test_quantized_weights_are_kept_and_said(tmp_path: Path) -> None:
    model = exports.model(
        [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"], name="restore"),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        [exports.value("x", exports.FLOAT, ["n", 64])],
        [exports.value("y", exports.FLOAT, ["n", 64])],
        {"q": (np.arange(4096) % 200 - 100).astype(np.int8).reshape(64, 64), "s": np.float32(0.01)},
    )
    found = prepared(model, tmp_path)
    assert [(kept.name, "already" in kept.reason) for kept in found.kept] == [("restore", True)]


def test_half_precision_is_left_as_it_is(tmp_path: Path) -> None:
    model = exports.model(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        [exports.value("x", TensorProto.FLOAT16, ["n", 64])],
        [exports.value("y", TensorProto.FLOAT16, ["n", 64])],
        {"w": exports.numbers(64, 64).astype(np.float16)},
    )
    found = prepared(model, tmp_path)
    assert operators(found) == ["MatMul", "Relu"]
    assert any("half precision" in sentence for sentence in found.did)
    assert "half precision" in found.kept[0].reason


def test_a_custom_operator_is_refused_with_its_node(tmp_path: Path) -> None:
    refusal = refused(exports.custom(), tmp_path)
    assert refusal.code == "unsupported_operator"
    assert "acme.Swish" in refusal.message
    assert "'odd'" in refusal.message


@pytest.mark.parametrize("change", ["opset", "ir_version", "ml opset"])
def test_a_model_newer_than_the_tools_is_refused(change: str, tmp_path: Path) -> None:
    model = exports.trees()
    if change == "opset":
        model.opset_import[0].version = 99
    elif change == "ir_version":
        model.ir_version = 99
    else:
        model.opset_import[1].version = 99
    assert refused(model, tmp_path).code == "unknown_opset"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, tmp_path: Path) -> None:
    model = exports.gru()
    weight = exports.numbers(32, 10)
    weight[31, 9] = value
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(weight, "fc"))
    refusal = refused(model, tmp_path)
    assert refusal.code == "non_finite_weights"
    assert "'fc'" in refusal.message


def test_a_mask_of_infinities_is_no_broken_weight(tmp_path: Path) -> None:
    mask = np.triu(np.full((32, 32), -np.inf, np.float32), 1)
    model = exports.model(
        [
            helper.make_node("Add", ["x", "mask"], ["masked"]),
            helper.make_node("Softmax", ["masked"], ["y"], axis=-1),
        ],
        [exports.value("x", exports.FLOAT, ["n", 32, 32])],
        [exports.value("y", exports.FLOAT, ["n", 32, 32])],
        {"mask": mask},
    )
    prepared(model, tmp_path)


def test_a_tied_table_stays_a_single_one_and_is_a_layer_s_weight(tmp_path: Path) -> None:
    found = prepared(exports.tied(), tmp_path)
    graph = Graph.read(found.path)
    (gemm,) = [node for node in graph.nodes if node.op_type == "Gemm"]
    (gather,) = [node for node in graph.nodes if node.op_type == "Gather"]
    assert gemm.input[1] == gather.input[0]
    assert graph.weight_bytes() < 1.1 * 4 * 400 * 64


def transposing() -> onnx.ModelProto:
    """As newer exporters write a linear layer, with a shared weight behind Identity."""
    return exports.model(
        [
            helper.make_node("Identity", ["w"], ["w_again"]),
            helper.make_node("Transpose", ["w_again"], ["wt"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "wt"], ["y"], name="linear"),
        ],
        [exports.value("x", exports.FLOAT, ["n", 64])],
        [exports.value("y", exports.FLOAT, ["n", 96])],
        {"w": exports.numbers(96, 64)},
    )


@pytest.mark.parametrize("large_bytes", [0, 1 << 30])
def test_weights_are_read_directly_even_where_nothing_is_folded(large_bytes: int, tmp_path: Path) -> None:
    found = prepared(transposing(), tmp_path, large_bytes=large_bytes)
    assert operators(found) == ["MatMul"]
    assert found.lean == (large_bytes == 0)


@pytest.fixture
def with_weights_outside(tmp_path: Path) -> Path:
    (tmp_path / "source" / "w").mkdir(parents=True)
    path = tmp_path / "source" / "upload.onnx"
    onnx.save(exports.decoder(), path, save_as_external_data=True, location="w/data.bin", size_threshold=1024)
    return tmp_path


def test_external_data_comes_along(with_weights_outside: Path) -> None:
    found = prepared(with_weights_outside, with_weights_outside)
    assert sorted(path.name for path in found.path.parent.iterdir()) == ["model.data", "model.onnx"]
    assert not found.lean


def test_a_large_model_s_weights_stay_where_they_are(with_weights_outside: Path) -> None:
    source = with_weights_outside / "source"
    before = session(source / "upload.onnx")
    found = prepared(with_weights_outside, with_weights_outside, large_bytes=1000)
    assert found.lean
    linked = found.path.parent / "source.0.data"
    assert linked.stat().st_ino == (source / "w" / "data.bin").stat().st_ino
    assert any("too large" in sentence for sentence in found.did)
    assert "Upgraded opset 17 to 21." in found.did
    sample = found.generated.sample(0)
    for left, right in zip(before.run(None, sample), session(found.path).run(None, sample), strict=True):
        assert agrees(left, right)


def test_a_large_model_with_its_weights_inline_is_written_anew(tmp_path: Path) -> None:
    found = prepared(exports.decoder(), tmp_path, large_bytes=1000)
    assert found.lean
    names = {path.name: path.stat() for path in found.path.parent.iterdir()}
    assert names.keys() == {"model.onnx", "source.0.data"}
    assert names["source.0.data"].st_nlink == 1


def test_an_upload_whose_data_file_is_missing(with_weights_outside: Path) -> None:
    (with_weights_outside / "source" / "w" / "data.bin").unlink()
    with pytest.raises(ModelRefused) as caught:
        prepared(with_weights_outside, with_weights_outside)
    assert caught.value.code == "missing_file"


def test_a_step_whose_result_differs_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(source: Path, folder: Path) -> str:
        graph = Graph.read(source)
        last = graph.nodes[-1]
        graph.replace(last, [last, graph.node("Abs", [last.output[0]], ["abs"])])
        graph.model.graph.output[0].name = "abs"
        graph.write(folder)
        return "Did harm."

    def failing(source: Path, folder: Path) -> str:
        raise RuntimeError("no adapter for this operator")

    monkeypatch.setattr(rewriting, "inline_functions", wrong)
    monkeypatch.setattr(rewriting, "reach_constants", failing)
    found = prepared(exports.gru(), tmp_path)
    assert "Did harm." not in found.did
    assert [sentence for sentence in found.did if sentence.startswith("Left out")] == [
        "Left out writing functions out: its outputs have other names",
        "Left out taking weights directly: no adapter for this operator",
    ]
    assert operators(found) == ["Transpose", "GRU", "Squeeze", "MatMul"]


def test_a_difference_is_noticed(tmp_path: Path) -> None:
    source = prepared(exports.gru(), tmp_path)
    reference = Reference(session(source.path), source.generated.samples()[:2])
    assert reference.disagreement(source.path) == ""
    graph = Graph.read(source.path)
    gru = next(node for node in graph.nodes if node.op_type == "GRU")
    recurrent = graph.constant(gru.input[2])
    assert recurrent is not None
    gru.input[2] = graph.add_constant("r", recurrent * np.float32(1.01))
    graph.write(tmp_path / "other")
    assert "differs" in reference.disagreement(tmp_path / "other" / "model.onnx")


def test_a_model_that_no_generated_input_suits_is_left_as_it_is(tmp_path: Path) -> None:
    model = exports.model(
        [
            helper.make_node("Reshape", ["x", "shape"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["y"]),
        ],
        [exports.value("x", exports.FLOAT, ["n", "odd"])],
        [exports.value("y", exports.FLOAT, ["m", 8])],
        {"shape": np.array([-1, 77], np.int64), "w": exports.numbers(77, 8)},
    )
    found = prepared(model, tmp_path)
    assert found.did[0].startswith("Left out all rewriting: the model does not run on generated inputs")
    assert Graph.read(found.path).opset == 17


def test_samples_are_generated_that_the_model_runs_on(tmp_path: Path) -> None:
    found = prepared(exports.decoder(), tmp_path)
    again = fitting_set(Graph.read(found.path), found.inputs, open_session(found.path))
    assert {name: values.shape for name, values in again.inputs.items()} == {
        "input_ids": (16, 16),
        "attention_mask": (16, 32),
        "position_ids": (16, 16),
        "past_key": (16, 2, 16, 16),
        "past_value": (16, 2, 16, 16),
    }
    assert again.inputs["input_ids"].max() < 100
    assert again.inputs["position_ids"].max() < 64
    assert again.inputs["attention_mask"].min() == 1
