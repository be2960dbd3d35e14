"""The front of size and quality."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.model_facts import encoder_facts
from quantize_worker.contract import Interaction, ModelFacts, Target
from quantize_worker.plan import consider, pareto
from tests.simulators.model_facts import EVERY, MB, encoder, layer, model, target

LAWS = {"int4": Interaction(factor=2.0, power=1.3, points=[(0.001, 0.0002), (0.05, 0.05)])}


@pytest.mark.parametrize("facts", [encoder(), encoder(interaction=LAWS), encoder_facts()])
@pytest.mark.parametrize("wanted", [target(*EVERY), target("int4", "int8-dynamic"), target("int8", "fp16")])
def test_every_point_is_larger_and_better_than_the_one_before(facts: ModelFacts, wanted: Target) -> None:
    points = pareto(facts, wanted, points=50)
    assert 2 <= len(points) <= 50
    for earlier, later in pairwise(points):
        assert later.size_bytes > earlier.size_bytes
        assert later.quality > earlier.quality
    assert all(sum(point.formats.values()) == pytest.approx(1.0) for point in points)
    assert points == pareto(facts, wanted, points=50)


def test_both_ends_are_on_the_front() -> None:
    points = pareto(encoder(), target(*EVERY), points=20)
    assert points[-1].quality == 1.0
    assert points[-1].formats == {"fp32": 1.0}
    smallest = consider(encoder(), target(*EVERY, quality_floor=0.5)).candidates[0]
    assert points[0].size_bytes == pytest.approx(smallest.predicted_size_bytes, rel=1e-3)


@pytest.mark.parametrize("floor", [0.999, 0.99, 0.98])
def test_no_plan_is_better_than_the_front(floor: float) -> None:
    wanted = target("int4", "int8", "fp32", quality_floor=floor)
    plan = consider(encoder(interaction=LAWS), wanted).candidates[0]
    for point in pareto(encoder(interaction=LAWS), wanted, points=400):
        if point.quality <= plan.predicted_quality:
            assert plan.predicted_size_bytes >= 0.995 * point.size_bytes


def test_a_gpu_has_whole_models() -> None:
    points = pareto(encoder(), target("fp16", "fp32", accelerator="gpu"))
    assert [point.formats for point in points] == [{"fp16": 1.0}, {"fp32": 1.0}]


def test_nothing_accepted_applies() -> None:
    odd = model(layer("odd", MB, operator="Custom", formats=("fp32",)))
    assert pareto(odd, target("int8")) == []
    assert [point.formats for point in pareto(odd, target("int8", "fp32"))] == [{"fp32": 1.0}]
    assert len(pareto(model(), target("fp32"))) == 1


def test_few_points_keep_their_order() -> None:
    assert len(pareto(encoder(), target(*EVERY), points=1)) == 1
    assert len(pareto(encoder(), target(*EVERY), points=3)) == 3
