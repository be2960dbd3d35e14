"""The planner: which precisions a class gets, in which order, and why not the others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from quantize_worker.contract import LayerFacts, ModelFacts, Precision, Recipe, Target, TensorSpec
from quantize_worker.plan import (
    consider,
    explain_rejections,
    plan,
    predict_memory_bytes,
    predict_quality,
    predict_size_bytes,
    recipe_digest,
)

MB = 1_000_000


def layer(name: str, operator: str, parameters: int, **sensitivity: float) -> LayerFacts:
    return LayerFacts(
        name=name,
        operator=operator,
        parameters=parameters,
        quantizable=bool(sensitivity),
        sensitivity={"fp16": 4e-8, **{key.replace("_", "-"): value for key, value in sensitivity.items()}},
    )


EVERY = {"int8_dynamic": 5e-5, "int8_qdq": 5e-5, "int4": 6e-3}


def facts(**changes: Any) -> ModelFacts:
    base = ModelFacts(
        inputs=[TensorSpec(name="x", dtype="float32", shape=["n", 64])],
        outputs=[TensorSpec(name="y", dtype="float32", shape=["n", 4])],
        opset=17,
        operators={"MatMul": 1, "Gather": 1},
        parameters=22 * MB,
        source_bytes=90 * MB,
        weight_bytes=88 * MB,
        quantizable_weight_bytes=84 * MB,
        embedding_weight_bytes=40 * MB,
        layers=[layer("dense", "MatMul", 11 * MB, **EVERY), layer("table", "Gather", 10 * MB, **EVERY)],
        samples=256,
        has_labels=False,
        synthetic_samples=False,
        accuracy=None,
        latency_p50_ms=16.0,
        memory_bytes=102 * MB,
        tool_versions={"onnxruntime": "1.32.0"},
    )
    return msgspec.structs.replace(base, **changes)


def target(*precisions: Precision, **changes: Any) -> Target:
    base = Target(
        name="entry",
        version=1,
        accelerator="cpu",
        execution_provider="CPUExecutionProvider",
        emulated=False,
        precisions=list(precisions),
        memory_bytes=500 * MB,
        storage_bytes=500 * MB,
        quality_floor=0.95,
    )
    return msgspec.structs.replace(base, **changes)


def precisions(model: ModelFacts, wanted: Target, **keywords: Any) -> list[str]:
    return [candidate.recipe.precision for candidate in plan(model, wanted, **keywords)]


def test_the_class_order_rules() -> None:
    assert precisions(facts(), target("int4", "fp32", "int8-dynamic")) == ["int4", "fp32", "int8-dynamic"]


def test_a_precision_named_twice_is_one_candidate() -> None:
    assert precisions(facts(), target("int4", "int4", "fp16")) == ["int4", "fp16"]


def test_the_recipe_is_the_target_s() -> None:
    npu = target("int8-qdq", accelerator="npu", execution_provider="QNNExecutionProvider", emulated=True)
    (candidate,) = plan(facts(), npu)
    assert candidate.recipe == Recipe(
        precision="int8-qdq", accelerator="npu", execution_provider="QNNExecutionProvider", emulated=True
    )
    assert "emulated npu" in candidate.reasons[0]


def test_only_int4_has_a_block_size() -> None:
    blocks = {c.recipe.precision: c.recipe.block_size for c in plan(facts(), target("int4", "fp16", "fp32"))}
    assert blocks == {"int4": 32, "fp16": None, "fp32": None}


def test_classes_with_equal_plans_share_a_recipe() -> None:
    one = plan(facts(), target("int4", name="entry", memory_bytes=300 * MB))[0].recipe
    other = plan(facts(), target("int4", name="budget", memory_bytes=400 * MB))[0].recipe
    assert recipe_digest("s", one) == recipe_digest("s", other)


def test_recipe_digest_tells_sources_and_recipes_apart() -> None:
    first, second = (candidate.recipe for candidate in plan(facts(), target("int4", "fp16")))
    digests = {recipe_digest("s", first), recipe_digest("s", second), recipe_digest("t", first)}
    assert len(digests) == 3
    assert all(len(digest) == 64 for digest in digests)


def test_small_models_are_described_in_small_units() -> None:
    (candidate,) = plan(facts(source_bytes=4100), target("fp32", storage_bytes=30 * MB))
    assert "4.1 kB become 4.1 kB; storage allows 30.0 MB." in candidate.reasons
    (rejection,) = consider(facts(source_bytes=4100), target("fp32", storage_bytes=900)).rejections
    assert "4.1 kB of storage" in rejection.reason
    assert "allows 900 B" in rejection.reason


def test_what_does_not_fit_memory_is_explained() -> None:
    outcome = consider(facts(), target("fp32", "int4", memory_bytes=60 * MB))
    assert [c.recipe.precision for c in outcome.candidates] == ["int4"]
    (rejection,) = outcome.rejections
    assert (rejection.precision, rejection.code) == ("fp32", "memory")
    assert "104.0 MB of memory" in rejection.reason
    assert "allows 60.0 MB" in rejection.reason
    assert outcome.impossible == ""


def test_what_does_not_fit_storage_is_explained() -> None:
    outcome = consider(facts(), target("fp32", "int8-dynamic", storage_bytes=30 * MB))
    assert [c.recipe.precision for c in outcome.candidates] == ["int8-dynamic"]
    assert [(r.precision, r.code) for r in outcome.rejections] == [("fp32", "storage")]


def test_impossible_says_why_for_every_precision() -> None:
    outcome = consider(facts(), target("fp32", "int4", memory_bytes=MB))
    assert outcome.candidates == []
    assert "fp32 needs" in outcome.impossible
    assert "int4 needs" in outcome.impossible
    assert plan(facts(), target("fp32", "int4", memory_bytes=MB)) == []


def test_a_class_that_accepts_nothing() -> None:
    outcome = consider(facts(), target())
    assert outcome.candidates == []
    assert "accepts no precision" in outcome.impossible


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-qdq", "int4"])
def test_nothing_to_quantise(precision: Precision) -> None:
    small = facts(layers=[layer("tiny", "MatMul", 10)])
    assert precisions(small, target(precision, "fp32")) == ["fp32"]
    (reason,) = explain_rejections(small, target(precision, "fp32"))
    assert reason.startswith(f"{precision} does not apply")


def test_a_convolution_takes_static_int8_only() -> None:
    model = facts(layers=[layer("conv", "Conv", 20 * MB, int8_qdq=5e-5)])
    assert precisions(model, target("int4", "int8-dynamic", "int8-qdq")) == ["int8-qdq"]


def test_fp16_needs_floating_point_weights() -> None:
    trees = facts(parameters=0, layers=[])
    assert precisions(trees, target("fp16", "fp32")) == ["fp32"]
    assert "no floating-point weights" in explain_rejections(trees, target("fp16", "fp32"))[0]


def test_measured_quality_below_the_floor_leaves_a_precision_out() -> None:
    wanted = target("int4", "fp32", quality_floor=0.98)
    outcome = consider(facts(), wanted, measured={"int4": 0.9712})
    assert [c.recipe.precision for c in outcome.candidates] == ["fp32"]
    assert outcome.rejections[0].code == "quality"
    assert "0.9712" in outcome.rejections[0].reason


def test_measured_quality_replaces_the_prediction() -> None:
    (candidate,) = plan(facts(), target("int4"), measured={"int4": 0.999})
    assert candidate.predicted_quality == 0.999
    assert any(reason.startswith("Measured quality 0.9990") for reason in candidate.reasons)


def test_predicted_quality_below_the_floor_is_built_all_the_same() -> None:
    (candidate,) = plan(facts(), target("int4", quality_floor=0.99))
    assert candidate.predicted_quality < 0.99
    assert any("built and measured all the same" in reason for reason in candidate.reasons)


def test_latency_above_the_class_s_is_said() -> None:
    slow, quick = (plan(facts(), target("fp32", latency_ms=ms))[0] for ms in (5.0, 50.0))
    assert any("above the class's 5.0 ms" in reason for reason in slow.reasons)
    assert not any("latency" in reason for reason in quick.reasons)


def test_synthetic_samples_are_said() -> None:
    (candidate,) = plan(facts(synthetic_samples=True), target("fp32"))
    assert any("generated inputs" in reason for reason in candidate.reasons)


def test_sizes() -> None:
    sizes = {p: predict_size_bytes(facts(), p) for p in ("fp32", "fp16", "int8-dynamic", "int8-qdq", "int4")}
    assert sizes["fp32"] == 90 * MB
    assert sizes["fp16"] == 46 * MB
    assert sizes["int8-dynamic"] == sizes["int8-qdq"] == pytest.approx(27.42 * MB)
    assert sizes["int4"] == pytest.approx(18.83 * MB, rel=0.01)


def test_memory_of_fp16_depends_on_the_provider() -> None:
    gpu = target("fp16", accelerator="gpu", execution_provider="WebGpuExecutionProvider")
    assert predict_memory_bytes(facts(), target("fp16"), "fp16") == 104 * MB
    assert predict_memory_bytes(facts(), gpu, "fp16") == 60 * MB


def test_memory_has_a_floor() -> None:
    lean = facts(memory_bytes=0)
    assert predict_memory_bytes(lean, target("fp32"), "fp32") == 90 * MB + (4 << 20)


def test_quality_falls_with_the_weights_error() -> None:
    values = [predict_quality(facts(), p) for p in ("fp32", "fp16", "int8-dynamic", "int4")]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0
    ruined = facts(layers=[layer("dense", "MatMul", 100, int4=1.0)])
    assert predict_quality(ruined, "int4") == 0.0
    assert predict_quality(facts(layers=[]), "fp16") == 1.0
