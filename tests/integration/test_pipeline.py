"""Inspecting and building on real ONNX Runtime, and hostile uploads in the real sandbox."""

from __future__ import annotations

import hashlib
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from quantize_worker.contract import PRECISIONS, ModelFacts, Precision, Recipe, SourceFile, Target, TensorSpec
from quantize_worker.errors import ModelRefused, SandboxFailed, SandboxTimeout
from quantize_worker.pipeline import run
from quantize_worker.plan import consider, predict_size_bytes
from quantize_worker.sandbox import Sandbox, find_bubblewrap
from quantize_worker.steps.confinement import Limits
from quantize_worker.steps.exchange import ARTIFACT_FOLDER, CHUNKS_FOLDER, SOURCE_FOLDER, Job, Outcome, Step
from quantize_worker.steps.intake import read_model
from quantize_worker.steps.samples import read_set
from tests.integration import onnx_models

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "classifier": onnx_models.classifier,
    "old opset": lambda: onnx_models.classifier(opset=11),
    "fixed batch": lambda: onnx_models.classifier(batch=4),
    "convolutional": onnx_models.convolutional,
    "convolutional, old opset": lambda: onnx_models.convolutional(opset=10),
    "embedder": onnx_models.embedder,
}
LIMITS = Limits(wall_s=120, memory_bytes=16 << 30)


def listed(folder: Path) -> list[SourceFile]:
    return [
        SourceFile(
            path=str(path.relative_to(folder)),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            size_bytes=path.stat().st_size,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def upload(folder: Path, model: onnx.ModelProto | bytes) -> Path:
    """A job's folder with this model as its source."""
    source = folder / SOURCE_FOLDER
    source.mkdir(parents=True, exist_ok=True)
    content = model if isinstance(model, bytes) else model.SerializeToString()
    (source / "model.onnx").write_bytes(content)
    return folder


def inspect(folder: Path) -> Outcome:
    job = Job(kind="inspect", files=listed(folder / SOURCE_FOLDER), limits=LIMITS)
    return run(folder, job, lambda step: None)


def facts_of(folder: Path) -> ModelFacts:
    outcome = inspect(folder)
    assert outcome.status == "ready", outcome.message
    assert outcome.facts is not None
    return outcome.facts


def recipe(precision: Precision, **layers: Precision) -> Recipe:
    return Recipe(
        precision=precision,
        accelerator="cpu",
        execution_provider="CPUExecutionProvider",
        emulated=False,
        layers=layers,
    )


def build(folder: Path, facts: ModelFacts, made: Recipe) -> tuple[Outcome, list[Step]]:
    steps: list[Step] = []
    files = listed(folder / SOURCE_FOLDER)
    job = Job(kind="build", files=files, limits=LIMITS, recipe=made, facts=facts)
    return run(folder, job, steps.append), steps


def operators(folder: Path) -> set[str]:
    model = onnx.load(folder / ARTIFACT_FOLDER / "model.onnx", load_external_data=False)
    return {node.op_type for node in model.graph.node}


def accepts(facts: ModelFacts) -> list[Precision]:
    target = Target(
        name="any",
        version=1,
        accelerator="cpu",
        execution_provider="CPUExecutionProvider",
        emulated=False,
        precisions=list(PRECISIONS),
        memory_bytes=1 << 40,
        storage_bytes=1 << 40,
        quality_floor=0.9,
    )
    return [candidate.recipe.precision for candidate in consider(facts, target).candidates]


@pytest.mark.parametrize("name", MODELS)
def test_every_precision_that_the_planner_offers_can_be_built(name: str, tmp_path: Path) -> None:
    facts = facts_of(upload(tmp_path / "inspect", MODELS[name]()))
    offered = accepts(facts)
    assert {"fp32", "fp16"} <= set(offered)
    for precision in offered:
        folder = upload(tmp_path / precision, MODELS[name]())
        outcome, _ = build(folder, facts, recipe(precision))
        assert outcome.status == "built", (precision, outcome.message)
        assert outcome.quality is not None
        assert outcome.artifact is not None
        assert outcome.quality.cosine > (0.95 if precision == "int4" else 0.99), precision
        assert outcome.artifact.provider == "CPUExecutionProvider"
        check_golden(folder / ARTIFACT_FOLDER, outcome)


def check_golden(folder: Path, outcome: Outcome) -> None:
    """The self-test that a device does: all golden inputs in one run."""
    assert outcome.artifact is not None
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    with np.load(folder / "golden.npz") as golden:
        inputs = {value.name: golden[f"input/{value.name}"] for value in session.get_inputs()}
        for value, output in zip(session.get_outputs(), session.run(None, inputs), strict=True):
            reference = golden[f"reference/{value.name}"]
            for found, expected in zip(output, reference, strict=True):
                cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
                assert cosine >= outcome.artifact.golden_min_cosine


def test_what_the_planner_offers_depends_on_the_model(tmp_path: Path) -> None:
    assert accepts(facts_of(upload(tmp_path / "a", onnx_models.weightless()))) == ["fp32"]
    convolutional = accepts(facts_of(upload(tmp_path / "b", onnx_models.convolutional())))
    assert convolutional == ["fp32", "fp16", "int8-qdq"]
    assert accepts(facts_of(upload(tmp_path / "c", onnx_models.embedder()))) == list(PRECISIONS)


def test_a_precision_that_does_not_apply_fails_with_the_reason(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.weightless())
    facts = facts_of(folder)
    outcome, _ = build(folder, facts, recipe("int4"))
    assert (outcome.status, outcome.code, outcome.fault) == ("failed", "nothing_to_quantize", "model")


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("int4", {"MatMulNBits", "GatherBlockQuantized"}),
        ("int8-dynamic", {"DynamicQuantizeMatMul"}),
        ("int8-qdq", {"QuantizeLinear", "DequantizeLinear"}),
    ],
)
def test_operators_and_size_are_the_precision_s(
    precision: Precision, expected: set[str], tmp_path: Path
) -> None:
    folder = upload(tmp_path, onnx_models.embedder(rows=4000, width=128))
    facts = facts_of(folder)
    outcome, _ = build(folder, facts, recipe(precision))
    assert expected <= operators(folder)
    assert outcome.artifact is not None
    predicted = predict_size_bytes(facts, precision)
    weights = outcome.artifact.size_bytes - (folder / ARTIFACT_FOLDER / "golden.npz").stat().st_size
    assert weights == pytest.approx(predicted, rel=0.1)


