"""Twelve classes of device against one: what more classes cost once a model has been looked at."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks import workshop
from benchmarks.catalogue import Context
from benchmarks.figures import Figure
from benchmarks.reference import Reference, minilm
from benchmarks.similarity import similarity
from benchmarks.workshop import WEIGHT_ONLY, Sets, device_class
from quantize_worker.engine import TailorReport

DESCRIPTION = "all-MiniLM for twelve device classes against one, each build judged, same worker"
PREDICTION = """
The inspection takes most of the time; a build with its early-stopping gate takes 2 s. Twelve classes take 1.35
times as long as one, and give twelve different recipes. A tool that starts again for each class takes 12 times.
"""
ROUNDS = 3
RATIO_GOAL = 1.4
RECIPES_GOAL = 10
MB = 1_000_000

CLASSES = (
    device_class("phone-14mb", WEIGHT_ONLY, floor=0.98, objective="quality", storage_bytes=14 * MB),
    device_class("watch-smallest", WEIGHT_ONLY, floor=0.97, objective="size"),
    device_class("phone-small", WEIGHT_ONLY, floor=0.985, objective="size"),
    device_class("phone-16mb", WEIGHT_ONLY, floor=0.985, objective="quality", storage_bytes=16 * MB),
    device_class("phone-20mb", WEIGHT_ONLY, floor=0.99, objective="quality", storage_bytes=20 * MB),
    device_class("tablet-30mb", WEIGHT_ONLY, floor=0.99, objective="quality", storage_bytes=30 * MB),
    device_class("eight-bit", ("int8", "fp32"), floor=0.995, objective="size"),
    device_class("fast-cpu", ("int8-dynamic", "int8", "int4", "fp32"), floor=0.98, objective="latency"),
    device_class(
        "npu-8",
        ("int8-qdq", "fp32"),
        floor=0.95,
        objective="latency",
        accelerator="npu",
        emulated=True,
        storage_bytes=40 * MB,
    ),
    device_class(
        "npu-16",
        ("int8-qdq16", "int8-qdq"),
        floor=0.99,
        objective="quality",
        accelerator="npu",
        emulated=True,
        storage_bytes=40 * MB,
    ),
    device_class("gpu-half", ("fp16",), floor=0.999, accelerator="gpu", emulated=True),
    device_class("kiosk-exact", WEIGHT_ONLY, floor=0.9995, objective="size"),
)


def run(context: Context) -> list[Figure]:
    """Alternate one class and twelve, each from nothing; compare medians.

    Raises:
        BenchmarkFailed: a class got no build.
    """
    folder = context.scratch / "reference"
    folder.mkdir()
    reference = minilm(folder)
    sets = Sets(model=reference.model, calibration=reference.calibration, gate=reference.gate)
    seconds: dict[int, list[float]] = {1: [], len(CLASSES): []}
    cpu: dict[int, list[float]] = {1: [], len(CLASSES): []}
    for number in range(ROUNDS):
        for count in seconds:
            with workshop.timed() as watch:
                report, out = workshop.tailored(
                    sets, CLASSES[:count], context.scratch, f"{number}-{count}", confined=False
                )
            seconds[count].append(watch.wall_s)
            cpu[count].append(watch.cpu_s)
            print(f"  {count} class(es): {watch.wall_s:.1f} s, CPU {watch.cpu_s:.1f} s", flush=True)
    _tell(report, out, reference)
    return _figures(report, seconds, cpu)


def _tell(report: TailorReport, out: Path, reference: Reference) -> None:
    """Print what each class got, on the report set."""
    for each in report.tailored:
        attempt = workshop.require_built(each).attempts[-1]
        found = similarity(reference.outputs, reference.run(out / each.folder / "model.onnx"))
        judged = attempt.quality.samples if attempt.quality else 0
        print(
            f"  {each.target.name}: {attempt.size_bytes / MB:.1f} MB, 1 - cosine {found.loss:.4f}, "
            f"{len(each.attempts)} build(s), the last judged on {judged} samples",
            flush=True,
        )


def _figures(
    report: TailorReport, seconds: dict[int, list[float]], cpu: dict[int, list[float]]
) -> list[Figure]:
    many = len(CLASSES)
    wall = {count: statistics.median(times) for count, times in seconds.items()}
    spent = {count: statistics.median(times) for count, times in cpu.items()}
    recipes = {workshop.layers_of(each) for each in report.tailored}
    ungated = [
        each.target.name for each in report.tailored if not each.attempts or each.attempts[-1].quality is None
    ]
    against = f"medians of {ROUNDS}, alternating: {wall[many]:.1f} s against {wall[1]:.1f} s"
    return [
        _lower("twelve_classes_to_one_wall_ratio", wall[many] / wall[1], RATIO_GOAL, against),
        _lower(
            "twelve_classes_to_one_cpu_ratio", spent[many] / spent[1], RATIO_GOAL, "processor time of both"
        ),
        Figure(
            name="distinct_recipes",
            value=len(recipes),
            goal=RECIPES_GOAL,
            better="higher",
            against="recipes that give other bytes",
        ),
        _lower("builds_without_a_verdict", len(ungated), 0, "every build is judged on the gate set"),
    ]


def _lower(name: str, value: float, goal: float, against: str) -> Figure:
    return Figure(name=name, value=round(value, 3), goal=goal, better="lower", against=against)
