"""What happens inside the sandboxed child: one job, from a folder of files to a folder of files.

The folder holds ``request.json`` (a ``Job``), ``source/`` (the upload under its paths),
``evaluation.npz`` and ``calibration.npz`` where there are any and, when an earlier attempt got that
far, ``artifact/`` with the files of the finished quantize step. The child writes ``result.json``
(an ``Outcome``), ``artifact/`` and ``chunks/``, and a JSON line per step on its standard
output (a ``Step``; see :mod:`quantize_worker.steps.exchange`). It knows neither blob store nor queue.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from quantize_worker.contract import ArtifactDescription, ArtifactFile, TensorSpec
from quantize_worker.errors import BuildFailed, ModelRefused, SandboxCrashed, SandboxOutOfMemory, WorkerError
from quantize_worker.steps import evaluate, facts, package
from quantize_worker.steps.exchange import (
    ARTIFACT_FOLDER,
    CALIBRATION_FILE,
    CHUNKS_FOLDER,
    EVALUATION_FILE,
    RESULT_FILE,
    SOURCE_FOLDER,
    Job,
    Outcome,
    Report,
    Step,
)
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.intake import entry_of, read_model
from quantize_worker.steps.measure import CPU_PROVIDER, Measured, MeasuredError, measure
from quantize_worker.steps.quantize import quantize
from quantize_worker.steps.samples import SampleSet, read_set, synthetic_set

GOLDEN_FILE = "golden.npz"
EVALUATION_SAMPLES = 128  # measured ones, spread over the set
GOLDEN_SAMPLES = 8
REPORT_S = 1.0
MINIMUM_RUNTIME = "1.32.0"  # of ONNX Runtime; what the artifacts are tested with


def run(folder: Path, job: Job, report: Report) -> Outcome:
    """Do the job; every error that a job can have becomes an outcome."""
    try:
        return _inspect(folder, job, report) if job.kind == "inspect" else _build(folder, job, report)
    except ModelRefused as refusal:
        return Outcome(status="refused", code=refusal.code, message=refusal.message, fault="model")
    except BuildFailed as failure:
        return Outcome(status="failed", code=failure.code, message=failure.message, fault=failure.fault)
    except (MemoryError, SandboxOutOfMemory):
        return _out_of_memory(job)
    except SandboxCrashed as crash:
        return _crashed(job, crash)


def main(folder: Path, job: Job) -> None:
    """Run the job, progress on standard output, and write the outcome."""

    def report(step: Step) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(step) + b"\n")
        sys.stdout.buffer.flush()

    outcome = run(folder, job, report)
    (folder / RESULT_FILE).write_bytes(msgspec.json.encode(outcome))


def _inspect(folder: Path, job: Job, report: Report) -> Outcome:
    source = folder / SOURCE_FOLDER
    report(Step(step="parse", share=0.02))
    read_model(source, job.files)
    path = source / entry_of(job.files)
    report(Step(step="check", share=0.1))
    inputs, outputs = facts.check_and_open(path)
    report(Step(step="read sets", share=0.2))
    graph = Graph.read(path)
    everything = _evaluation_set(folder, graph, inputs)
    _read_if_there(folder / CALIBRATION_FILE, inputs, "calibration")
    samples = everything.limited(EVALUATION_SAMPLES)
    measured = facts.measure_source(
        path, samples, folder / "measure", on_share=_shares(report, "measure", 0.3, 0.6)
    )
    found = facts.describe(
        graph,
        job.files,
        inputs,
        outputs,
        samples,
        measured,
        available=len(everything),
        on_layer=_shares(report, "probe layers", 0.6, 1.0),
    )
    return Outcome(status="ready", facts=found)


def _build(folder: Path, job: Job, report: Report) -> Outcome:
    if job.recipe is None or job.facts is None:
        raise BuildFailed("invalid_request", "A build needs a recipe and facts.", fault="system")
    path = folder / SOURCE_FOLDER / entry_of(job.files)
    report(Step(step="load", share=0.02))
    read_model(folder / SOURCE_FOLDER, job.files)
    graph = Graph.read(path)
    everything = _evaluation_set(folder, graph, job.facts.inputs)
    done = job.done or _quantized(folder, path, job, everything, report)
    samples = everything.limited(EVALUATION_SAMPLES)
    golden = 1 if samples.rows > 1 else GOLDEN_SAMPLES
    artifact = folder / ARTIFACT_FOLDER
    on_share = _shares(report, "evaluate", 0.6, 0.75)
    reference = _measured(path, samples, folder / "reference", CPU_PROVIDER, golden, on_share)
    on_share = _shares(report, "evaluate", 0.75, 0.95)
    entry, provider = artifact / package.GRAPH_FILE, job.recipe.execution_provider
    candidate = _measured(entry, samples, folder / "candidate", provider, golden, on_share)
    _check_finite(reference, candidate)
    report(Step(step="package", share=0.95))
    count, lowest = _write_golden(artifact / GOLDEN_FILE, samples, reference, candidate, golden)
    _check_tolerance(lowest)
    files = [*done, package.cut(artifact / GOLDEN_FILE, folder / CHUNKS_FOLDER, name=GOLDEN_FILE)]
    quality = evaluate.quality(reference.outputs, candidate.outputs, samples.labels)
    return Outcome(status="built", artifact=_description(files, candidate, count, lowest), quality=quality)


def _quantized(
    folder: Path, path: Path, job: Job, everything: SampleSet, report: Report
) -> list[ArtifactFile]:
    """The finished quantize step: files with their chunks, deterministic for source and recipe."""
    assert job.recipe is not None
    assert job.facts is not None
    calibration = _read_if_there(folder / CALIBRATION_FILE, job.facts.inputs, "calibration") or everything
    model = quantize(path, job.recipe, calibration, on_share=_shares(report, "quantize", 0.05, 0.4))
    artifact, chunks = folder / ARTIFACT_FOLDER, folder / CHUNKS_FOLDER
    starts = package.write_model(model, artifact)
    report(Step(step="package", share=0.45))
    done = [package.cut(artifact / package.GRAPH_FILE, chunks, name=package.GRAPH_FILE)]
    if starts[-1]:
        done.append(package.cut(artifact / package.DATA_FILE, chunks, name=package.DATA_FILE, starts=starts))
    report(Step(step="package", share=0.55, done=done))
    return done


def _evaluation_set(folder: Path, graph: Graph, inputs: list[TensorSpec]) -> SampleSet:
    found = _read_if_there(folder / EVALUATION_FILE, inputs, "evaluation")
    return found or synthetic_set(inputs, bounds=facts.index_bounds(graph, inputs))


def _read_if_there(path: Path, inputs: list[TensorSpec], kind: str) -> SampleSet | None:
    return read_set(path, inputs, kind=kind) if path.exists() else None


def _shares(report: Report, step: str, start: float, end: float) -> Callable[[float], None]:
    """A callback that reports shares of a step as shares of the job, once a second at most."""
    report(Step(step=step, share=start))
    last = time.monotonic()

    def on_share(share: float) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_S:
            last = time.monotonic()
            report(Step(step=step, share=start + (end - start) * share))

    return on_share


def _measured(
    path: Path,
    samples: SampleSet,
    folder: Path,
    provider: str,
    golden: int,
    on_share: Callable[[float], None],
) -> Measured:
    try:
        return measure(path, samples, folder, provider=provider, golden=golden, on_share=on_share)
    except MeasuredError as error:
        text = error.message.replace(str(path.parent), "")[:300]
        raise BuildFailed(
            "runtime_refused", f"ONNX Runtime refuses the build: {text}", fault="system"
        ) from error


def _check_finite(reference: Measured, candidate: Measured) -> None:
    """The source must make finite numbers of the samples, and the build too.

    Raises:
        BuildFailed: non_finite_outputs.
    """
    for whose, found in (("FP32 model", reference), ("build", candidate)):
        if not evaluate.all_finite([*found.outputs, found.batch]):
            text = f"Outputs of the {whose} are NaN or infinite on the evaluation samples. "
            advice = "Correct the model or the set." if found is reference else "Use another precision."
            raise BuildFailed("non_finite_outputs", text + advice, fault="model")


def _check_tolerance(lowest: float) -> None:
    """A build must resemble its source on every golden sample, whatever its accuracy.

    Raises:
        BuildFailed: outputs_diverge.
    """
    if evaluate.tolerance(lowest) < evaluate.MINIMUM_TOLERANCE:
        raise BuildFailed(
            "outputs_diverge",
            f"On a golden sample the build's output has cosine {lowest:.4f} with FP32's: no self-test "
            "could tell whether it works. Use another precision.",
            fault="model",
        )


def _write_golden(
    path: Path, samples: SampleSet, reference: Measured, candidate: Measured, golden: int
) -> tuple[int, float]:
    """Write self-test data and return how many samples it has and the lowest cosine found on it.

    Both ways of running it count: sample by sample, and as one batch. A model that fixes its
    batch inside gets one sample.
    """
    batched = reference.figures.batched and candidate.figures.batched
    count = min(golden if batched else 1, len(samples), len(reference.outputs), len(candidate.outputs))
    pairs = list(zip(reference.outputs[:count], candidate.outputs[:count], strict=True))
    references = reference.batch if batched else reference.outputs[0]
    if batched:
        pairs.append((reference.batch, candidate.batch))
    rows = slice(0, count * samples.rows)
    arrays = {f"input/{name}": values[rows] for name, values in samples.inputs.items()}
    arrays |= {f"reference/{name}": values for name, values in references.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return count, min(evaluate.lowest_row_cosine(left, right) for left, right in pairs)


def _description(
    files: list[ArtifactFile], candidate: Measured, golden: int, lowest: float
) -> ArtifactDescription:
    chunks = {chunk.stored_sha256: chunk for file in files for chunk in file.chunks}
    return ArtifactDescription(
        entry=package.GRAPH_FILE,
        files=files,
        golden_path=GOLDEN_FILE,
        golden_samples=golden,
        golden_min_cosine=evaluate.tolerance(lowest),
        size_bytes=sum(file.size_bytes for file in files),
        download_bytes=sum(chunk.stored_size_bytes for chunk in chunks.values()),
        memory_bytes=candidate.figures.memory_bytes,
        latency_p50_ms=candidate.figures.latency_p50_ms,
        provider=candidate.figures.provider,
        minimum_runtime=MINIMUM_RUNTIME,
        tool_versions=facts.tool_versions(),
    )


def _out_of_memory(job: Job) -> Outcome:
    if job.kind == "inspect":
        message = "Checking the model took more memory than a job may use; upload a smaller model."
        return Outcome(status="refused", code="resource_limit", message=message, fault="model")
    message = "The build took more memory than a job may use; give the worker more."
    return Outcome(status="failed", code=SandboxOutOfMemory.code, message=message, fault="system")


def _crashed(job: Job, crash: WorkerError) -> Outcome:
    if job.kind == "inspect":
        return Outcome(status="refused", code="invalid_model", message=crash.message, fault="model")
    return Outcome(status="failed", code=crash.code, message=crash.message, fault="system")
