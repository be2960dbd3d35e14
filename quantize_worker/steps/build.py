"""Builds: from the analysis of a model and a recipe to an artifact that has passed the gate's eyes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from quantize_worker.contract import ArtifactDescription, ArtifactFile, Recipe
from quantize_worker.errors import BuildFailed, SandboxCrashed, SandboxOutOfMemory
from quantize_worker.steps import evaluate, facts, foundation, package, references
from quantize_worker.steps.assemble import assemble
from quantize_worker.steps.exchange import (
    ANALYSIS_FOLDER,
    ARTIFACT_FOLDER,
    CHUNKS_FOLDER,
    Built,
    Job,
    Outcome,
    Report,
    Step,
)
from quantize_worker.steps.foundation import GOLDEN_SAMPLES, Ground
from quantize_worker.steps.learning import learned_analysis
from quantize_worker.steps.measure import Measured, MeasuredError, Runner, measure
from quantize_worker.steps.samples import SampleSet
from quantize_worker.steps.shares import shares

GOLDEN_FILE = "golden.npz"
MINIMUM_RUNTIME = "1.32.0"  # of ONNX Runtime; what the artifacts are tested with


def build(folder: Path, job: Job, report: Report) -> Outcome:
    """Build the job's recipes one after the other; what is wrong with one does not end the others."""
    ground = foundation.lay(folder, job, report)
    with Runner() as runner:
        bench = _Bench(folder, job, ground, runner)
        builds = [bench.built(index, report) for index in range(len(job.recipes))]
    return Outcome(status="built", builds=builds)