def test_single_layers_can_have_another_precision(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    facts = facts_of(folder)
    names = [layer.name for layer in facts.layers]
    layers: dict[str, Precision] = {names[0]: "int8-dynamic", names[1]: "fp32"}
    outcome, _ = build(folder, facts, recipe("int4", **layers))
    assert outcome.status == "built", outcome.message
    assert {"DynamicQuantizeMatMul", "Gemm"} <= operators(folder)
    assert "MatMulNBits" not in operators(folder)


def test_unknown_layers_in_a_recipe_fail(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    outcome, _ = build(folder, facts_of(folder), recipe("int4", nowhere="fp32"))
    assert (outcome.code, outcome.fault) == ("unknown_layer", "system")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_source_and_recipe_give_the_same_bytes(precision: Precision, tmp_path: Path) -> None:
    facts = facts_of(upload(tmp_path / "i", onnx_models.embedder()))
    artifacts = []
    for attempt in ("first", "second"):
        folder = upload(tmp_path / attempt, onnx_models.embedder())
        outcome, _ = build(folder, facts, recipe(precision))
        assert outcome.artifact is not None
        artifacts.append(outcome.artifact.files)
    assert artifacts[0] == artifacts[1]


def test_int4_with_a_calibration_set_is_close_and_deterministic(tmp_path: Path) -> None:
    generator = np.random.default_rng(9)
    mixing = generator.standard_normal((8, onnx_models.FEATURES))
    samples = (generator.standard_normal((120, 8)) @ mixing).astype(np.float32)  # columns go together
    outcomes = []
    for name in ("generated", "calibrated", "again"):
        folder = upload(tmp_path / name, onnx_models.classifier())
        if name != "generated":
            np.savez(folder / "calibration.npz", x=samples[60:])
            np.savez(folder / "evaluation.npz", x=samples[:60])
        outcome, _ = build(folder, facts_of(folder), recipe("int4"))
        assert outcome.artifact is not None
        assert outcome.quality is not None
        outcomes.append(outcome)
    generated, calibrated, again = (outcome.artifact.files for outcome in outcomes if outcome.artifact)
    assert calibrated == again
    assert calibrated != generated
    assert outcomes[1].quality is not None
    assert outcomes[1].quality.cosine > 0.99


def test_labels_give_accuracy(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    samples = np.random.default_rng(5).standard_normal((40, onnx_models.FEATURES)).astype(np.float32)
    session = onnxruntime.InferenceSession(onnx_models.classifier().SerializeToString())
    labels = session.run(None, {"x": samples})[0].argmax(axis=1)
    labels[:10] = (labels[:10] + 1) % onnx_models.CLASSES  # a source that is right on three of four
    np.savez(folder / "evaluation.npz", x=samples, labels=labels)
    facts = facts_of(folder)
    assert facts.accuracy == 0.75
    assert (facts.has_labels, facts.samples, facts.synthetic_samples) == (True, 40, False)
    outcome, _ = build(folder, facts, recipe("int8-dynamic"))
    assert outcome.quality is not None
    assert outcome.quality.metric == "accuracy"
    assert outcome.quality.source_accuracy == 0.75
    assert outcome.quality.accuracy is not None
    assert outcome.quality.value == min(1.0, outcome.quality.accuracy / 0.75)


def test_without_a_set_samples_are_generated_and_said(tmp_path: Path) -> None:
    facts = facts_of(upload(tmp_path, onnx_models.embedder(rows=70)))
    assert facts.synthetic_samples
    assert facts.samples > 0


def test_resuming_skips_the_quantize_step_and_ends_the_same(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.embedder())
    facts = facts_of(folder)
    whole, steps = build(folder, facts, recipe("int4"))
    (done,) = [step.done for step in steps if step.done]
    job = Job(
        kind="build",
        files=listed(folder / SOURCE_FOLDER),
        limits=LIMITS,
        recipe=recipe("int4"),
        facts=facts,
        done=done,
    )
    later: list[Step] = []
    resumed = run(folder, job, later.append)
    assert "quantize" not in {step.step for step in later}
    assert whole.artifact is not None
    assert resumed.artifact is not None
    assert resumed.artifact.files == whole.artifact.files


def test_chunks_are_cut_at_tensors_and_shared_between_versions(tmp_path: Path) -> None:
    model = onnx_models.embedder(rows=9000, width=128)  # a table of 4.4 MiB
    other = onnx.ModelProto()
    other.CopyFrom(model)
    changed = onnx.numpy_helper.to_array(other.graph.initializer[1]) * np.float32(1.5)
    other.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(changed, "w"))
    files = []
    for name, version in (("one", model), ("two", other)):
        folder = upload(tmp_path / name, version)
        outcome, _ = build(folder, facts_of(folder), recipe("fp32"))
        assert outcome.artifact is not None
        files.append({file.path: file for file in outcome.artifact.files}["model.data"])
    one, two = ({chunk.sha256 for chunk in file.chunks} for file in files)
    assert len(one & two) == 2  # both pieces of the table
    assert len(one - two) == len(two - one) == 1
    assert max(chunk.size_bytes for chunk in files[0].chunks) == 4 << 20


def test_external_data_is_read_and_packaged(tmp_path: Path) -> None:
    source = tmp_path / SOURCE_FOLDER
    upload(tmp_path, onnx_models.with_external_data(source, "weights/first.bin"))
    outcome, _ = build(tmp_path, facts_of(tmp_path), recipe("int8-dynamic"))
    assert outcome.status == "built", outcome.message
    assert {path.name for path in (tmp_path / ARTIFACT_FOLDER).iterdir()} == {
        "model.onnx",
        "model.data",
        "golden.npz",
    }


def refusal(folder: Path) -> str:
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


def test_custom_operators(tmp_path: Path) -> None:
    model = onnx_models.weightless()
    model.graph.node[0].domain = "acme"
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    assert refusal(upload(tmp_path, model)) == "unsupported_operator"


def refused(folder: Path) -> tuple[str, str]:
    outcome = inspect(folder)
    assert outcome.status == "refused", outcome
    return outcome.code, outcome.message


def test_a_model_that_the_checker_refuses(tmp_path: Path) -> None:
    model = onnx_models.classifier()
    model.graph.node[0].op_type = "Gemn"
    assert refused(upload(tmp_path, model))[0] in ("invalid_model", "unsupported_operator")


def test_a_model_whose_shapes_do_not_fit(tmp_path: Path) -> None:
    model = onnx_models.classifier()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    code, message = refused(upload(tmp_path, model))
    assert code == "invalid_model"
    assert str(tmp_path) not in message


SAMPLES = np.ones((6, onnx_models.FEATURES), np.float32)


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"y": SAMPLES}, "wrong_input_names"),
        ({"x": SAMPLES, "extra": SAMPLES}, "wrong_input_names"),
        ({"x": SAMPLES[:, :5]}, "wrong_sample_shape"),
        ({"x": SAMPLES[0]}, "wrong_sample_shape"),
        ({"x": SAMPLES[:0]}, "wrong_sample_shape"),
        ({"x": SAMPLES, "labels": np.zeros(3, np.int64)}, "wrong_sample_shape"),
        ({"x": SAMPLES, "labels": np.zeros(6)}, "wrong_sample_shape"),
        ({"x": SAMPLES.astype(str)}, "invalid_samples"),
        ({"x": np.array([{}] * 6, object)}, "invalid_samples"),
        ({"x": SAMPLES * np.float32(np.nan)}, "invalid_samples"),
        ({"x": np.where(np.eye(6, onnx_models.FEATURES), np.inf, SAMPLES)}, "invalid_samples"),
        ({"x": SAMPLES.astype(np.float64) * 1e300}, "invalid_samples"),  # infinite as float32
    ],
)
def test_sets_that_do_not_fit(arrays: dict[str, np.ndarray], code: str, tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    np.savez(folder / "evaluation.npz", **arrays)  # type: ignore[arg-type]
    found, message = refused(folder)
    assert found == code
    assert "evaluation" in message


def test_a_calibration_set_that_is_not_finite(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    np.savez(folder / "calibration.npz", x=SAMPLES * np.float32(np.nan))
    code, message = refused(folder)
    assert code == "invalid_samples"
    assert "calibration" in message


@pytest.mark.parametrize(("generated", "expected"), [(False, "invalid_samples"), (True, "invalid_model")])
def test_a_source_whose_outputs_are_not_finite(generated: bool, expected: str, tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.logarithmic())
    if not generated:
        np.savez(folder / "evaluation.npz", x=-SAMPLES, labels=np.zeros(6, np.int64))
    code, message = refused(folder)
    assert code == expected
    assert "NaN or infinite" in message
    np.savez(folder / "evaluation.npz", x=SAMPLES)
    assert inspect(folder).status == "ready"


def test_a_build_whose_outputs_are_not_finite_fails(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.linear(np.full((onnx_models.FEATURES, 128), 1e-36, np.float32)))
    signs = np.where(np.arange(onnx_models.FEATURES) % 3, 1, -1)
    np.savez(folder / "evaluation.npz", x=SAMPLES * signs * 3e38)  # the range has no scale in FP32
    outcome, _ = build(folder, facts_of(folder), recipe("int8-dynamic"))
    assert (outcome.status, outcome.code, outcome.fault) == ("failed", "non_finite_outputs", "model")


def test_a_build_that_is_right_by_luck_alone_fails(tmp_path: Path) -> None:
    weight = np.random.default_rng(3).standard_normal((onnx_models.FEATURES, 128)).astype(np.float32)
    weight[::32] = 1000.0  # INT4 rounds all else of each block to nothing
    samples = np.random.default_rng(4).standard_normal((40, onnx_models.FEATURES)).astype(np.float32)
    folder = upload(tmp_path, onnx_models.linear(weight))
    np.savez(folder / "calibration.npz", x=samples)
    samples[:, ::32] = 0.0
    labels = np.zeros(40, np.int64)
    labels[:10] = (samples[:10] @ weight).argmax(axis=1)
    np.savez(folder / "evaluation.npz", x=samples, labels=labels)
    facts = facts_of(folder)
    outcome, _ = build(folder, facts, recipe("int4"))
    assert (outcome.status, outcome.code, outcome.fault) == ("failed", "outputs_diverge", "model")
    kept, _ = build(folder, facts, recipe("fp32"))
    assert kept.status == "built"
    assert kept.artifact is not None
    assert kept.artifact.golden_min_cosine > 0.99


def test_what_is_measured_is_counted(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    samples = np.random.default_rng(5).standard_normal((300, onnx_models.FEATURES)).astype(np.float32)
    np.savez(folder / "evaluation.npz", x=samples)
    facts = facts_of(folder)
    assert (facts.samples, facts.measured_samples) == (300, 128)


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
    outcome = in_sandbox(sandbox, upload(tmp_path, onnx_models.classifier()))
    assert outcome.status == "ready"
    assert outcome.facts is not None
    assert outcome.facts.memory_bytes > 0


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


def test_chunks_are_named_by_their_digest(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    build(folder, facts_of(folder), recipe("fp32"))
    for path in (folder / CHUNKS_FOLDER).iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
