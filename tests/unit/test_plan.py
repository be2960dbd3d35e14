"""The planner: what a class gets, why, and what would help a class that gets nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.model_facts import encoder_facts
from quantize_worker.contract import (
    Interaction,
    LayerFacts,
    MeasuredBuild,
    ModelFacts,
    Objective,
    Precision,
    ProductFacts,
    Recipe,
    TailorPlan,
    Target,
)
from quantize_worker.formats import FORMATS
from quantize_worker.plan import MARGIN, consider, describe, predict, recipe_digest
from tests.simulators.model_facts import (
    CONV,
    EVERY,
    KB,
    MATRIX,
    MB,
    OTHER,
    TABLE,
    encoder,
    layer,
    model,
    target,
)


def best(facts: ModelFacts, wanted: Target, measured: tuple[MeasuredBuild, ...] = ()) -> TailorPlan:
    return consider(facts, wanted, measured).candidates[0]


def used(plan: TailorPlan) -> set[str]:
    return set(plan.recipe.layers.values())


# Objectives and budgets


def test_smallest_over_the_floor() -> None:
    plan = best(encoder(), target(*EVERY, quality_floor=0.98))
    assert plan.predicted_quality >= 0.98
    assert plan.predicted_size_bytes < 0.2 * encoder().source_bytes
    assert plan.bound == "floor"


def test_sensitive_layers_get_more_bits() -> None:
    plan = best(encoder(), target("int4", "int8", quality_floor=0.99))
    bits = [FORMATS[plan.recipe.layers[f"dense{index}"]].bits for index in range(6)]
    assert bits == sorted(bits, reverse=True)
    assert set(bits) == {4, 8}


def test_a_lower_floor_never_makes_a_larger_model() -> None:
    floors = [0.999, 0.995, 0.99, 0.98, 0.97, 0.95, 0.9]
    sizes = [best(encoder(), target(*EVERY, quality_floor=floor)).predicted_size_bytes for floor in floors]
    assert all(later <= earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] < sizes[0]


def test_more_storage_never_makes_a_worse_model() -> None:
    budgets = [7 * MB, 8 * MB, 10 * MB, 14 * MB, 20 * MB, 60 * MB]
    wanted = [target(*EVERY, objective="quality", quality_floor=0.9, storage_bytes=each) for each in budgets]
    plans = [best(encoder(), each) for each in wanted]
    losses = [1 - plan.predicted_cosine for plan in plans]
    assert all(plan.predicted_size_bytes <= size for plan, size in zip(plans, budgets, strict=True))
    assert all(later <= earlier * 1.001 + 1e-5 for earlier, later in pairwise(losses))
    assert plans[0].bound == "storage"
    assert losses[-1] < 1e-4


def test_fastest_uses_what_was_measured_per_phase() -> None:
    """Long batches: dynamic INT8 is faster than FP32, INT4 slower. Single tokens: INT4 is fastest."""
    wanted = target("int4", "int8-dynamic", "fp32", objective="latency", quality_floor=0.95)
    long, facts = best(encoder_facts(), wanted), encoder_facts()
    short = msgspec.structs.replace(
        facts, layers=[msgspec.structs.replace(each, rows=1.0) for each in facts.layers], latency_p50_ms=5.0
    )
    matrices = [each.name for each in facts.layers if each.operator == "MatMul"]
    chosen = best(short, wanted).recipe.layers
    kinds = {FORMATS[chosen[name]].precision for name in matrices}
    dynamic = [name for name in matrices if long.recipe.layers.get(name) == "int8-dynamic"]
    assert len(dynamic) == len(matrices)
    assert long.predicted_latency_ms < 0.7 * facts.latency_p50_ms
    assert kinds == {"int4"}


def test_a_latency_budget_is_kept() -> None:
    facts = encoder_facts()
    slow = best(facts, target("int4", "int8-dynamic"))
    quick = best(facts, target("int4", "int8-dynamic", latency_ms=0.7 * slow.predicted_latency_ms))
    assert quick.predicted_latency_ms <= 0.7 * slow.predicted_latency_ms < slow.predicted_latency_ms
    assert quick.predicted_size_bytes > slow.predicted_size_bytes
    assert quick.bound == "latency"
    assert any("the class allows" in reason and "ms" in reason for reason in quick.reasons)


def test_a_memory_budget_is_kept() -> None:
    roomy = best(encoder(), target("int8", "int8-dynamic", "fp32", objective="quality"))
    tight = target("int8", "int8-dynamic", "fp32", objective="quality", memory_bytes=27 * MB)
    plan = best(encoder(), tight)
    assert plan.predicted_memory_bytes <= 27 * MB < roomy.predicted_memory_bytes
    assert plan.bound == "memory"


def test_an_energy_budget_is_kept_and_called_an_estimate() -> None:
    free = best(encoder(), target(*EVERY, objective="quality"))
    wanted = target(*EVERY, objective="quality", energy_mwh=0.6 * free.predicted_energy_mwh)
    plan = best(encoder(), wanted)
    assert 0 < plan.predicted_energy_mwh <= 0.6 * free.predicted_energy_mwh
    assert plan.bound == "energy"
    assert any(reason.startswith("Estimated energy") for reason in plan.reasons)


def test_the_loss_of_the_plan_leaves_room_for_errors_of_the_prediction() -> None:
    plan = best(encoder(), target(*EVERY, quality_floor=0.98))
    assert 1 - plan.predicted_cosine <= MARGIN * 0.02 * (1 + 1e-9)


def test_losses_that_do_not_just_add_up_still_keep_the_floor() -> None:
    """Laws steeper, milder and different per precision; the knapsack sees lines only."""
    laws = [
        {"int4": Interaction(factor=2.0, power=1.4, points=[(0.001, 0.0005), (0.05, 0.06)])},
        {"int4": Interaction(factor=0.5, power=0.7, points=[(0.001, 0.005), (0.05, 0.06)])},
        {"int4": Interaction(factor=3.0, power=1.2), "int8": Interaction(factor=8.0, power=1.1)},
    ]
    for interaction in laws:
        for floor in (0.96, 0.98, 0.99):
            facts = encoder(10, interaction=interaction)
            plan = best(facts, target("int4", "int8", "fp32", quality_floor=floor))
            assert 1 - plan.predicted_cosine <= MARGIN * (1 - floor) * (1 + 1e-9)
            assert plan.predicted_size_bytes < 0.5 * facts.source_bytes


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.sampled_from([100 * KB, 300 * KB, MB]), min_size=1, max_size=7),
    sensitive=st.lists(st.floats(1e-5, 0.05), min_size=7, max_size=7),
    floor=st.floats(0.8, 0.9999),
    storage=st.floats(0.1, 1.1),
    objective=st.sampled_from(["size", "latency", "quality"]),
    latency=st.one_of(st.none(), st.floats(5.0, 25.0)),
)
def test_whatever_is_planned_keeps_floor_and_budgets(
    sizes: list[int],
    sensitive: list[float],
    floor: float,
    storage: float,
    objective: Objective,
    latency: float | None,
) -> None:
    layers = [layer(f"l{i}", size, loss=sensitive[i]) for i, size in enumerate(sizes)]
    facts = model(*layers)
    wanted = target(
        "int4",
        "int8",
        "int8-dynamic",
        "fp16",
        quality_floor=floor,
        objective=objective,
        storage_bytes=int(storage * facts.source_bytes),
        latency_ms=latency,
    )
    outcome = consider(facts, wanted)
    assert outcome == consider(facts, wanted)
    for candidate in outcome.candidates:
        assert candidate.predicted_size_bytes <= wanted.storage_bytes
        assert latency is None or candidate.predicted_latency_ms <= latency * (1 + 1e-6)
        again = predict(facts, wanted, candidate.recipe)
        assert again.size_bytes == candidate.predicted_size_bytes
        assert again.quality == pytest.approx(candidate.predicted_quality)
    if len(outcome.candidates) == 2:
        first, careful = outcome.candidates
        assert first.predicted_quality >= floor - 1e-9
        assert careful.predicted_quality >= first.predicted_quality - 1e-4
    if not outcome.candidates:
        assert outcome.impossible


# What would help


def test_the_nearest_budget_is_enough() -> None:
    wanted = target("int4", "int8", storage_bytes=5 * MB, quality_floor=0.98)
    outcome = consider(encoder(), wanted)
    assert outcome.candidates == []
    assert outcome.nearest is not None
    assert outcome.nearest.budget == "storage"
    assert outcome.nearest.needed > 5 * MB
    assert (
        f"needs {outcome.nearest.needed / MB:.1f} MB of storage, the class allows 5.0 MB"
        in outcome.impossible
    )
    enough = msgspec.structs.replace(wanted, storage_bytes=int(outcome.nearest.needed))
    assert consider(encoder(), enough).candidates


def test_the_floor_that_would_fit_is_named_beside_the_storage() -> None:
    wanted = target("int4", "int8", storage_bytes=int(5.6 * MB), quality_floor=0.995)
    outcome = consider(encoder(), wanted)
    assert outcome.nearest is not None
    assert outcome.candidates == []
    named = {one.budget: one for one in (outcome.nearest, *outcome.nearest.also)}
    assert set(named) == {"storage", "floor"}
    assert f"at quality {named['floor'].needed:g} instead of 0.995 it would fit" in outcome.impossible
    lower = msgspec.structs.replace(wanted, quality_floor=named["floor"].needed)
    assert consider(encoder(), lower).candidates


def test_a_floor_out_of_reach_says_what_is_in_reach() -> None:
    wanted = target("int8-dynamic", quality_floor=0.9999)
    outcome = consider(encoder(), wanted)
    assert outcome.nearest is not None
    assert outcome.nearest.budget == "floor"
    assert outcome.impossible.startswith("The model fits at quality 0.99")
    lower = msgspec.structs.replace(wanted, quality_floor=outcome.nearest.needed)
    assert consider(encoder(), lower).candidates


@pytest.mark.parametrize(
    ("changes", "budget"),
    [
        ({"memory_bytes": 15 * MB}, "memory"),
        ({"latency_ms": 1.5}, "latency"),
        ({"energy_mwh": 1e-6}, "energy"),
    ],
)
def test_every_budget_can_be_the_nearest(changes: dict[str, Any], budget: str) -> None:
    wanted = target("int4", "int8", "int8-dynamic", "fp32", **changes)
    outcome = consider(encoder(), wanted)
    assert outcome.candidates == []
    assert outcome.nearest is not None
    assert outcome.nearest.budget == budget
    names = {"memory": "memory_bytes", "latency": "latency_ms", "energy": "energy_mwh"}
    needed = int(outcome.nearest.needed) if budget == "memory" else outcome.nearest.needed
    assert consider(encoder(), msgspec.structs.replace(wanted, **{names[budget]: needed})).candidates


def test_budgets_that_lack_together_are_all_named() -> None:
    outcome = consider(encoder(), target("int4", "int8", storage_bytes=MB, memory_bytes=10 * MB))
    assert outcome.nearest is not None
    assert outcome.nearest.together
    assert "of storage, the class allows" in outcome.impossible
    assert "and needs" in outcome.impossible
    assert "of memory, the class allows" in outcome.impossible


def test_a_prediction_just_below_the_floor_is_built_all_the_same() -> None:
    reach = best(encoder(), target("int8-dynamic", quality_floor=0.5)).predicted_quality
    just_above = 1 - 0.8 * (1 - reach)
    outcome = consider(encoder(), target("int8-dynamic", quality_floor=just_above))
    (candidate,) = outcome.candidates
    assert candidate.predicted_quality < just_above
    assert any("built and measured all the same" in reason for reason in candidate.reasons)


# Whole models, and precisions that are not used


def test_a_class_that_accepts_nothing() -> None:
    outcome = consider(encoder(), target())
    assert outcome.candidates == []
    assert "accepts no precision" in outcome.impossible


def test_whole_fp32_has_no_layers() -> None:
    plan = best(encoder(), target("fp32"))
    assert plan.recipe == Recipe(
        precision="fp32", accelerator="cpu", execution_provider="CPUExecutionProvider", emulated=False
    )
    assert plan.predicted_quality == 1.0
    assert plan.predicted_size_bytes == pytest.approx(encoder().source_bytes, rel=1e-3)


def test_a_gpu_gets_the_whole_model_in_fp16() -> None:
    gpu = target("fp16", "fp32", accelerator="gpu", execution_provider="WebGpuExecutionProvider")
    plan, careful = consider(encoder(), gpu).candidates
    assert (plan.recipe.precision, plan.recipe.layers) == ("fp16", {})
    assert (careful.recipe.precision, careful.recipe.layers) == ("fp32", {})
    assert plan.predicted_memory_bytes < careful.predicted_memory_bytes
    assert {choice.format for choice in plan.choices} == {"fp16"}


def test_whole_fp16_on_a_cpu_saves_storage_only() -> None:
    on_cpu = predict(encoder(), target("fp16"), Recipe(precision="fp16", **_place(target("fp16"))))
    fp32 = predict(encoder(), target("fp32"), Recipe(precision="fp32", **_place(target("fp32"))))
    assert on_cpu.size_bytes < 0.51 * fp32.size_bytes
    assert on_cpu.memory_bytes == fp32.memory_bytes
    assert on_cpu.latency_ms > fp32.latency_ms


def _place(wanted: Target) -> dict[str, Any]:
    return {
        "accelerator": wanted.accelerator,
        "execution_provider": wanted.execution_provider,
        "emulated": wanted.emulated,
    }


def test_what_does_not_fit_is_explained_per_precision() -> None:
    outcome = consider(encoder(), target("fp32", "fp16", "int4", storage_bytes=12 * MB))
    reasons = {one.precision: (one.code, one.reason) for one in outcome.rejections}
    assert reasons["fp32"][0] == reasons["fp16"][0] == "storage"
    assert "fp32 needs 40.0 MB of storage, class entry allows 12.0 MB" in reasons["fp32"][1]
    assert "int4" not in reasons


def test_precisions_that_are_not_used_say_why() -> None:
    outcome = consider(encoder(), target("int4", "int8-dynamic", "fp32", "int8-qdq16", quality_floor=0.9))
    codes = {one.precision: one.code for one in outcome.rejections}
    assert codes == {"int8-dynamic": "not_better", "fp32": "not_better", "int8-qdq16": "not_better"}
    npu = consider(encoder(), target("int8-qdq", "int8-dynamic", accelerator="npu", quality_floor=0.9))
    assert {one.precision: one.code for one in npu.rejections} == {"int8-dynamic": "provider"}
    assert "the NPU of class entry does not run it" in npu.rejections[0].reason


def test_nothing_to_shrink() -> None:
    trees = model(parameters=0)
    assert best(trees, target("int8-dynamic", "fp16", "fp32")).recipe.precision == "fp32"
    outcome = consider(trees, target("int8-dynamic", "fp16"))
    assert outcome.candidates == []
    assert outcome.nearest is None
    assert "int8-dynamic does not apply" in outcome.impossible
    assert "no floating-point weights" in outcome.impossible


def test_a_quality_that_fp16_does_not_reach() -> None:
    poor = layer("dense", MB, formats=("fp32", "fp16-stored", "int8-b32"))
    poor = msgspec.structs.replace(
        poor,
        formats={
            name: msgspec.structs.replace(each, loss=0.2 * (name != "fp32"))
            for name, each in poor.formats.items()
        },
    )
    outcome = consider(model(poor), target("fp16", quality_floor=0.99))
    (rejection,) = outcome.rejections
    assert rejection.code == "quality"
    assert outcome.nearest is not None
    assert outcome.nearest.budget == "floor"


# Providers


def test_an_npu_takes_static_formats_wherever_there_are_any() -> None:
    facts = model(
        layer("conv", MB, operator="Conv", formats=CONV),
        layer("dense", MB),
        layer("table", MB, operator="Gather", formats=TABLE),
        layer("gru", MB, operator="GRU", formats=OTHER),
    )
    npu = target("int8-qdq", "int4", accelerator="npu", quality_floor=0.9)
    plan = best(facts, npu)
    assert plan.recipe.layers["conv"] == plan.recipe.layers["dense"] == "int8-qdq"
    assert plan.recipe.layers["table"].startswith("int4")
    assert plan.recipe.layers["gru"] == "int8-stored"
    assert (
        best(facts, target("int8-qdq", accelerator="npu", quality_floor=0.9)).recipe.precision == "int8-qdq"
    )


def test_an_npu_takes_static_products_too() -> None:
    products = ProductFacts(names=["p"], multiplies=1e6, loss={"int8-qdq": 0.004, "int8-qdq16": 1e-4})
    facts = encoder(products=products)
    careless = best(facts, target("int8-qdq", "int8-qdq16", accelerator="npu", quality_floor=0.9))
    careful = best(facts, target("int8-qdq", "int8-qdq16", accelerator="npu", quality_floor=0.999))
    assert careless.recipe.products == "int8-qdq"
    assert careful.recipe.products == "int8-qdq16"
    assert careless.predicted_cosine < 1 - 0.004
    assert best(facts, target("int8-dynamic")).recipe.products == ""
    assert (
        best(facts, target("int8-qdq", "fp32", accelerator="npu", quality_floor=0.999)).recipe.products == ""
    )
    assert "products int8-qdq" in describe(careless.recipe, facts)


def test_a_gpu_takes_no_static_or_dynamic_eight_bits() -> None:
    gpu = target("int4", "int8-dynamic", "int8-qdq", "fp32", accelerator="gpu", quality_floor=0.999)
    plan = best(encoder(), gpu)
    assert not used(plan) & {"int8-dynamic", "int8-qdq", "fp16-stored"}
    codes = {one.precision: one.code for one in consider(encoder(), gpu).rejections}
    assert codes["int8-dynamic"] == codes["int8-qdq"] == "provider"


def test_a_layer_stays_in_fp32_only_where_nothing_else_is_accepted() -> None:
    facts = model(
        layer("dense", MB), layer("odd", MB, operator="Custom", formats=("fp32",), reason="unknown operator")
    )
    plan = best(facts, target("int8", quality_floor=0.9))
    assert set(plan.recipe.layers) == {"dense"}
    assert plan.choices[1].reason == "fp32: unknown operator."
    only = consider(model(layer("odd", MB, operator="Custom", formats=("fp32",))), target("int8"))
    assert only.candidates == []


# Shared weights


def test_a_shared_weight_is_counted_once() -> None:
    tied = [layer(f"use{i}", MB, weight="shared") for i in range(3)]
    facts = model(*tied)
    place = _place(target("int8"))
    fp32 = predict(facts, target("fp32"), Recipe(precision="fp32", **place))
    assert fp32.size_bytes == pytest.approx(4 * MB + 10 * KB, rel=0.01)
    plan = best(facts, target("int8", quality_floor=0.9))
    assert len(used(plan)) == 1
    assert plan.predicted_size_bytes == pytest.approx(1.03 * MB, rel=0.05)


def test_a_table_and_a_matrix_that_share_a_weight_may_differ() -> None:
    facts = model(
        layer("table", MB, operator="Gather", formats=TABLE, weight="tied", loss=0.001),
        layer("head", MB, weight="tied", loss=0.03),
    )
    plan = best(facts, target("int4", "int8", quality_floor=0.99))
    assert plan.recipe.layers["table"] != plan.recipe.layers["head"]
    assert plan.predicted_size_bytes < 1.7 * MB


def test_many_layers_on_one_weight_take_one_format() -> None:
    facts = model(*[layer(f"l{i}", MB, weight="w", loss=0.001) for i in range(12)])
    plan = best(facts, target("int4", "int8", quality_floor=0.98))
    assert len(plan.recipe.layers) == 12
    assert len(used(plan)) == 1


# Recipes


def test_the_recipe_is_the_target_s() -> None:
    npu = target("int8-qdq", accelerator="npu", execution_provider="QNNExecutionProvider", emulated=True)
    plan = best(encoder(), npu)
    assert (plan.recipe.accelerator, plan.recipe.execution_provider) == ("npu", "QNNExecutionProvider")
    assert plan.recipe.emulated
    assert "emulated npu, QNNExecutionProvider" in plan.reasons[0]


def test_classes_with_equal_plans_share_a_recipe() -> None:
    one = best(encoder(), target("int4", name="entry", memory_bytes=300 * MB)).recipe
    other = best(encoder(), target("int4", name="budget", memory_bytes=400 * MB)).recipe
    assert recipe_digest("s", one) == recipe_digest("s", other)
    third = best(encoder(), target("int8")).recipe
    assert len({recipe_digest("s", one), recipe_digest("s", third), recipe_digest("t", one)}) == 3


def test_the_precision_of_a_recipe_is_that_of_most_weights() -> None:
    mixed = best(encoder(), target("int4", "int8", quality_floor=0.985))
    assert mixed.recipe.precision == "int4"
    table = model(layer("table", 20 * MB, operator="Gather", formats=TABLE), layer("dense", MB))
    assert best(table, target("int8-dynamic", quality_floor=0.9)).recipe.precision == "int8-dynamic"
    assert best(table, target("int8-dynamic", quality_floor=0.9)).recipe.layers["table"] == "int8-b128"


def test_recipes_in_words() -> None:
    facts = encoder(1)
    recipe = Recipe(
        precision="int4", layers={"table": "int4-b32", "dense0": "int8-b32"}, **_place(target("int4"))
    )
    assert describe(recipe, facts) == "int4 80 %, int8 20 %"
    assert (
        describe(msgspec.structs.replace(recipe, layers={"table": "int4-b32"}), facts)
        == "int4 80 %, fp32 20 %"
    )
    assert describe(msgspec.structs.replace(recipe, learned=True), facts).endswith(", learned")
    assert describe(Recipe(precision="fp16", **_place(target("fp16"))), facts) == "fp16"
    whole = msgspec.structs.replace(recipe, layers={"table": "int4-b32", "dense0": "int4-b128"})
    assert describe(whole, facts) == "int4"


# Explanations


def test_every_layer_says_what_was_chosen_and_what_the_next_would_cost() -> None:
    facts = encoder()
    plan = best(facts, target("int4", "int8", quality_floor=0.985))
    assert [choice.layer for choice in plan.choices] == [each.name for each in facts.layers]
    assert all(choice.reason.startswith(f"{choice.format}: ") for choice in plan.choices)
    assert all(choice.format == plan.recipe.layers[choice.layer] for choice in plan.choices)
    told = plan.choices[1].reason
    assert "saves" in told
    assert "of loss" in told
    assert any("would save" in choice.reason and "more" in choice.reason for choice in plan.choices)
    total = sum(choice.loss for choice in plan.choices)
    assert total == pytest.approx(1 - plan.predicted_cosine, rel=1e-6)


def test_explanations_follow_the_objective() -> None:
    quick = best(
        encoder_facts(), target("int4", "int8-dynamic", "fp32", objective="latency", quality_floor=0.995)
    )
    assert any("ms instead of" in choice.reason for choice in quick.choices)
    assert any("would take" in choice.reason for choice in quick.choices)
    assert any("fp32: takes" in choice.reason for choice in quick.choices)
    good = best(encoder(), target(*EVERY, objective="quality", storage_bytes=9 * MB))
    assert any("of loss in" in choice.reason for choice in good.choices)
    assert any("would save" in choice.reason and "of loss for" in choice.reason for choice in good.choices)
    assert good.reasons[0].startswith("Best quality within the budgets for class entry")


def test_a_better_format_that_breaks_a_budget_is_named() -> None:
    """Dynamic INT8 costs no more loss here, but more bytes than storage has."""
    free = layer("dense", MB, loss=0.001)
    forms = dict(free.formats)
    forms["int8-dynamic"] = msgspec.structs.replace(forms["int8-dynamic"], loss=0.0)
    facts = model(msgspec.structs.replace(free, formats=forms), layer("other", MB, loss=0.001))
    plan = best(facts, target("int4", "int8-dynamic", objective="latency", storage_bytes=int(1.3 * MB)))
    assert plan.bound == "storage"
    assert any("would be faster, but breaks a budget" in choice.reason for choice in plan.choices)


def test_nothing_binds_where_the_best_is_free() -> None:
    assert best(encoder(), target("int8-dynamic", quality_floor=0.5)).bound == ""
    assert best(model(), target("fp32")).bound == ""


def test_synthetic_samples_are_said() -> None:
    plan = best(encoder(synthetic_samples=True), target("fp32"))
    assert any("generated inputs" in reason for reason in plan.reasons)


# After a build was measured


def measured(plan: TailorPlan, cosine: float, **changes: Any) -> MeasuredBuild:
    return MeasuredBuild(recipe=plan.recipe, quality=cosine, cosine=cosine, **changes)


def test_a_rejected_plan_is_corrected() -> None:
    wanted = target("int4", "int8", quality_floor=0.98)
    first, careful = consider(encoder(), wanted).candidates
    build = measured(first, 0.974)
    second = best(encoder(), wanted, (build,))
    assert second.recipe != first.recipe
    assert second.predicted_size_bytes > first.predicted_size_bytes
    corrected = predict(encoder(), wanted, second.recipe, (build,))
    assert corrected.quality >= 0.98
    assert second.recipe != careful.recipe
    assert any("corrected by 1 measured build" in reason for reason in second.reasons)


def test_a_build_below_the_floor_is_never_proposed_again() -> None:
    wanted = target("int4", "int8", quality_floor=0.98)
    builds: tuple[MeasuredBuild, ...] = ()
    seen: list[Recipe] = []
    for _ in range(4):
        candidates = consider(encoder(), wanted, builds).candidates
        if not candidates:
            break
        assert all(candidate.recipe not in seen for candidate in candidates)
        seen.append(candidates[0].recipe)
        builds += (measured(candidates[0], 0.9799),)
    assert len(seen) > 1


def test_a_rejected_only_choice_leaves_nothing() -> None:
    wanted = target("fp16", accelerator="gpu", quality_floor=0.99)
    first = best(encoder(), wanted)
    outcome = consider(encoder(), wanted, [measured(first, 0.9)])
    assert outcome.candidates == []
    assert outcome.impossible


def test_a_measured_build_that_is_good_corrects_the_prediction() -> None:
    wanted = target("int4", "int8", quality_floor=0.98)
    first = best(encoder(), wanted)
    better = best(encoder(), wanted, (measured(first, 0.992),))
    assert better.predicted_size_bytes < first.predicted_size_bytes
    assert predict(encoder(), wanted, first.recipe, (measured(first, 0.992),)).quality == 0.992


def test_labels_lost_faster_than_predicted_are_learned() -> None:
    """Cosine as predicted, accuracy below the floor: the next plan loses less cosine."""
    facts = encoder(has_labels=True, accuracy=0.9, accuracy_loss=0.5)
    wanted = target("int4", "int8", quality_floor=0.98)
    first = best(facts, wanted)
    assert 1 - first.predicted_cosine > 0.02
    build = MeasuredBuild(recipe=first.recipe, quality=0.96, cosine=first.predicted_cosine)
    second = best(facts, wanted, (build,))
    assert second.predicted_cosine > first.predicted_cosine
    assert second.predicted_quality >= 0.98


def test_devices_correct_the_latency() -> None:
    wanted = target("int4", "int8-dynamic")
    first = best(encoder_facts(), wanted)
    slow = measured(first, first.predicted_cosine, latency_ms=3 * first.predicted_latency_ms)
    again = predict(encoder_facts(), wanted, first.recipe, (slow,))
    assert again.latency_ms == pytest.approx(3 * first.predicted_latency_ms)
    other = best(encoder_facts(), target("int8-dynamic")).recipe
    ratio = (
        predict(encoder_facts(), wanted, other, (slow,)).latency_ms
        / predict(encoder_facts(), wanted, other).latency_ms
    )
    assert ratio == pytest.approx(3.0)


def test_builds_of_unknown_layers_are_left_aside() -> None:
    strange = Recipe(precision="int4", layers={"gone": "int4-b32"}, **_place(target("int4")))
    old = Recipe(precision="int4", block_size=32, **_place(target("int4")))
    builds = [MeasuredBuild(recipe=each, quality=0.1, cosine=0.1) for each in (strange, old)]
    assert best(encoder(), target("int4"), tuple(builds)).recipe == best(encoder(), target("int4")).recipe


# Scale


def test_four_hundred_layers_with_two_budgets() -> None:
    facts = encoder_facts(blocks=66, width=128)
    wanted = target(
        "int4", "int8", "int8-dynamic", "fp32", quality_floor=0.9, latency_ms=0.9 * facts.latency_p50_ms
    )
    plan = best(facts, wanted)
    assert len(plan.choices) == 398
    assert plan.predicted_quality >= 0.9
    assert plan.predicted_latency_ms <= 0.9 * facts.latency_p50_ms


def test_layers_without_formats_count_as_fp32() -> None:
    bare = LayerFacts(name="bare", operator="MatMul", parameters=MB, quantizable=False)
    facts = model(layer("dense", MB, formats=MATRIX), bare)
    plan = best(facts, target("int8", quality_floor=0.9))
    assert plan.predicted_size_bytes == pytest.approx(5.05 * MB, rel=0.02)
    assert set(plan.recipe.layers) == {"dense"}


def test_a_precision_named_twice_counts_once() -> None:
    names: tuple[Precision, ...] = ("int4", "int4", "fp16")
    outcome = consider(encoder(), target(*names))
    assert len({one.precision for one in outcome.rejections}) == len(outcome.rejections)
