"""Predicted against measured, in words; and in how many bits a build multiplies."""

from __future__ import annotations

import msgspec
import pytest

from quantize_worker.arithmetic import shares
from quantize_worker.comparison import differences, relative_error
from quantize_worker.contract import (
    ArtifactDescription,
    LayerFacts,
    ModelFacts,
    ProductFacts,
    QualityReport,
    Recipe,
    TailorPlan,
)

RECIPE = Recipe(
    precision="int4", accelerator="cpu", execution_provider="CPUExecutionProvider", emulated=False
)
PLAN = TailorPlan(
    recipe=RECIPE,
    predicted_size_bytes=12_000_000,
    predicted_memory_bytes=20_000_000,
    predicted_latency_ms=10.0,
    predicted_quality=0.99,
    reasons=[],
)
QUALITY = QualityReport(metric="cosine", value=0.988, cosine=0.988, top1_agreement=0.9, samples=128)


def artifact(**changes: float) -> ArtifactDescription:
    values = {"size_bytes": 12_000_000, "memory_bytes": 20_000_000, "latency_p50_ms": 10.0, **changes}
    return ArtifactDescription(
        entry="model.onnx",
        files=[],
        golden_path="golden.npz",
        golden_samples=8,
        golden_min_cosine=0.9,
        download_bytes=0,
        provider="CPUExecutionProvider",
        minimum_runtime="1.32.0",
        tool_versions={},
        **values,  # type: ignore[arg-type]
    )


def test_what_came_as_predicted_is_said_so() -> None:
    size, quality, memory, latency = differences(PLAN, artifact(), QUALITY)
    assert size == "Size: 12.00 MB predicted, 12.00 MB measured (as predicted)."
    assert quality == "Quality: 1 - cosine 0.01000 predicted, 0.01200 measured (20% more) on 128 samples."
    assert "as predicted" in memory
    assert "as predicted" in latency


def test_more_less_and_nearly() -> None:
    said = differences(PLAN, artifact(size_bytes=12_096_000, latency_p50_ms=5.0), QUALITY)
    assert "(+0.8%)" in said[0]
    assert "(50% less)" in said[3]


def test_an_early_stop_states_its_confidence() -> None:
    early = msgspec.structs.replace(QUALITY, samples=32, confidence=0.999)
    assert "on 32 samples, enough to tell at 99.9% confidence" in differences(PLAN, artifact(), early)[1]


def test_what_was_not_predicted_is_left_out() -> None:
    plan = msgspec.structs.replace(PLAN, predicted_latency_ms=0.0, predicted_memory_bytes=0)
    assert len(differences(plan, artifact(), QUALITY)) == 2


def test_a_loss_where_none_was_predicted() -> None:
    plan = msgspec.structs.replace(PLAN, predicted_quality=1.0)
    assert "(none was predicted)" in differences(plan, artifact(), QUALITY)[1]
    assert relative_error(0.0, 0.0) == 0.0


def test_shares_of_multiplications() -> None:
    layers = [
        LayerFacts(name="a", operator="MatMul", parameters=100, quantizable=True, rows=3.0),
        LayerFacts(name="b", operator="Conv", parameters=10, quantizable=True, rows=20.0),
        LayerFacts(name="t", operator="Gather", parameters=9000, quantizable=True, rows=3.0),
    ]
    facts = ModelFacts(
        inputs=[],
        outputs=[],
        opset=17,
        operators={},
        parameters=0,
        source_bytes=0,
        weight_bytes=0,
        quantizable_weight_bytes=0,
        embedding_weight_bytes=0,
        layers=layers,
        samples=0,
        has_labels=False,
        synthetic_samples=False,
        accuracy=None,
        latency_p50_ms=0.0,
        memory_bytes=0,
        tool_versions={},
        products=ProductFacts(names=["p"], multiplies=500.0),
    )
    recipe = msgspec.structs.replace(
        RECIPE, layers={"a": "int8-qdq", "b": "int8-qdq16", "t": "int4-b32"}, products="int8-qdq"
    )
    assert shares(facts, recipe) == pytest.approx({8: 0.8, 16: 0.2})
    assert shares(facts, RECIPE) == {32: 1.0}
