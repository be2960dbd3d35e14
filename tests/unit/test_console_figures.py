"""What the console computes for its pages: the chart, the layers, predicted against measured."""

from __future__ import annotations

from typing import Any

import pytest

from fleet.console.charts import Chart, Mark, front_chart
from fleet.console.comparison import comparison
from fleet.console.layers import PAGE, by_format, page_of
from fleet.console.templatetags.figures import NOTHING, advice, loss
from quantize_worker.plan import Nearest

MB = 1_000_000


def point(size_mb: float, quality: float) -> dict[str, Any]:
    return {"size_bytes": int(size_mb * MB), "quality": quality}


FRONT = [point(12, 0.90), point(13, 0.95), point(15, 0.985), point(20, 0.996), point(24, 0.999)]


def drawn(*marks: Mark, floor: float = 0.97, storage_mb: float = 22, front: Any = FRONT) -> Chart:
    chart = front_chart(front, marks, floor=floor, storage_bytes=int(storage_mb * MB), width=960, height=360)
    assert chart is not None
    return chart


def test_everything_lies_inside_the_plot() -> None:
    chart = drawn(Mark("chosen", 30 * MB, 0.2, "far below"), Mark("planned", 11 * MB, 1.0, "at the top"))
    for place in [*chart.points, *chart.marks]:
        assert chart.left <= float(place.x) <= chart.right
        assert chart.top <= float(place.y) <= chart.bottom
    for tick in chart.xticks:
        assert chart.left <= float(tick.at) <= chart.right
    for tick in chart.yticks:
        assert chart.top <= float(tick.at) <= chart.bottom


def test_larger_is_further_right_and_better_further_up() -> None:
    places = drawn().points
    assert [float(p.x) for p in places] == sorted(float(p.x) for p in places)
    assert [float(p.y) for p in places] == sorted((float(p.y) for p in places), reverse=True)


def test_what_is_far_below_the_floor_is_left_out() -> None:
    chart = drawn(floor=0.99)
    assert len(chart.points) == 3  # 0.90 and 0.95 lose more than four times what the floor allows
    assert float(chart.yticks[-1].label) >= 0.95


def test_floor_and_storage_are_lines_where_they_are_in_the_picture() -> None:
    assert float(drawn().floor) < drawn().bottom
    assert float(drawn().storage) < drawn().right
    assert drawn(storage_mb=400).storage == ""
    assert drawn(floor=1.0).floor == ""
    near = drawn(storage_mb=9)  # below all sizes, but near: that is why nothing fits
    assert (near.storage != "", near.storage_side) == (True, "start")


def test_the_chosen_build_is_drawn_last() -> None:
    marks = drawn(Mark("chosen", 15 * MB, 0.98, "mine"), Mark("ready", 15 * MB, 0.98, "other")).marks
    assert [mark.kind for mark in marks] == ["ready", "chosen"]


@pytest.mark.parametrize("front", [[point(12, 0.99)], [point(12, 1.0), point(12, 1.0)], [point(0.0002, 1.0)]])
def test_a_single_point_is_drawn_too(front: list[dict[str, Any]]) -> None:
    chart = drawn(front=front)
    assert chart.xticks
    assert chart.yticks


@pytest.mark.parametrize("high_mb", [12.5, 14, 30, 60, 200, 3000])
def test_there_are_a_few_ticks_whatever_the_span(high_mb: float) -> None:
    ticks = drawn(front=[point(12, 0.9), point(high_mb, 0.99)]).xticks
    assert 2 <= len(ticks) <= 12
    assert len({tick.label for tick in ticks}) == len(ticks)


def test_nothing_is_nothing() -> None:
    assert front_chart([], [], floor=0.9, storage_bytes=MB, width=960, height=360) is None


CHOICES = [
    {"layer": f"/encoder/{i}", "operator": "Gemm" if i % 2 else "MatMul", "format": kind, "size_bytes": size,
     "loss": 0.001, "reason": "because"}
    for i, (kind, size) in enumerate([("int4-b32", 10), ("int8-b32", 30)] * 40)
]  # fmt: skip


