"""Does the gate reject what is bad and only that? Seeded bad builds, and good ones in fifty orders of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import spoiling, workshop
from benchmarks.catalogue import Context
from benchmarks.environments import Steps
from benchmarks.errors import BenchmarkFailed
from benchmarks.figures import Figure
from benchmarks.peers import catalogue as peers
from benchmarks.peers import runner
from benchmarks.reference import Array, Reference, minilm
from benchmarks.spent import spend
from benchmarks.workshop import WEIGHT_ONLY, Sets, Workbench, device_class
from quantize_worker.contract import ModelFacts
from quantize_worker.plan import consider
from quantize_worker.steps.gate import Gate

DESCRIPTION = "all-MiniLM: bad builds that the gate must reject, good ones that it must not, over 50 seeds"
PREDICTION = """
All bad builds are rejected: ONNX Runtime's static default (0.64 lost), 2 bits (0.5), a layer of zeros or with
scales in the wrong rows (0.02 to 0.5), and OpenVINO calculating in bf16 for a class that asks for 0.99999 (it
keeps 0.999987). Good builds planned close to their floors pass in all 50 orders; the gate sees 60 of 256 samples
on the average.
"""
ENVIRONMENTS: dict[str, Steps] = {
    "onnxruntime": peers.ENVIRONMENTS["onnxruntime"],
    "openvino": (("onnxruntime==1.32.0", "onnxruntime-ep-openvino==1.8.1"),),
}
SEEDS = 50
FLOOR = 0.98
STRICT_FLOOR = 0.99999
SPOILT = 1  # of GOOD: what seeds spoil, and its floor then rejects
BAD_KINDS = ("static default", "2-bit RTN", "zeroed layer", "swapped scales", "bf16 below the floor")
GOOD = (
    device_class("size-98", WEIGHT_ONLY, floor=0.98, objective="size"),
    device_class("size-985", WEIGHT_ONLY, floor=0.985, objective="size"),
    device_class("size-99", WEIGHT_ONLY, floor=0.99, objective="size"),
    device_class("eight-bit", ("int8",), floor=0.995, objective="size"),
    device_class("npu-16", ("int8-qdq16",), floor=0.99, objective="quality"),
)


@dataclass(frozen=True)
class Case:
    """A build's outputs on the gate set, and the floor it is held against.

    Args:
        outputs: (samples, width), in the set's order.
        seeds: orders in which the gate sees the samples.
    """

    kind: str
    outputs: Array
    floor: float
    seeds: Sequence[int]


@dataclass
class Verdicts:
    """Counts per kind, of builds that are all good or all bad."""

    good: bool
    given: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    samples: list[int] = field(default_factory=list)


def run(context: Context) -> list[Figure]:
    """Build good and bad, show each to the gate, count wrong verdicts.

    Raises:
        BenchmarkFailed: a good build could not be made.
    """
    folder = context.scratch / "reference"
    folder.mkdir()
    reference = minilm(folder)
    exact = reference.run(reference.model, sentences=reference.gate)
    bench = workshop.workbench(context.scratch / "bench")
    facts = workshop.inspected(bench, Sets(reference.model, reference.calibration, reference.gate))
    good, bad = Verdicts(good=True), Verdicts(good=False)
    for case in _good(bench, facts, reference, context.scratch):
        _judge(case, exact, good)
    for case in _bad(context, reference, context.scratch):
        _judge(case, exact, bad)
    return _figures(good, bad)


def _judge(case: Case, exact: Array, verdicts: Verdicts) -> None:
    """Show the case in all its orders. One that is not what it should be is told of and left out."""
    kept = _cosine(exact, case.outputs)
    words = f"  {case.kind}: cosine {kept:.6f}, floor {case.floor:g}"
    if (kept >= case.floor) is not verdicts.good:
        print(f"{words}: left out, over the whole set it is on the floor's other side", flush=True)
        return
    wrong = 0
    for seed in case.seeds:
        order = np.random.default_rng(seed).permutation(len(exact))
        accepted, seen = _verdict(exact[order], case.outputs[order], case.floor)
        verdicts.samples.append(seen)
        wrong += accepted is not verdicts.good
    verdicts.given[case.kind] += len(case.seeds)
    verdicts.wrong[case.kind] += wrong
    print(f"{words}, {wrong} wrong of {len(case.seeds)}", flush=True)


def _verdict(exact: Array, outputs: Array, floor: float) -> tuple[bool, int]:
    """The gate's word, and how many samples it took."""
    references = [{"y": row[None]} for row in exact]
    gate = Gate(references, None, [floor])
    for row in outputs:
        if gate.add({"y": row[None]}):
            break
    report = gate.report()
    return report.value >= floor, report.samples


