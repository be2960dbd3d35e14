"""Uploads that are refused, each with its code and a sentence, and hostile ones in the real sandbox."""

from __future__ import annotations

import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from quantize_worker.contract import TensorSpec
from quantize_worker.errors import ModelRefused, SandboxFailed, SandboxTimeout
from quantize_worker.sandbox import Sandbox, find_bubblewrap
from quantize_worker.steps.confinement import Limits
from quantize_worker.steps.exchange import FIRST_STAGE, SOURCE_FOLDER, Job, Outcome
from quantize_worker.steps.intake import read_model
from quantize_worker.steps.samples import read_set
from tests import exports
from tests.exports import listed
from tests.integration import onnx_models
from tests.integration.job_folders import LIMITS, features, inspect, uniform, upload


def refusal(folder: Path) -> str:
    """The code of what intake says, before any library parses the upload in earnest."""
    with pytest.raises(ModelRefused) as caught:
        read_model(folder / SOURCE_FOLDER, listed(folder / SOURCE_FOLDER))
    assert caught.value.message.endswith(".")
    if caught.value.code == "truncated":
        assert "upload it again as a new version" in caught.value.message
    return caught.value.code


WHOLE = onnx_models.classifier().SerializeToString()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "truncated"),
        (WHOLE[:100], "truncated"),
        (WHOLE[:-1], "truncated"),
        (b"PK\x03\x04 a zip", "not_onnx"),
        (b"version https://git-lfs.example", "not_onnx"),
        (b"hello, this is a text and no model\n", "not_onnx"),
        (b"\xff" * 100, "not_onnx"),
        (b"\x08\x08", "not_onnx"),  # a model without a graph
        (pickle.dumps({"weights": [1.0] * 100}), "not_onnx"),
    ],
)
def test_form(content: bytes, code: str, tmp_path: Path) -> None:
    assert refusal(upload(tmp_path, content)) == code


def test_no_onnx_file(tmp_path: Path) -> None:
    source = tmp_path / SOURCE_FOLDER
    source.mkdir()
    (source / "model.pt").write_bytes(b"x")
    assert refusal(tmp_path) == "not_onnx"


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b", "", "c:\\x", "file://x"])
def test_external_data_outside(location: str, tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.with_external_data(tmp_path, location, write=False))
    assert refusal(folder) == "external_data_outside"


def test_external_data_missing_or_short(tmp_path: Path) -> None:
    missing = upload(tmp_path / "m", onnx_models.with_external_data(tmp_path, "w.bin", write=False))
    assert refusal(missing) == "missing_file"
    source = tmp_path / "s" / SOURCE_FOLDER
    short = upload(tmp_path / "s", onnx_models.with_external_data(source, "w.bin", short=4))
    assert refusal(short) == "truncated"


def test_functions_that_grow_without_bound(tmp_path: Path) -> None:
    assert refusal(upload(tmp_path, onnx_models.nested_functions())) == "too_large"


def test_functions_that_call_themselves(tmp_path: Path) -> None:
    model = onnx_models.nested_functions(depth=2, width=1)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "f1", "f"
    assert refusal(upload(tmp_path, model)) == "invalid_model"


def refused(folder: Path) -> tuple[str, str]:
    outcome = inspect(folder).outcome
    assert (outcome.status, outcome.fault) == ("refused", "model"), outcome
    assert str(folder) not in outcome.message
    return outcome.code, outcome.message


def custom() -> onnx.ModelProto:
    model = onnx_models.weightless()
    model.graph.node[0].domain, model.graph.node[0].name = "acme", "first"
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    return model


def misspelt() -> onnx.ModelProto:
    model = onnx_models.classifier()
    model.graph.node[0].op_type = "Gemn"
    return model


def narrower() -> onnx.ModelProto:
    model = onnx_models.classifier()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    return model


def newer() -> onnx.ModelProto:
    model = onnx_models.classifier()
    model.opset_import[0].version = 99
    return model


def half_infinite() -> onnx.ModelProto:
    weight = features(128).T.copy()
    weight[3, 5] = np.inf
    return onnx_models.linear(weight)


@pytest.mark.parametrize(
    ("make", "codes", "words"),
    [
        (custom, {"unsupported_operator"}, "acme.Relu (node 'first')"),
        (misspelt, {"invalid_model", "unsupported_operator"}, "export it again"),
        (narrower, {"invalid_model"}, "export it again"),
        (newer, {"unknown_opset"}, "opset 99"),
        (half_infinite, {"non_finite_weights"}, "'w'"),
        (onnx_models.logarithmic, {"non_finite_outputs"}, "generated inputs"),
    ],
)
def test_models(make: Callable[[], onnx.ModelProto], codes: set[str], words: str, tmp_path: Path) -> None:
    code, message = refused(upload(tmp_path, make()))
    assert code in codes
    assert words in message


