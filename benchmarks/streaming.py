"""Memory that a model of 3.4 GB takes while it is inspected and built, beside the mapped pages of its file."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec

from benchmarks import workshop
from benchmarks.anonymous_memory import AnonymousMemory
from benchmarks.catalogue import Context
from benchmarks.errors import BenchmarkFailed
from benchmarks.figures import Figure
from benchmarks.generated import DecoderShape, write_decoder
from benchmarks.workshop import Sets, device_class
from quantize_worker.contract import ModelFacts
from quantize_worker.plan import consider

DESCRIPTION = (
    "a decoder-like model of 3.4 GB with external data: peak anonymous memory of inspection and build"
)
PREDICTION = """
Weights are read where they lie mapped, tensor by tensor, and written as they are made: 0.4 GB of anonymous memory
for 3.4 GB of weights, 0.12 of them, in inspection and build alike. ONNX Runtime's own quantizers took 4.2 GB (RTN),
9.6 GB (k-quant) and 10.2 GB (dynamic) for such a model.
"""
SHARE_GOAL = 0.15
TIMEOUT_S = 3600
AGAINST = "of the FP32 bytes; ONNX Runtime 1.32: RTN 4.2 GB, k-quant 9.6 GB, dynamic 10.2 GB"
CLASS = device_class("phone", ("int4", "int8"), objective="quality", storage_bytes=700_000_000)
FACTS = "facts.json"
BENCH = "bench"


def run(context: Context) -> list[Figure]:
    """Inspect in one process, build in another, and watch both.

    Raises:
        BenchmarkFailed: one of them failed.
    """
    source = context.scratch / "source"
    source.mkdir()
    weights = write_decoder(source, DecoderShape())
    print(f"  {weights / 1e9:.2f} GB of FP32 weights", flush=True)
    figures = []
    for step in ("inspect", "build"):
        peak, seconds = _watched(step, context)
        print(f"  {step}: {peak / 1e9:.3f} GB anonymous at most, {seconds:.0f} s", flush=True)
        share = round(peak / weights, 4)
        name = f"{step}_peak_anonymous_share"
        figures.append(Figure(name=name, value=share, goal=SHARE_GOAL, better="lower", against=AGAINST))
    built = workshop.model_bytes(context.scratch / BENCH / "artifact" / "0")
    figures.append(
        Figure(
            name="built_size_mb",
            value=round(built / 1e6, 1),
            goal=CLASS.storage_bytes / 1e6,
            better="lower",
            against="the class's budget: the build is there, and whole",
        )
    )
    return figures


def _watched(step: str, context: Context) -> tuple[int, float]:
    """Peak anonymous bytes of the process tree that does a step, and its seconds."""
    command = [sys.executable, "-m", "benchmarks.streaming", step, str(context.scratch)]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=context.root, stdin=subprocess.DEVNULL)
    try:
        with AnonymousMemory(process.pid) as memory:
            process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        process.terminate()
        raise BenchmarkFailed(f"{step} took more than {TIMEOUT_S} s") from error
    if process.returncode != 0:
        raise BenchmarkFailed(f"{step} ended with code {process.returncode}")
    return memory.peak_bytes, time.monotonic() - started


def main(step: str, scratch: str) -> None:
    """One step, in its own process."""
    source, folder = Path(scratch) / "source", Path(scratch) / BENCH
    if step == "inspect":
        bench = workshop.workbench(folder)
        sets = Sets(source / "model.onnx", source / "calibration.npz", source / "evaluation.npz")
        facts = workshop.inspected(bench, sets)
        (Path(scratch) / FACTS).write_bytes(msgspec.json.encode((facts, bench.files)))
        return
    facts, files = msgspec.json.decode(
        (Path(scratch) / FACTS).read_bytes(), type=tuple[ModelFacts, list[workshop.SourceFile]]
    )
    bench = workshop.reopened(folder, files)
    plan = consider(facts, CLASS).candidates[0]
    workshop.require_artifact(bench.build(facts, [plan.recipe], [[]])[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