def test_formats_are_summed_up_largest_first() -> None:
    first, second = by_format(CHOICES)
    assert (first.format, first.layers, first.size_bytes, first.share) == ("int8-b32", 40, 1200, 0.75)
    assert second.loss == pytest.approx(0.04)
    assert by_format([]) == []


def test_layers_come_in_pages() -> None:
    page = page_of(CHOICES)
    assert (page.first, page.last, page.found, page.previous, page.following) == (1, PAGE, 80, None, PAGE)
    seen = [*page.rows]
    while page.following is not None:
        page = page_of(CHOICES, start=page.following)
        seen += page.rows
    assert seen == CHOICES
    assert page_of(CHOICES, start=10**6).last == 80


def test_layers_are_filtered() -> None:
    assert page_of(CHOICES, format="int4-b32").found == 40
    assert page_of(CHOICES, format="int4-b32", operator="Gemm").found == 0
    assert [row["layer"] for row in page_of(CHOICES, search="ENCODER/7").rows][:2] == [
        "/encoder/7",
        "/encoder/70",
    ]
    empty = page_of(CHOICES, search="nothing")
    assert (empty.rows, empty.first, empty.last) == ([], 0, 0)


PLAN = {
    "predicted_size_bytes": 10 * MB,
    "predicted_memory_bytes": 100 * MB,
    "predicted_latency_ms": 20.0,
    "predicted_quality": 0.98,
    "predicted_energy_mwh": 0.01,
}
TARGET = {"storage_bytes": 9 * MB, "memory_bytes": 200 * MB, "quality_floor": 0.97, "latency_ms": 15.0}


def test_predicted_and_measured_stand_side_by_side_with_what_is_allowed() -> None:
    measured = {"size_bytes": 11 * MB, "memory_bytes": 90 * MB, "latency_ms": 22.0, "quality": 0.975}
    size, quality, memory, latency, energy = comparison(PLAN, measured, TARGET)
    assert (size.predicted, size.measured, size.difference, size.verdict) == (
        "10.0 MB",
        "11.0 MB",
        "+10.0 %",
        "over",
    )
    assert (quality.difference, quality.limit, quality.verdict) == ("-0.0050", "≥ 0.97", "")
    assert (memory.difference, memory.verdict) == ("-10.0 %", "")
    assert (latency.label, latency.verdict) == ("Latency p50 (worker)", "")  # a worker's word binds no device
    assert energy.predicted == "0.01 mWh"


def test_what_devices_report_counts() -> None:
    latency = comparison(PLAN, {"latency_ms": 5.0}, TARGET, device_ms=18.0)[3]
    assert (latency.label, latency.measured, latency.verdict) == ("Latency p50 (devices)", "18.0 ms", "over")
    elsewhere = {**TARGET, "speed": {"fp32_gflops": 3.0}}  # predicted for other machines than the worker
    assert comparison(PLAN, {"latency_ms": 5.0}, elsewhere)[3].difference == ""


def test_before_it_is_built_nothing_is_measured() -> None:
    for line in comparison(PLAN, {}):
        assert (line.measured, line.difference, line.verdict) == (NOTHING, "", "")


def test_advice_says_what_would_have_to_change() -> None:
    memory = Nearest(budget="memory", needed=150e6, allowed=100e6, reason="")
    floor = Nearest(budget="floor", needed=0.97, allowed=0.99, reason="", also=[memory])
    assert (
        advice(floor) == "Lower the quality floor from 0.99 to 0.97, or raise memory from 100 MB to 150 MB."
    )
    both = Nearest(budget="latency", needed=20.0, allowed=9.5, reason="", together=True, also=[memory])
    assert advice(both) == "Raise latency from 9.50 ms to 20.0 ms and raise memory from 100 MB to 150 MB."


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.00123, "0.0012"), (4.5e-6, "0.0000045"), (0.25, "0.25"), ("", NOTHING)]
)
def test_losses_keep_two_digits(value: Any, text: str) -> None:
    assert loss(value) == text