def _cosine(exact: Array, outputs: Array) -> float:
    left, right = exact.astype(np.float64), outputs.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.mean((left * right).sum(axis=1) / np.maximum(norms, 1e-30)))


def _good(bench: Workbench, facts: ModelFacts, reference: Reference, scratch: Path) -> Iterator[Case]:
    """Builds as planned for classes, each with its own class's floor."""
    plans = [consider(facts, target).candidates[0] for target in GOOD]
    built = bench.build(facts, [plan.recipe for plan in plans], [[] for _ in plans])
    for index, target in enumerate(GOOD):
        workshop.require_artifact(built[index])
        outputs = reference.run(bench.artifact(index) / "model.onnx", sentences=reference.gate)
        yield Case(f"good: {target.name}", outputs, target.quality_floor, range(SEEDS))
    spoiling.keep(bench.artifact(SPOILT), scratch / "to-spoil")


def _bad(context: Context, reference: Reference, scratch: Path) -> Iterator[Case]:
    made = runner.run_all((peers.STATIC, peers.RTN_2_BIT), context.environments, reference, scratch / "peers")
    for run_ in made.values():
        assert run_.model is not None
        outputs = reference.run(run_.model, sentences=reference.gate)
        yield Case(f"bad: {run_.peer.words}", outputs, FLOOR, range(SEEDS))
    for spoil in (spoiling.zero_a_layer, spoiling.swap_scales):
        for seed in range(SEEDS):
            spoilt = scratch / f"{spoil.__name__}-{seed}"
            spoil(scratch / "to-spoil", spoilt, seed)
            outputs = reference.run(spoilt / "model.onnx", sentences=reference.gate)
            words = spoil.__name__.replace("_", " ")
            yield Case(f"bad: {words}", outputs, GOOD[SPOILT].quality_floor, [seed])
            spoiling.discard(spoilt)
    yield from _bf16(context, reference, scratch)


def _bf16(context: Context, reference: Reference, scratch: Path) -> Iterator[Case]:
    """FP32 itself, on a provider that calculates in bf16 without being asked to."""
    python = context.environments.pythons.get("openvino")
    if python is None:
        print("  OpenVINO: not run, its environment is missing", flush=True)
        return
    out = scratch / "openvino.npy"
    script = context.root / "benchmarks" / "peers" / "provider_run.py"
    command = [str(python), str(script), "onnxruntime_ep_openvino", "OpenVINOExecutionProvider"]
    command += [str(path) for path in (reference.model, reference.gate, out)]
    spent = spend(command, folder=scratch, environment=runner.QUIET)
    if spent.code != 0:
        print(f"  OpenVINO: failed: {spent.output_tail.strip()[-500:]}", flush=True)
        return
    yield Case("bad: OpenVINO in bf16", np.load(out), STRICT_FLOOR, range(SEEDS))


def _figures(good: Verdicts, bad: Verdicts) -> list[Figure]:
    if not bad.given or not good.given:
        raise BenchmarkFailed("there was nothing to judge")
    rejected = 1.0 - bad.wrong.total() / bad.given.total()
    kinds = ", ".join(f"{kind.removeprefix('bad: ')} {count}" for kind, count in bad.given.items())
    seen = np.mean(good.samples + bad.samples)
    return [
        Figure(name="bad_builds_rejected_share", value=rejected, goal=1.0, better="higher", against=kinds),
        Figure(
            name="good_builds_rejected",
            value=good.wrong.total(),
            goal=0,
            better="lower",
            against=f"{len(good.given)} builds planned close to their floors, {SEEDS} orders each",
        ),
        Figure(
            name="bad_builds_judged",
            value=bad.given.total(),
            goal=SEEDS * len(BAD_KINDS),
            better="higher",
            against=f"50 each of {', '.join(BAD_KINDS)}; nothing was left out",
        ),
        Figure(
            name="samples_seen_mean",
            value=round(float(seen), 1),
            goal=256,
            better="lower",
            against="of 256 in the gate set",
        ),
    ]