class _Bench:
    """Where one job's recipes are built."""

    def __init__(self, folder: Path, job: Job, ground: Ground, runner: Runner) -> None:
        self._folder, self._job, self._ground, self._runner = folder, job, ground, runner
        self._chunks = folder / CHUNKS_FOLDER

    def built(self, index: int, report: Report) -> Built:
        """Build one recipe; every error that a build can have becomes its answer."""
        started = time.monotonic()
        try:
            found = self._built(index, report)
        except BuildFailed as failure:
            found = Built(code=failure.code, message=failure.message, fault=failure.fault)
        except (MemoryError, SandboxOutOfMemory):
            message = "The build took more memory than a job may use; give the worker more."
            found = Built(code=SandboxOutOfMemory.code, message=message, fault="system")
        except SandboxCrashed as crash:
            found = Built(code=crash.code, message=crash.message, fault="system")
        found.seconds = time.monotonic() - started
        return found

    def _built(self, index: int, report: Report) -> Built:
        recipe, artifact = self._job.recipes[index], self._folder / ARTIFACT_FOLDER / str(index)
        begin, end = index / len(self._job.recipes), (index + 1) / len(self._job.recipes)
        part = (end - begin) / 10
        resumed = self._job.done if index == 0 else []
        done = resumed or self._assembled(recipe, artifact, report, begin, begin + 4 * part)
        if not resumed:
            report(Step(step="package", share=begin + 4 * part, done=done if self._job.chunked else []))
        on_share = shares(report, "evaluate", begin + 5 * part, begin + 9 * part)
        floors = self._job.floors[index] if index < len(self._job.floors) else []
        measured = self._measured(artifact, recipe, floors, index, on_share)
        report(Step(step="package", share=begin + 9 * part))
        count, lowest = self._golden(artifact / GOLDEN_FILE, measured)
        files = [*done, self._file(artifact / GOLDEN_FILE)]
        return Built(
            artifact=_description(files, measured, count, lowest, self._latency_ms(measured)),
            quality=measured.quality,
        )

    def _assembled(
        self, recipe: Recipe, artifact: Path, report: Report, begin: float, end: float
    ) -> list[ArtifactFile]:
        """The finished assembling step: files with their chunks, deterministic for source and recipe."""
        analysis = self._folder / ANALYSIS_FOLDER
        middle = begin + (end - begin) * 0.8 if recipe.learned else begin
        if recipe.learned:
            analysis = self._learned(recipe, artifact, shares(report, "learn", begin, middle))
        on_share = shares(report, "assemble", middle, end)
        starts = assemble(self._ground.model, recipe, analysis, artifact, on_share=on_share)
        done = [self._file(artifact / package.GRAPH_FILE)]
        if starts[-1]:
            done.append(self._file(artifact / package.DATA_FILE, starts))
        return done

    def _learned(self, recipe: Recipe, artifact: Path, on_share: Callable[[float], None]) -> Path:
        """The analysis with learned rounding of the recipe's INT4 matrices."""
        return learned_analysis(
            self._ground.model,
            recipe,
            self._folder / ANALYSIS_FOLDER,
            self._ground.calibration,
            self._folder / "learning" / artifact.name,
            lean=foundation.is_large(self._ground.model),
            on_share=on_share,
        )

    def _file(self, path: Path, starts: list[int] | None = None) -> ArtifactFile:
        if self._job.chunked:
            return package.cut(path, self._chunks, name=path.name, starts=starts)
        plain = foundation.described(path, path.parent)
        return ArtifactFile(path=plain.path, sha256=plain.sha256, size_bytes=plain.size_bytes, chunks=[])

    def _measured(
        self,
        artifact: Path,
        recipe: Recipe,
        floors: list[float],
        index: int,
        on_share: Callable[[float], None],
    ) -> Measured:
        gate = self._ground.gate
        try:
            measured = measure(
                artifact / package.GRAPH_FILE,
                gate,
                self._folder / "measure" / str(index),
                provider=recipe.execution_provider,
                golden=1 if gate.rows > 1 else GOLDEN_SAMPLES,
                references=self._ground.references,
                floors=floors,
                runner=self._runner,
                lean=foundation.is_large(self._ground.model),
                on_share=on_share,
            )
        except MeasuredError as error:
            text = error.message.replace(str(artifact), "")[:300]
            raise BuildFailed(
                "runtime_refused", f"ONNX Runtime refuses the build: {text}", fault="system"
            ) from error
        if not measured.finite:
            raise BuildFailed(
                "non_finite_outputs",
                "Outputs of the build are NaN or infinite on the evaluation samples. Use another precision.",
                fault="model",
            )
        return measured

    def _latency_ms(self, measured: Measured) -> float:
        """0 for a large model: it ran on mapped, unpacked weights, which says nothing about a device."""
        return 0.0 if foundation.is_large(self._ground.model) else measured.figures.latency_p50_ms

    def _golden(self, path: Path, candidate: Measured) -> tuple[int, float]:
        """Write self-test data; how many samples it has and the lowest cosine found on them.

        Both ways of running count: sample by sample, and as one batch. A model that fixes its batch
        inside gets one sample.

        Raises:
            BuildFailed: outputs_diverge.
        """
        gate = self._ground.gate
        with references.read(self._ground.references) as reference:
            batch = reference.batch()
            batched = bool(batch) and candidate.figures.batched and not gate.stacked
            limit = GOLDEN_SAMPLES if batched else 1
            count = min(limit, len(gate), len(reference), len(candidate.outputs))
            pairs = list(zip(reference[:count], candidate.outputs[:count], strict=True))
            expected = batch if batched else reference[0]
        if batched:
            pairs.append((batch, candidate.batch))
        _write_golden(path, gate, count, expected, batched=batched)
        lowest = min(evaluate.lowest_row_cosine(left, right) for left, right in pairs)
        _check_tolerance(lowest)
        return count, lowest


def _write_golden(
    path: Path, gate: SampleSet, count: int, expected: dict[str, np.ndarray], *, batched: bool
) -> None:
    inputs = gate.batch(count) if batched else gate.sample(0)
    arrays = {f"input/{name}": values for name, values in inputs.items()}
    arrays |= {f"reference/{name}": values for name, values in expected.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _check_tolerance(lowest: float) -> None:
    """A build must resemble its source on every golden sample, whatever its accuracy."""
    if evaluate.tolerance(lowest) < evaluate.MINIMUM_TOLERANCE:
        raise BuildFailed(
            "outputs_diverge",
            f"On a golden sample the build's output has cosine {lowest:.4f} with FP32's: no self-test "
            "could tell whether it works. Use another precision.",
            fault="model",
        )


def _description(
    files: list[ArtifactFile], measured: Measured, golden: int, lowest: float, latency_ms: float
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
        memory_bytes=measured.figures.memory_bytes,
        latency_p50_ms=latency_ms,
        provider=measured.figures.provider,
        minimum_runtime=MINIMUM_RUNTIME,
        tool_versions=facts.tool_versions(),
    )