def test_a_network_that_the_exporter_does_not_know(tmp_path: Path) -> None:
    source = tmp_path / SOURCE_FOLDER
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaModel"]}')
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (source / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    code, message = refused(tmp_path)
    assert code == "unsupported_architecture"
    assert "mamba" in message


SAMPLES = np.ones((6, onnx_models.FEATURES), np.float32)


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"y": SAMPLES}, "wrong_input_names"),
        ({"x": SAMPLES, "extra": SAMPLES}, "wrong_input_names"),
        ({"x": SAMPLES[:, :5]}, "wrong_sample_shape"),
        ({"x": SAMPLES[0]}, "wrong_sample_shape"),
        ({"x": SAMPLES[:0]}, "wrong_sample_shape"),
        ({"x": SAMPLES, "labels": np.zeros(3, np.int64)}, "wrong_labels"),
        ({"x": SAMPLES, "labels": np.zeros(6)}, "wrong_labels"),
        ({"x": SAMPLES.astype(str)}, "invalid_samples"),
        ({"x": np.array([{}] * 6, object)}, "invalid_samples"),
        ({"x": SAMPLES * np.float32(np.nan)}, "invalid_samples"),
        ({"x": np.where(np.eye(6, onnx_models.FEATURES), np.inf, SAMPLES)}, "invalid_samples"),
        ({"x": SAMPLES.astype(np.float64) * 1e300}, "invalid_samples"),  # infinite as float32
    ],
)
@pytest.mark.parametrize("kind", ["evaluation", "calibration"])
def test_sets_that_do_not_fit(kind: str, arrays: dict[str, np.ndarray], code: str, tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    np.savez(folder / f"{kind}.npz", **arrays)  # type: ignore[arg-type]
    found, message = refused(folder)
    assert found == code
    assert kind in message


@pytest.mark.parametrize("content", [b"", b"no zip", pickle.dumps([1])])
def test_sets_that_are_no_npz(content: bytes, tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    (folder / "calibration.npz").write_bytes(content)
    assert refused(folder)[0] == "invalid_samples"


def test_a_set_that_unpacks_beyond_measure(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", x=np.zeros((1000, onnx_models.FEATURES), np.float32))
    spec = TensorSpec(name="x", dtype="float32", shape=["n", onnx_models.FEATURES])
    with pytest.raises(ModelRefused) as caught:
        read_set(tmp_path / "set.npz", [spec], kind="evaluation", maximum_bytes=100_000)
    assert caught.value.code == "too_large"


def test_an_array_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 64), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(folder / "evaluation.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert refused(folder)[0] in ("invalid_samples", "resource_limit")


def test_a_set_on_which_the_model_fails(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.embedder(rows=100))
    np.savez(folder / "evaluation.npz", ids=np.full((4, 5), 100, np.int64))  # one past the table
    code, message = refused(folder)
    assert code == "wrong_sample_shape"
    assert "ONNX Runtime says" in message


def test_a_calibration_set_on_which_the_model_fails(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.embedder(rows=100))
    np.savez(folder / "evaluation.npz", ids=np.arange(20, dtype=np.int64).reshape(4, 5))
    np.savez(folder / "calibration.npz", ids=np.full((4, 5), 100, np.int64))
    code, message = refused(folder)
    assert code == "wrong_sample_shape"
    assert "calibration" in message


def test_outputs_that_are_not_finite_on_the_evaluation_set(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.logarithmic())
    np.savez(folder / "evaluation.npz", x=-SAMPLES, labels=np.zeros(6, np.int64))
    code, message = refused(folder)
    assert code == "non_finite_outputs"
    assert "evaluation set" in message
    assert "NaN or infinite" in message


def test_outputs_that_are_not_finite_on_the_calibration_set(tmp_path: Path) -> None:
    """One such sample would make every loss look like nothing."""
    helper = onnx.helper
    nodes = [helper.make_node("Log", ["x"], ["l"]), helper.make_node("MatMul", ["l", "w"], ["y"])]
    model = onnx_models.linear(features(32).T.copy())
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    folder = upload(tmp_path, model)
    samples = np.abs(features(40))
    np.savez(folder / "evaluation.npz", x=samples)
    np.savez(folder / "calibration.npz", x=np.where(np.arange(40)[:, None] == 3, -1, samples[::-1] + 1))
    code, message = refused(folder)
    assert code == "non_finite_outputs"
    assert "calibration set" in message


@pytest.fixture(params=["bubblewrap", "limits alone"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    if request.param == "limits alone":
        return Sandbox()
    program = find_bubblewrap()
    if program is None:
        pytest.skip("bubblewrap is not available")
    return Sandbox(bubblewrap=program)


def in_sandbox(sandbox: Sandbox, folder: Path, limits: Limits = LIMITS) -> Outcome:
    job = Job(kind="inspect", files=listed(folder / SOURCE_FOLDER), limits=limits)
    return sandbox.run(folder, job, lambda step: None, threading.Event())


def test_a_good_model_passes_the_sandbox(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.encoder())
    outcome = in_sandbox(sandbox, folder)
    assert outcome.status == "ready", outcome.message
    assert outcome.facts is not None
    assert outcome.facts.memory_bytes > 0
    recipes = [uniform(outcome.facts, precision) for precision in ("int4", "int8-qdq")]
    job = Job(kind="build", files=[], limits=LIMITS, recipes=recipes, stages=[FIRST_STAGE])
    builds = sandbox.run(folder, job, lambda step: None, threading.Event()).builds
    assert [(one.code, bool(one.artifact)) for one in builds] == [("", True)] * 2


def test_a_model_that_never_ends_is_stopped(sandbox: Sandbox, tmp_path: Path) -> None:
    limits = Limits(wall_s=60, memory_bytes=16 << 30, silence_s=4)
    with pytest.raises(SandboxTimeout):
        in_sandbox(sandbox, upload(tmp_path, onnx_models.endless_loop()), limits)


def test_a_model_that_eats_memory_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    limits = Limits(wall_s=60, memory_bytes=4 << 30)
    outcome = in_sandbox(sandbox, upload(tmp_path, onnx_models.huge_constant()), limits)
    assert (outcome.status, outcome.code) == ("refused", "resource_limit")


def test_a_child_that_does_not_understand_its_request_is_our_failure(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    with pytest.raises(SandboxFailed):
        sandbox.run(tmp_path, Job(kind="what", files=[], limits=LIMITS), print, threading.Event())  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [exports.custom, onnx_models.logarithmic])
def test_what_is_refused_leaves_no_stage_behind(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    done = inspect(upload(tmp_path, make()))
    assert done.outcome.status == "refused"
    assert not [step for step in done.steps if step.stage or step.files]
