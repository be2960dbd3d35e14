"""Builds from an analysis on real ONNX Runtime: equal bytes, resuming, chunks, quality, and what fails."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from quantize_worker.contract import PRECISIONS, Precision
from quantize_worker.steps.exchange import CHUNKS_FOLDER, SOURCE_FOLDER
from tests.integration import onnx_models
from tests.integration.job_folders import (
    Inspected,
    artifact,
    build,
    features,
    operators,
    recipe,
    uniform,
    upload,
)

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "classifier": onnx_models.classifier,
    "embedder": onnx_models.embedder,
    "weightless": onnx_models.weightless,
}


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Inspected]:
    made: dict[str, Inspected] = {}

    def found(name: str) -> Inspected:
        if name not in made:
            made[name] = Inspected(tmp_path_factory.mktemp("inspected"), MODELS[name]())
        return made[name]

    return found


@pytest.mark.parametrize("precision", ["int4", "int8-dynamic", "int8-qdq"])
def test_a_precision_that_does_not_apply_fails_with_the_reason(
    precision: Precision, inspected: Callable[[str], Inspected]
) -> None:
    model = inspected("weightless")
    built = build(model.copy(precision), recipe(precision)).built
    assert (built.code, built.fault, built.artifact) == ("nothing_to_quantize", "model", None)
    assert precision in built.message


def test_each_layer_gets_its_own_format(inspected: Callable[[str], Inspected]) -> None:
    model = inspected("classifier")
    first, second = (layer.name for layer in model.facts.layers)
    folder = model.copy("mixed")
    done = build(
        folder,
        recipe("int8-dynamic", {first: "int8-dynamic"}),
        recipe("int4", {first: "int4-b32", second: "fp16-stored"}),
    )
    assert all(one.artifact for one in done.outcome.builds)
    assert {"DynamicQuantizeMatMul", "Gemm"} <= operators(folder, 0)
    assert "MatMulNBits" not in operators(folder, 0)
    assert {"MatMulNBits", "Cast", "Gemm"} <= operators(folder, 1)


def test_one_recipe_that_fails_does_not_end_the_others(inspected: Callable[[str], Inspected]) -> None:
    model = inspected("classifier")
    good, other = uniform(model.facts, "int4"), uniform(model.facts, "int8-dynamic")
    first = model.facts.layers[0].name
    folder = model.copy("several")
    done = build(
        folder,
        good,
        recipe("int4", {"nowhere": "int4-b32"}),
        recipe("int4", {first: "int3-b7"}),
        other,
        chunked=False,
    )
    assert done.outcome.status == "built"
    assert [bool(one.artifact) for one in done.outcome.builds] == [True, False, False, True]
    assert [(one.code, one.fault) for one in done.outcome.builds[1:3]] == [
        ("unknown_layer", "system"),
        ("unsupported_layer", "system"),
    ]
    alone = model.copy("alone")
    only = build(alone, other, chunked=False).built
    assert only.artifact is not None
    assert done.outcome.builds[3].artifact is not None
    assert done.outcome.builds[3].artifact.files == only.artifact.files
    assert [step.share for step in done.steps] == sorted(step.share for step in done.steps)


def test_the_same_source_and_recipe_give_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for attempt in ("first", "second"):
        model = Inspected(tmp_path / attempt, onnx_models.encoder())
        recipes = [uniform(model.facts, precision) for precision in PRECISIONS]
        builds = build(model.copy("build"), *recipes).outcome.builds
        found.append([one.artifact.files for one in builds if one.artifact is not None])
    for precision, first, second in zip(PRECISIONS, *found, strict=True):
        assert first == second, precision
    assert len({tuple(file.sha256 for file in files[:2]) for files in found[0]}) == len(PRECISIONS)


def test_int4_is_rounded_for_the_calibration_set(tmp_path: Path) -> None:
    generator = np.random.default_rng(9)
    mixing = generator.standard_normal((8, onnx_models.FEATURES))
    samples = (generator.standard_normal((120, 8)) @ mixing).astype(np.float32)  # columns go together
    found = []
    for name in ("generated", "calibrated", "again"):
        upload(tmp_path / name, onnx_models.classifier())
        if name != "generated":
            np.savez(tmp_path / name / "calibration.npz", x=samples[60:])
        np.savez(tmp_path / name / "evaluation.npz", x=samples[:60] if name != "generated" else features(60))
        model = Inspected(tmp_path / name, onnx_models.classifier())
        built = build(model.copy("build"), uniform(model.facts, "int4")).built
        assert built.artifact is not None
        assert built.quality is not None
        found.append((built.artifact.files[1], built.quality.cosine))
    generated, calibrated, again = found
    assert calibrated == again
    assert calibrated[0].sha256 != generated[0].sha256
    assert calibrated[1] > 0.99


def test_a_build_takes_up_where_an_earlier_attempt_ended(inspected: Callable[[str], Inspected]) -> None:
    model = inspected("embedder")
    made, folder = uniform(model.facts, "int4"), model.copy("resume")
    whole = build(folder, made)
    (done,) = [step.done for step in whole.steps if step.done]
    assert [file.path for file in done] == ["model.onnx", "model.data"]
    before = {file.path: (artifact(folder) / file.path).stat().st_mtime_ns for file in done}
    resumed = build(folder, made, done=done)
    assert "assemble" in whole.names
    assert "assemble" not in resumed.names
    assert before == {path: (artifact(folder) / path).stat().st_mtime_ns for path in before}
    assert whole.built.artifact is not None
    assert resumed.built.artifact is not None
    assert resumed.built.artifact.files == whole.built.artifact.files


def test_a_request_of_contract_1_brings_the_source_and_a_precision(tmp_path: Path) -> None:
    folder = upload(tmp_path / "old", onnx_models.embedder())
    done = build(folder, recipe("int4", block_size=32), stages=[])
    assert done.built.artifact is not None, done.built.message
    assert "prepare" in done.names
    assert {"MatMulNBits", "GatherBlockQuantized"} <= operators(folder)
    assert done.built.quality is not None
    assert done.built.quality.cosine > 0.95


def test_labels_give_accuracy(tmp_path: Path) -> None:
    folder, samples = upload(tmp_path / "labels", onnx_models.classifier()), features(40)
    session = onnxruntime.InferenceSession(onnx_models.classifier().SerializeToString())
    labels = session.run(None, {"x": samples})[0].argmax(axis=1)
    labels[:10] = (labels[:10] + 1) % onnx_models.CLASSES  # a source that is right on three of four
    np.savez(folder / "evaluation.npz", x=samples, labels=labels)
    np.savez(folder / "calibration.npz", x=features(60, seed=6))
    model = Inspected(folder, onnx_models.classifier())
    assert model.facts.accuracy == 0.75
    assert (model.facts.has_labels, model.facts.samples, model.facts.synthetic_samples) == (True, 40, False)
    quality = build(model.copy("build"), uniform(model.facts, "int8-dynamic")).built.quality
    assert quality is not None
    assert (quality.metric, quality.source_accuracy) == ("accuracy", 0.75)
    assert quality.accuracy is not None
    assert quality.value == min(1.0, quality.accuracy / 0.75)


def test_a_build_whose_outputs_are_not_finite_fails(tmp_path: Path) -> None:
    weight = np.full((onnx_models.FEATURES, 128), 1e-36, np.float32)
    folder = upload(tmp_path / "infinite", onnx_models.linear(weight))
    signs = np.where(np.arange(onnx_models.FEATURES) % 3, 1, -1)
    np.savez(folder / "evaluation.npz", x=np.ones((6, 1)) * signs * 3e38)  # the range has no scale in FP32
    model = Inspected(folder, onnx_models.linear(weight))
    built = build(model.copy("build"), uniform(model.facts, "int8-dynamic")).built
    assert (built.code, built.fault, built.artifact) == ("non_finite_outputs", "model", None)


def test_a_build_that_is_right_by_luck_alone_fails(tmp_path: Path) -> None:
    weight = np.random.default_rng(3).standard_normal((onnx_models.FEATURES, 128)).astype(np.float32)
    weight[::32] = 1000.0  # INT4 rounds all else of each block to nothing
    samples = features(40, seed=4)
    folder = upload(tmp_path / "lucky", onnx_models.linear(weight))
    np.savez(folder / "calibration.npz", x=samples)
    samples[:, ::32] = 0.0
    labels = np.zeros(40, np.int64)
    labels[:10] = (samples[:10] @ weight).argmax(axis=1)
    np.savez(folder / "evaluation.npz", x=samples, labels=labels)
    model = Inspected(folder, onnx_models.linear(weight))
    made = [uniform(model.facts, "int4"), uniform(model.facts, "fp32")]
    lucky, kept = build(model.copy("build"), *made).outcome.builds
    assert (lucky.code, lucky.fault, lucky.artifact) == ("outputs_diverge", "model", None)
    assert kept.artifact is not None
    assert kept.artifact.golden_min_cosine > 0.99


def test_chunks_are_cut_at_tensors_and_shared_between_versions(tmp_path: Path) -> None:
    model = onnx_models.embedder(rows=9000, width=128)  # a table of 4.4 MiB
    other = onnx.ModelProto()
    other.CopyFrom(model)
    changed = onnx.numpy_helper.to_array(other.graph.initializer[1]) * np.float32(1.5)
    other.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(changed, "w"))
    files = []
    for name, version in (("one", model), ("two", other)):
        built = build(upload(tmp_path / name, version), recipe("fp32"), stages=[]).built
        assert built.artifact is not None
        files.append({file.path: file for file in built.artifact.files}["model.data"])
    one, two = ({chunk.sha256 for chunk in file.chunks} for file in files)
    assert len(one & two) == 2  # both pieces of the table
    assert len(one - two) == len(two - one) == 1
    assert max(chunk.size_bytes for chunk in files[0].chunks) == 4 << 20


def test_chunks_are_named_by_their_digest(inspected: Callable[[str], Inspected]) -> None:
    model = inspected("classifier")
    folder = model.copy("chunks")
    built = build(folder, recipe("fp32")).built
    assert built.artifact is not None
    declared = {chunk.stored_sha256 for file in built.artifact.files for chunk in file.chunks}
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / CHUNKS_FOLDER).iterdir()
    }
    assert found.keys() == declared
    assert all(name == digest for name, digest in found.items())


def test_external_data_is_read_and_packaged(tmp_path: Path) -> None:
    source = tmp_path / "external" / SOURCE_FOLDER
    content = onnx_models.with_external_data(source, "weights/first.bin")
    model = Inspected(tmp_path / "external", content)
    whole = Inspected(tmp_path / "whole", onnx_models.classifier())
    made, files = uniform(model.facts, "int8-dynamic"), []
    for one in (model, whole):
        folder = one.copy("build")
        built = build(folder, made).built
        assert built.artifact is not None, built.message
        assert {path.name for path in artifact(folder).iterdir()} == {
            "model.onnx",
            "model.data",
            "golden.npz",
        }
        files.append(built.artifact.files)
    assert files[0] == files[1]  # where the weights were makes no difference
