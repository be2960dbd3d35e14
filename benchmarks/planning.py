"""How long a plan takes: one class, a Pareto front, and many layers."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from benchmarks import workshop
from benchmarks.catalogue import Context
from benchmarks.errors import BenchmarkFailed
from benchmarks.figures import Figure
from benchmarks.model_facts import encoder_facts
from benchmarks.reference import minilm
from benchmarks.workshop import Sets, device_class
from quantize_worker.contract import ModelFacts, Precision, Target
from quantize_worker.errors import WorkerError
from quantize_worker.plan import consider, pareto

DESCRIPTION = "plans of all-MiniLM for twelve classes, its Pareto fronts, and a model of 398 layers"
PREDICTION = """
A class with one budget that binds takes one or two dynamic programs of 2 ms each and as much again to price and
explain: 5 to 15 ms. Two budgets that bind take a linear program more: 20 ms. A front is three dynamic programs and
50 predictions: 50 ms. 398 layers take ten times as long.
"""
FACTS = "POCKETFLEET_FACTS"  # a JSON file of ModelFacts to plan with, instead of inspecting all-MiniLM
PLAN_GOAL_MS = 20.0
FRONT_GOAL_S = 0.5
LARGE_GOAL_MS = 500.0
ROUNDS = 9
POINTS = 50
MB = 1_000_000
EVERY: tuple[Precision, ...] = ("int4", "int8", "int8-dynamic", "fp16", "fp32")


def run(context: Context) -> list[Figure]:
    """Plan every class several times; medians, the slowest class beside the usual one."""
    facts, what = _facts(context)
    classes = list(targets(facts))
    plans = {target.name: 1000 * _median(partial(consider, facts, target)) for target in classes}
    fronts = [_median(partial(pareto, facts, target, POINTS)) for target in classes]
    for name, milliseconds in plans.items():
        print(f"  {name}: {milliseconds:.1f} ms", flush=True)
    large = encoder_facts(blocks=66, width=128)
    many = 1000 * _median(partial(consider, large, _short_of_time(large)), rounds=3)
    slowest = max(plans, key=lambda name: plans[name])
    return [
        _lower("plan_ms", statistics.median(plans.values()), PLAN_GOAL_MS, f"{what}, {len(plans)} classes"),
        _lower("plan_slowest_class_ms", plans[slowest], PLAN_GOAL_MS, f"{what}, class {slowest}"),
        _lower("pareto_50_points_s", max(fronts), FRONT_GOAL_S, f"{what}, slowest class"),
        _lower("plan_398_layers_ms", many, LARGE_GOAL_MS, "made-up encoder of 66 blocks"),
    ]


def targets(facts: ModelFacts) -> Iterator[Target]:
    """Twelve classes that differ in what they accept, aim at and are short of."""
    fp32_ms = facts.latency_p50_ms
    yield device_class("npu", ["int8-qdq"], floor=0.95, accelerator="npu", emulated=True)
    yield device_class("npu-16", ["int8-qdq", "int8-qdq16"], floor=0.99, accelerator="npu", emulated=True)
    yield device_class("gpu", ["fp16", "fp32"], floor=0.99, accelerator="gpu", emulated=True)
    yield device_class("dynamic", ["int8-dynamic", "fp32"], floor=0.98)
    yield device_class("entry", ["int4", "int8-dynamic"], floor=0.95)
    for floor in (0.97, 0.985, 0.995):
        yield device_class(f"smallest-{floor}", EVERY, floor=floor)
    yield device_class("fastest", EVERY, floor=0.985, objective="latency", storage_bytes=20 * MB)
    yield device_class("best", EVERY, floor=0.9, objective="quality", storage_bytes=15 * MB)
    yield device_class(
        "best-in-time", EVERY, floor=0.9, objective="quality", storage_bytes=20 * MB, latency_ms=0.8 * fp32_ms
    )
    yield device_class("smallest-in-time", EVERY, floor=0.98, latency_ms=0.7 * fp32_ms)


def _short_of_time(facts: ModelFacts) -> Target:
    """A class with two budgets that bind."""
    return device_class("large", EVERY, floor=0.9, latency_ms=0.9 * facts.latency_p50_ms)


def _facts(context: Context) -> tuple[ModelFacts, str]:
    """Of all-MiniLM: as given, as the engine finds them, or, where it cannot, made up."""
    given = os.environ.get(FACTS)
    if given:
        facts = msgspec.json.decode(Path(given).read_bytes(), type=ModelFacts)
        return facts, f"{len(facts.layers)} layers as given"
    folder = context.scratch / "reference"
    folder.mkdir()
    try:
        reference = minilm(folder)
        sets = Sets(reference.model, reference.calibration, reference.gate)
        facts = workshop.inspected(workshop.workbench(context.scratch / "bench"), sets)
    except (WorkerError, BenchmarkFailed) as error:
        print(f"  all-MiniLM cannot be inspected here: {error}; made-up facts stand in", flush=True)
        facts = encoder_facts()
        return facts, f"made-up facts like all-MiniLM's, {len(facts.layers)} layers"
    return facts, f"all-MiniLM, {len(facts.layers)} layers"


def _median(action: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds, a warm-up left out."""
    action()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _lower(name: str, value: float, goal: float, against: str) -> Figure:
    return Figure(name=name, value=float(f"{value:.4g}"), goal=goal, better="lower", against=against)
