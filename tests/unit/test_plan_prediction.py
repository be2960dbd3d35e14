"""What a recipe is predicted to lose, to take and to use."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from quantize_worker.contract import (
    FormatFacts,
    Interaction,
    LayerFacts,
    ModelFacts,
    OperatorCost,
    ProductFacts,
    Recipe,
    WorkerSpeed,
)
from quantize_worker.plan import predict
from quantize_worker.planning.energy import PJ_8_BIT, PJ_FP32, PJ_PER_BYTE
from quantize_worker.planning.losses import INDEX, KINDS, Disturbance, Losses
from quantize_worker.planning.storage import FP32_GAP_BYTES, PAGE_BYTES, stored_bytes
from quantize_worker.planning.words import in_bytes, in_loss, in_ms, in_mwh, needed_words
from tests.simulators.model_facts import MB, TABLE, layer, model, target

SLOW = WorkerSpeed(fp32_gflops=10.0, int8_gops=40.0, memory_gb_s=5.0)
FAST = WorkerSpeed(fp32_gflops=100.0, int8_gops=80.0, memory_gb_s=10.0)


def disturbance(**sums: float) -> Disturbance:
    values = np.zeros(KINDS)
    for name, loss in sums.items():
        values[INDEX[name.replace("_", "-")]] = loss  # type: ignore[index]
    return Disturbance(values)


def recipe(**layers: str) -> Recipe:
    return Recipe(
        precision="int4",
        accelerator="cpu",
        execution_provider="CPUExecutionProvider",
        emulated=False,
        layers={name: form.replace("_", "-") for name, form in layers.items()},
    )


# Losses


def test_without_a_law_losses_add_up() -> None:
    assert Losses.fitted({}).whole(disturbance(int4=0.01, int8=0.002)) == pytest.approx(0.012)
    assert Losses.fitted({}).whole(disturbance()) == 0.0


def test_one_precision_follows_its_law_exactly() -> None:
    losses = Losses.fitted({"int4": Interaction(factor=2.0, power=1.3)})
    assert losses.whole(disturbance(int4=0.01)) == pytest.approx(2.0 * 0.01**1.3)


def test_a_mix_follows_the_laws_at_its_total() -> None:
    losses = Losses.fitted({"int4": Interaction(factor=2.0, power=1.3), "int8": Interaction(factor=1.5)})
    mixed = losses.whole(disturbance(int4=0.008, int8=0.002))
    assert mixed == pytest.approx(0.008 * 2.0 * 0.01**0.3 + 0.002 * 1.5)
    nearly = losses.whole(disturbance(int4=0.01, int8=1e-9))
    assert nearly == pytest.approx(losses.whole(disturbance(int4=0.01)), rel=1e-5)


def test_more_disturbance_never_predicts_less_loss() -> None:
    laws = {"int4": Interaction(factor=2.0, power=1.3, points=[(0.002, 0.001), (0.02, 0.02)])}
    losses = Losses.fitted(laws)
    values = [losses.whole(disturbance(int4=total)) for total in np.geomspace(1e-6, 0.9, 40)]
    assert values == sorted(values)


def test_far_from_its_points_a_law_goes_on_in_proportion() -> None:
    laws = {"int4": Interaction(factor=2.0, power=2.0, points=[(0.004, 2 * 0.004**2), (0.01, 2 * 0.01**2)])}
    losses = Losses.fitted(laws)
    assert losses.whole(disturbance(int4=2e-4)) == pytest.approx(2 * losses.whole(disturbance(int4=1e-4)))
    assert losses.whole(disturbance(int4=0.008)) == pytest.approx(4 * losses.whole(disturbance(int4=0.004)))


def test_a_model_cannot_lose_more_than_everything() -> None:
    assert Losses.fitted({}).whole(disturbance(int4=5.0)) == 1.0


@pytest.mark.parametrize("loss", [1e-5, 0.003, 0.05])
def test_the_total_for_a_loss_is_the_inverse_of_the_law(loss: float) -> None:
    laws = {"int4": Interaction(factor=2.0, power=1.4, points=[(0.002, 0.0003), (0.02, 0.008)])}
    losses = Losses.fitted(laws)
    total = float(losses.total_for(loss)[INDEX["int4"]])
    assert losses.whole(disturbance(int4=total)) == pytest.approx(loss)


def test_a_measured_build_corrects_the_precisions_that_dominate_it() -> None:
    corrected = Losses.fitted({}).corrected([(disturbance(int4=0.009, int8=0.001), 0.02)])
    assert corrected.whole(disturbance(int4=0.009)) == pytest.approx(0.018)
    assert corrected.whole(disturbance(int8=0.001)) == pytest.approx(0.001 * 2**0.2)
    assert corrected.whole(disturbance(int8_dynamic=0.001)) == pytest.approx(0.001)


def test_several_builds_are_averaged() -> None:
    builds = [(disturbance(int4=0.01), 0.02), (disturbance(int4=0.02), 0.01)]
    assert Losses.fitted({}).corrected(builds).whole(disturbance(int4=0.01)) == pytest.approx(0.01)
    assert Losses.fitted({}).corrected([(disturbance(), 0.3)]).whole(disturbance(int4=0.1)) == pytest.approx(
        0.1
    )


def test_products_lose_beside_the_law() -> None:
    facts = model(
        layer("dense", MB),
        products=ProductFacts(names=["p"], multiplies=1e6, loss={"int8-qdq": 0.004}),
        interaction={"int8-qdq": Interaction(factor=3.0)},
    )
    plain = predict(facts, target("int8-qdq"), recipe(dense="int8_qdq"))
    rounded = msgspec.structs.replace(recipe(dense="int8_qdq"), products="int8-qdq")
    both = predict(facts, target("int8-qdq"), rounded)
    assert plain.loss == pytest.approx(3 * 0.08 * 0.005)
    assert both.loss == pytest.approx(plain.loss + 0.004)
    assert both.cosine == 1 - both.loss
    measured = Losses.fitted({}).corrected([(Disturbance(np.zeros(KINDS), 0.004, INDEX["int8-qdq"]), 0.008)])
    assert measured.whole(Disturbance(np.zeros(KINDS), 0.004, INDEX["int8-qdq"])) == pytest.approx(0.008)


def test_quality_of_labels_follows_the_fitted_slope() -> None:
    facts = model(layer("dense", MB, loss=0.01), has_labels=True, accuracy=0.9, accuracy_loss=0.25)
    assert predict(facts, target("int4"), recipe(dense="int4_b32")).quality == pytest.approx(1 - 0.25 * 0.01)
    unknown = msgspec.structs.replace(facts, accuracy_loss=0.0)
    assert predict(unknown, target("int4"), recipe(dense="int4_b32")).quality == pytest.approx(0.99)


# Size and memory


def test_size_and_memory_are_sums() -> None:
    facts = model(layer("dense", MB), layer("other", MB))
    fp32 = predict(facts, target("fp32"), recipe())
    blocks = predict(facts, target("int4"), recipe(dense="int4_b32"))
    stored = predict(facts, target("fp16"), recipe(dense="fp16_stored"))
    assert fp32.size_bytes - blocks.size_bytes == pytest.approx(4 * MB - 4.75 / 8 * MB, rel=0.01)
    assert fp32.memory_bytes - blocks.memory_bytes == int(4 * MB - 4.75 / 8 * MB)
    assert fp32.size_bytes - stored.size_bytes == pytest.approx(2 * MB, rel=0.01)
    assert stored.memory_bytes == fp32.memory_bytes
    assert fp32.memory_bytes == facts.memory_bytes


def test_small_tensors_beside_the_weights_lose_part_of_a_page() -> None:
    """(1024, 1024) in blocks of 32: weights fill pages, smaller tensors cache lines."""
    square = layer("dense", 1 << 20, shape=[1024, 1024])
    whole = {
        "size_bytes": (1 << 19) + (1 << 15) + (1 << 14) + 4096,
        "memory_bytes": 0,
        "error": 0.0,
        "loss": 0.0,
    }
    even = msgspec.structs.replace(square, formats={"int4-b32": FormatFacts(**whole)})  # type: ignore[arg-type]
    assert stored_bytes(even, "int4-b32") == whole["size_bytes"] - FP32_GAP_BYTES
    odd = msgspec.structs.replace(even, parameters=1026 * 1024, shape=[1026, 1024])
    assert 0 < stored_bytes(odd, "int4-b32") + FP32_GAP_BYTES - whole["size_bytes"] < 3 * PAGE_BYTES
    assert stored_bytes(square, "fp32") == 4 << 20
    assert stored_bytes(layer("bare", 4096, formats=("fp32",)), "int8-b32") > 0


def test_memory_has_a_floor() -> None:
    facts = model(layer("dense", MB), memory_bytes=0)
    assert predict(facts, target("fp32"), recipe()).memory_bytes == 4 * MB + facts.other_bytes + (4 << 20)


# Latency


def timed(
    layers: list[LayerFacts], *costs: tuple[str, int, float], provider: str = "CPUExecutionProvider"
) -> ModelFacts:
    made = [
        OperatorCost(
            operator="MatMul", shape=layers[0].shape, format=name, rows=rows, provider=provider, latency_ms=ms
        )
        for name, rows, ms in costs
    ]
    return model(*layers, costs=made, latency_p50_ms=10.0)


def test_latency_is_the_sample_s_with_layers_replaced() -> None:
    facts = timed([layer("dense", MB)], ("fp32", 48, 4.0), ("int8-dynamic", 48, 1.5), ("fp32", 1, 0.5))
    assert predict(facts, target("fp32"), recipe()).latency_ms == pytest.approx(10.0)
    assert predict(facts, target("int8-dynamic"), recipe(dense="int8_dynamic")).latency_ms == pytest.approx(
        7.5
    )


def test_rows_between_two_phases_are_on_the_line() -> None:
    costs = [("fp32", 1, 1.0), ("fp32", 101, 5.0), ("int4-b32", 1, 0.2), ("int4-b32", 101, 6.2)]
    facts = timed([layer("dense", MB, rows=51.0)], *costs)
    fp32, int4 = (predict(facts, target("int4"), each) for each in (recipe(), recipe(dense="int4_b32")))
    assert int4.latency_ms - fp32.latency_ms == pytest.approx(3.2 - 3.0)


def test_a_weight_stored_transposed_is_found_too() -> None:
    wide = layer("dense", MB, shape=[500, 2000], operator="Gemm")
    cost = OperatorCost(
        operator="Gemm",
        shape=[2000, 500],
        format="fp32",
        rows=48,
        provider="CPUExecutionProvider",
        latency_ms=3.0,
    )
    facts = model(wide, costs=[cost], latency_p50_ms=10.0)
    dynamic = predict(facts, target("int8-dynamic"), recipe(dense="int8_dynamic"))
    assert dynamic.latency_ms == pytest.approx(7.0 + 3.0 * 0.43)


def test_operators_that_take_longer_alone_than_the_model_are_scaled() -> None:
    facts = timed([layer("dense", MB)], ("fp32", 48, 20.0), ("int8-dynamic", 48, 10.0))
    assert predict(facts, target("fp32"), recipe()).latency_ms == pytest.approx(10.0)
    halved = predict(facts, target("int8-dynamic"), recipe(dense="int8_dynamic"))
    assert halved.latency_ms == pytest.approx(10.0 - 0.49 * 10.0)


def test_without_timings_documented_ratios_stand_in() -> None:
    facts = model(layer("dense", MB), latency_p50_ms=10.0)
    forms = ("int8_dynamic", "int4_b32", "int8_b32", "fp16_stored")
    slow = [predict(facts, target("int4"), recipe(dense=form)).latency_ms for form in forms]
    assert slow == pytest.approx([1 + 9 * 0.43, 1 + 9 * 1.33, 10.0, 10.0])
    single = model(layer("dense", MB, rows=1.0), latency_p50_ms=10.0)
    assert predict(single, target("int4"), recipe(dense="int4_b32")).latency_ms == pytest.approx(1 + 9 * 0.25)


def test_layers_of_other_shapes_are_priced_by_their_multiplications() -> None:
    facts = timed([layer("dense", MB), layer("twice", 2 * MB, shape=[1000, 2000])], ("fp32", 48, 2.0))
    fp32 = predict(facts, target("fp32"), recipe()).latency_ms
    dynamic = predict(facts, target("int8-dynamic"), recipe(twice="int8_dynamic")).latency_ms
    assert fp32 - dynamic == pytest.approx(4.0 * 0.57)


def test_a_provider_s_own_timings_come_first() -> None:
    own = timed(
        [layer("dense", MB)], ("fp32", 48, 4.0), ("int4-b32", 48, 1.0), provider="WebGpuExecutionProvider"
    )
    gpu = target("int4", accelerator="gpu", execution_provider="WebGpuExecutionProvider")
    assert predict(own, gpu, recipe(dense="int4_b32")).latency_ms == pytest.approx(7.0)
    assert predict(own, target("int4"), recipe(dense="int4_b32")).latency_ms == pytest.approx(1 + 9 * 1.33)


def test_devices_are_scaled_by_the_arithmetic_that_limits_them() -> None:
    costs = [("fp32", 48, 4.0), ("int8-dynamic", 48, 2.0), ("fp32", 1, 1.0), ("int8-dynamic", 1, 0.4)]
    facts = msgspec.structs.replace(timed([layer("dense", MB)], *costs), speed=FAST)
    slow = target("int8-dynamic", speed=SLOW)
    assert predict(facts, slow, recipe()).latency_ms == pytest.approx(100.0)
    dynamic = predict(facts, slow, recipe(dense="int8_dynamic"))
    assert dynamic.latency_ms == pytest.approx(6.0 * 10 + 2.0 * 2)
    single = msgspec.structs.replace(facts, layers=[layer("dense", MB, rows=1.0)], latency_p50_ms=2.0)
    reading = predict(single, slow, recipe(dense="int8_dynamic"))
    assert reading.latency_ms == pytest.approx(1.0 * 10 + 0.4 * 2)


def test_unknown_speeds_leave_the_worker_s_times() -> None:
    facts = msgspec.structs.replace(timed([layer("dense", MB)], ("fp32", 48, 4.0)), speed=FAST)
    assert predict(facts, target("fp32"), recipe()).latency_ms == pytest.approx(10.0)
    only_float = target("int8-dynamic", speed=WorkerSpeed(fp32_gflops=50.0))
    dynamic = predict(facts, only_float, recipe(dense="int8_dynamic"))
    assert dynamic.latency_ms == pytest.approx(2 * (6.0 + 4.0 * 0.43))


def test_static_products_take_less_time() -> None:
    facts = model(
        layer("dense", MB), products=ProductFacts(names=["p"], multiplies=48e6, loss={"int8-qdq": 1e-3})
    )
    plain = predict(facts, target("int8-qdq"), recipe(dense="int8_qdq"))
    rounded = predict(
        facts, target("int8-qdq"), msgspec.structs.replace(recipe(dense="int8_qdq"), products="int8-qdq")
    )
    assert rounded.latency_ms < plain.latency_ms
    assert rounded.energy_mwh < plain.energy_mwh


# Energy


def test_energy_is_bytes_and_operations() -> None:
    facts = model(layer("dense", MB), other_bytes=0)
    fp32 = predict(facts, target("fp32"), recipe()).energy_mwh
    assert fp32 == pytest.approx((4 * MB * PJ_PER_BYTE + 48 * MB * PJ_FP32) * 1e-12 / 3.6)
    dynamic = predict(facts, target("int8-dynamic"), recipe(dense="int8_dynamic")).energy_mwh
    assert dynamic == pytest.approx((1.0125 * MB * PJ_PER_BYTE + 48 * MB * PJ_8_BIT) * 1e-12 / 3.6)


def test_a_table_moves_the_rows_that_are_looked_up() -> None:
    table = layer("table", 4 * MB, operator="Gather", formats=TABLE, shape=[40_000, 100], rows=40.0)
    energy = predict(model(table, other_bytes=0), target("fp32"), recipe()).energy_mwh
    assert energy == pytest.approx(40 * 100 * 4 * PJ_PER_BYTE * 1e-12 / 3.6)


def test_declared_power_makes_energy_power_times_latency() -> None:
    facts = model(layer("dense", MB), latency_p50_ms=10.0)
    wanted = target("fp16", active_power_mw=3600.0)
    assert predict(facts, wanted, recipe()).energy_mwh == pytest.approx(0.01)
    whole = msgspec.structs.replace(recipe(), precision="fp16")
    assert predict(facts, wanted, whole).energy_mwh == pytest.approx(0.0115)


# Words


def test_figures_in_words() -> None:
    sizes = (in_bytes(900), in_bytes(4100), in_bytes(14.2e6), in_bytes(3.41e9))
    assert sizes == ("900 B", "4.1 kB", "14.2 MB", "3.41 GB")
    assert (in_ms(0.09912), in_ms(12.345), in_ms(1234.5), in_ms(0)) == (
        "0.0991 ms",
        "12.3 ms",
        "1234 ms",
        "0 ms",
    )
    assert in_mwh(0.00261) == "0.00261 mWh"
    assert in_loss(0.00042) == "0.00042 of loss"
    assert in_loss(0.0) == "no loss"
    assert in_loss(1e-8) == "less than 0.000001 of loss"
    needs = [needed_words("latency", 2), needed_words("energy", 2), needed_words("storage", 2e6)]
    assert needs == ["2.00 ms", "2.00 mWh", "2.0 MB"]
