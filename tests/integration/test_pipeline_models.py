"""Networks of every kind from an inspection through a plan to builds that pass the agent's own self-test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from device_agent.protocol.manifest import Golden, Manifest, Quality, Runtime
from device_agent.runtime.self_test import self_test
from device_agent.runtime.session import Session
from quantize_worker.contract import PRECISIONS, ArtifactDescription, Precision
from quantize_worker.plan import consider, predict
from tests import exports
from tests.integration import onnx_models
from tests.integration.job_folders import CPU, Inspected, artifact, build, operators, target, uniform, upload

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "classifier": onnx_models.classifier,
    "old opset": lambda: onnx_models.classifier(opset=11),
    "fixed batch": lambda: onnx_models.classifier(batch=4),
    "convolutional": onnx_models.convolutional,
    "convolutional, old opset": lambda: onnx_models.convolutional(opset=10),
    "CNN": exports.cnn,
    "embedder": onnx_models.embedder,
    "encoder": onnx_models.encoder,
    "decoder": exports.decoder,
    "GRU": exports.gru,
    "LSTM": exports.lstm,
    "mixed": onnx_models.mixed,
    "tree ensemble": exports.trees,
    "branches": exports.conditional,
    "functions": exports.with_functions,
    "scalar input": exports.scalar_input,
    "weightless": onnx_models.weightless,
}
LEAST: dict[Precision, float] = {"int4": 0.95, "int8-qdq": 0.99}  # cosine; others: 0.995


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Inspected:
    """A model whose weights outweigh its graph by far."""
    return Inspected(tmp_path_factory.mktemp("large"), onnx_models.embedder(rows=4000, width=128))


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Inspected]:
    made: dict[str, Inspected] = {}

    def found(name: str) -> Inspected:
        if name not in made:
            made[name] = Inspected(tmp_path_factory.mktemp("inspected"), MODELS[name]())
        return made[name]

    return found


def pass_self_test(folder: Path, made: ArtifactDescription) -> None:
    """What a device does before it serves a build, with the agent's own code."""
    inner = onnxruntime.InferenceSession(str(folder / made.entry), providers=[CPU])
    ppm = int(made.golden_min_cosine * 1e6)
    manifest = Manifest(
        format_version=1,
        build="b",
        model="m",
        version=1,
        precision="fp32",
        runtime=Runtime(
            engine="onnxruntime",
            minimum_version=made.minimum_runtime,
            execution_provider=CPU,
            accelerator="cpu",
            emulated=False,
        ),
        entry=made.entry,
        files=[],
        golden=Golden(path=made.golden_path, samples=made.golden_samples, min_cosine_ppm=ppm),
        quality=Quality(metric="cosine", value_ppm=0, cosine_ppm=0, top1_agreement_ppm=0, samples=0),
        size_bytes=0,
        download_bytes=0,
        predicted_memory_bytes=0,
        measured_memory_bytes=0,
        latency_p50_us=0,
        source_digest="",
        recipe_digest="",
        tool_versions={},
    )
    assert self_test(Session(inner, CPU), folder, manifest, emulated=False).passed


@pytest.mark.parametrize("name", MODELS)
def test_whatever_is_planned_can_be_built_and_passes_its_self_test(
    name: str, inspected: Callable[[str], Inspected]
) -> None:
    model = inspected(name)
    plans = [
        (precision, plan)
        for precision in PRECISIONS
        for plan in consider(model.facts, target(precision)).candidates
    ]
    folder = model.copy("planned")
    done = build(folder, *(plan.recipe for _, plan in plans))
    assert {precision for precision, _ in plans} >= ({"fp32"} if name == "weightless" else {"fp32", "fp16"})
    assert len(done.outcome.builds) == len(plans)
    for index, ((precision, plan), built) in enumerate(zip(plans, done.outcome.builds, strict=True)):
        assert built.artifact is not None, (plan.recipe, built.message)
        assert built.quality is not None
        assert built.quality.cosine > LEAST.get(precision, 0.995), plan.recipe
        assert built.artifact.provider == CPU
        pass_self_test(artifact(folder, index), built.artifact)


def test_what_the_planner_offers_depends_on_the_model(inspected: Callable[[str], Inspected]) -> None:
    def offered(name: str, *precisions: Precision) -> set[str]:
        plans = consider(inspected(name).facts, target(*precisions)).candidates
        return {
            form for plan in plans for form in ({plan.recipe.precision} | set(plan.recipe.layers.values()))
        }

    assert offered("weightless") == {"fp32"}
    assert not offered("weightless", "int4")
    assert offered("convolutional", "int8-qdq") <= {"int8", "int8-stored", "int8-qdq"}
    assert offered("convolutional", "int4") == {"int8", "int8-stored"}  # restored before it runs
    assert {"int4", "int4-b16"} <= offered("embedder", "int4")


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp16", {"Cast"}),
        ("int8", {"MatMulNBits"}),
        ("int4", {"MatMulNBits", "GatherBlockQuantized"}),
        ("int8-dynamic", {"DynamicQuantizeMatMul"}),
        ("int8-qdq", {"QuantizeLinear", "DequantizeLinear"}),
        ("int8-qdq16", {"QuantizeLinear", "DequantizeLinear"}),
    ],
)
def test_operators_and_size_are_the_formats(
    precision: Precision, expected: set[str], large: Inspected
) -> None:
    made, folder = uniform(large.facts, precision), large.copy(precision)
    built = build(folder, made).built
    assert built.artifact is not None, built.message
    assert expected <= operators(folder)
    stored = sum(file.size_bytes for file in built.artifact.files if file.path != built.artifact.golden_path)
    assert stored == pytest.approx(predict(large.facts, target(), made).size_bytes, rel=0.02)


def test_the_gate_stops_early_where_floors_allow(tmp_path: Path) -> None:
    folder = upload(tmp_path / "gate", onnx_models.embedder())
    generator = np.random.default_rng(3)
    np.savez(folder / "evaluation.npz", ids=generator.integers(0, 500, (160, 12)))
    model = Inspected(folder, onnx_models.embedder())
    assert model.facts.measured_samples == 120
    made = uniform(model.facts, "int8-dynamic")
    done = build(model.copy("build"), made, made, floors=[[0.5, 0.9], []])
    early, whole = (one.quality for one in done.outcome.builds)
    assert early is not None
    assert whole is not None
    assert (early.samples < 120, whole.samples, whole.confidence) == (True, 120, None)
    assert early.confidence is not None
    assert early.interval is not None
    assert early.interval[0] <= whole.value <= early.interval[1]
    for index, one in enumerate(done.outcome.builds):
        assert one.artifact is not None
        pass_self_test(artifact(model.folder.with_name("gate-build"), index), one.artifact)
