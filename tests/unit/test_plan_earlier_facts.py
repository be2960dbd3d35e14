"""Versions inspected under contract 1 keep being planned: one precision for all layers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from quantize_worker.contract import LayerFacts, MeasuredBuild, ModelFacts, Precision, Recipe, Target
from quantize_worker.plan import consider, describe, pareto, predict, recipe_digest
from tests.simulators.model_facts import MB, model, target

EVERY = {"int8_dynamic": 5e-5, "int8_qdq": 5e-5, "int4": 6e-3}


def layer(name: str, operator: str, parameters: int, **sensitivity: float) -> LayerFacts:
    return LayerFacts(
        name=name,
        operator=operator,
        parameters=parameters,
        quantizable=bool(sensitivity),
        sensitivity={"fp16": 4e-8, **{key.replace("_", "-"): value for key, value in sensitivity.items()}},
    )


def facts(**changes: Any) -> ModelFacts:
    layers = [layer("dense", "MatMul", 11 * MB, **EVERY), layer("table", "Gather", 10 * MB, **EVERY)]
    base = msgspec.structs.replace(
        model(),
        parameters=22 * MB,
        source_bytes=90 * MB,
        weight_bytes=88 * MB,
        memory_bytes=102 * MB,
        layers=layers,
    )
    return msgspec.structs.replace(base, **changes)


def precisions(wanted: Target, *measured: MeasuredBuild, **changes: Any) -> list[str]:
    return [plan.recipe.precision for plan in consider(facts(**changes), wanted, measured).candidates]


def recipe(precision: Precision) -> Recipe:
    return consider(facts(), target(precision)).candidates[0].recipe


def test_the_class_order_rules() -> None:
    assert precisions(target("int4", "fp32", "int8-dynamic")) == ["int4", "fp32", "int8-dynamic"]
    assert precisions(target("int4", "int4", "fp16")) == ["int4", "fp16"]


def test_recipes_are_those_of_contract_1() -> None:
    npu = target("int8-qdq", accelerator="npu", execution_provider="QNNExecutionProvider", emulated=True)
    (candidate,) = consider(facts(), npu).candidates
    assert candidate.recipe == Recipe(
        precision="int8-qdq", accelerator="npu", execution_provider="QNNExecutionProvider", emulated=True
    )
    assert "emulated npu" in candidate.reasons[0]
    assert recipe("int4").block_size == 32
    assert recipe("fp16").block_size is None
    assert len({recipe_digest("s", recipe("int4")), recipe_digest("s", recipe("fp16"))}) == 2
    assert describe(recipe("int4"), facts()) == "int4"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"storage_bytes": 30 * MB}, "storage"),
        ({"memory_bytes": 60 * MB}, "memory"),
        ({"latency_ms": 8.0}, "latency"),
    ],
)
def test_what_does_not_fit_is_explained(changes: dict[str, Any], code: str) -> None:
    outcome = consider(facts(), target("fp32", "int8-dynamic", **changes))
    assert [plan.recipe.precision for plan in outcome.candidates] == ["int8-dynamic"]
    (rejection,) = outcome.rejections
    assert (rejection.precision, rejection.code) == ("fp32", code)
    assert f"of {code}, class entry allows" in rejection.reason


def test_impossible_says_why_for_every_precision() -> None:
    outcome = consider(facts(), target("fp32", "int4", memory_bytes=MB))
    assert outcome.candidates == []
    assert "fp32 needs" in outcome.impossible
    assert "int4 needs" in outcome.impossible


def test_precisions_that_do_not_apply() -> None:
    small = {"layers": [layer("tiny", "MatMul", 10)]}
    assert precisions(target("int8-dynamic", "fp32"), **small) == ["fp32"]
    conv = {"layers": [layer("conv", "Conv", 20 * MB, int8_qdq=5e-5)]}
    assert precisions(target("int4", "int8-dynamic", "int8-qdq"), **conv) == ["int8-qdq"]
    (newer,) = consider(facts(), target("int8", "fp32")).rejections
    assert "inspect it again" in newer.reason
    (none,) = consider(facts(parameters=0), target("fp16", "fp32")).rejections
    assert "no floating-point weights" in none.reason


def test_a_measured_build_replaces_the_prediction() -> None:
    low = MeasuredBuild(recipe=recipe("int4"), quality=0.9712, cosine=0.9712)
    outcome = consider(facts(), target("int4", "fp32", quality_floor=0.98), [low])
    assert [plan.recipe.precision for plan in outcome.candidates] == ["fp32"]
    assert "0.9712" in outcome.rejections[0].reason
    high = MeasuredBuild(recipe=recipe("int4"), quality=0.999, cosine=0.999)
    (plan,) = consider(facts(), target("int4"), [high]).candidates
    assert plan.predicted_quality == 0.999
    assert any(reason.startswith("Measured quality 0.9990") for reason in plan.reasons)


def test_a_prediction_below_the_floor_is_built_all_the_same() -> None:
    (plan,) = consider(facts(), target("int4", quality_floor=0.99)).candidates
    assert any("built and measured all the same" in reason for reason in plan.reasons)


def test_predictions() -> None:
    names: tuple[Precision, ...] = ("fp32", "fp16", "int8-dynamic", "int4")
    predicted = {name: predict(facts(), target(name), recipe(name)) for name in names}
    assert predicted["fp32"].size_bytes == 90 * MB
    assert predicted["fp16"].size_bytes == 46 * MB
    assert predicted["int8-dynamic"].size_bytes == pytest.approx(27.42 * MB)
    assert predicted["int4"].size_bytes == pytest.approx(18.83 * MB, rel=0.01)
    assert predicted["fp16"].memory_bytes == 104 * MB
    gpu = target("fp16", execution_provider="WebGpuExecutionProvider")
    assert predict(facts(), gpu, recipe("fp16")).memory_bytes == 60 * MB
    qualities = [predicted[name].quality for name in names]
    assert qualities == sorted(qualities, reverse=True)
    assert qualities[0] == 1.0


def test_the_front_has_the_precisions() -> None:
    points = pareto(facts(), target("int4", "int8-dynamic", "fp32"))
    assert [point.formats for point in points] == [{"int4": 1.0}, {"int8-dynamic": 1.0}, {"fp32": 1.0}]
