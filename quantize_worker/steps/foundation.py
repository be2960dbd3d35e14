"""What every later job starts from: the prepared model, the sample sets, and what FP32 makes of them.

It is the first stage of an inspection; its files are described by :func:`files`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from quantize_worker.contract import AnalysisFile, KeptNode, TensorSpec
from quantize_worker.errors import ModelRefused
from quantize_worker.steps import references, sets
from quantize_worker.steps.evaluate import accuracy
from quantize_worker.steps.exchange import (
    ANALYSIS_FOLDER,
    CALIBRATION_FILE,
    EVALUATION_FILE,
    FIRST_STAGE,
    SOURCE_FOLDER,
    Job,
    Report,
    Step,
)
from quantize_worker.steps.facts import non_finite_outputs
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.measure import CPU_PROVIDER, Measured, MeasuredError, measure
from quantize_worker.steps.opening import short
from quantize_worker.steps.prepare import prepare
from quantize_worker.steps.samples import SampleSet
from quantize_worker.steps.shares import shares

MODEL = "model/model.onnx"
GATE = "gate.npz"
CALIBRATION = "calibration.npz"
REFERENCES = "references.npz"
FOUNDATION = "foundation.json"
GOLDEN_SAMPLES = 8
LEAN_BYTES = 1 << 30  # a larger model runs on its mapped weights


class Foundation(msgspec.Struct, kw_only=True):
    """What the first stage found, beside its files."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    did: list[str]
    kept: list[KeptNode]
    available: int  # samples in the whole evaluation set
    measured: int
    accuracy: float | None
    latency_p50_ms: float
    memory_bytes: int


@dataclass(frozen=True)
class Ground:
    """The first stage's files, opened."""

    model: Path
    graph: Graph
    gate: SampleSet
    calibration: SampleSet
    references: Path
    found: Foundation


def lay(folder: Path, job: Job, report: Report) -> Ground:
    """Do the first stage, or open what an earlier job has left of it.

    Raises:
        ModelRefused: if the upload is at fault.
    """
    place = folder / ANALYSIS_FOLDER
    if FIRST_STAGE not in job.stages:
        found = _found(folder, place, job, report)
        (place / FOUNDATION).write_bytes(msgspec.json.encode(found))
        report(Step(step="store", share=0.3, stage=FIRST_STAGE, files=files(place)))
    return Ground(
        model=place / MODEL,
        graph=Graph.read(place / MODEL),
        gate=sets.read(place / GATE),
        calibration=sets.read(place / CALIBRATION),
        references=place / REFERENCES,
        found=msgspec.json.decode((place / FOUNDATION).read_bytes(), type=Foundation),
    )


def files(place: Path) -> list[AnalysisFile]:
    """Every file below ``place`` with its digest, in order."""
    paths = sorted(path for path in place.rglob("*") if path.is_file())
    return [described(path, place) for path in paths]


def described(path: Path, place: Path, *, layer: str = "", form: str = "") -> AnalysisFile:
    """A file of the analysis; ``layer`` and ``form`` (its format) for candidates."""
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    relative = path.relative_to(place).as_posix()
    return AnalysisFile(
        path=relative, sha256=sha256, size_bytes=path.stat().st_size, layer=layer, format=form
    )


def is_large(model: Path) -> bool:
    """Whether a model is run on its mapped weights, without copies of them."""
    return sum(path.stat().st_size for path in model.parent.iterdir()) >= LEAN_BYTES


def _found(folder: Path, place: Path, job: Job, report: Report) -> Foundation:
    on_share = shares(report, "prepare", 0.01, 0.12)
    prepared = prepare(folder / SOURCE_FOLDER, job.files, (place / MODEL).parent, on_share=on_share)
    inputs, outputs = prepared.inputs, prepared.outputs
    report(Step(step="read sets", share=0.14))
    calibration, gate, available = sets.read_sets(
        folder / EVALUATION_FILE, folder / CALIBRATION_FILE, prepared.generated, inputs
    )
    measured = _measured(prepared.path, gate, folder / "fp32", report)
    seen = gate.chosen(range(len(measured.outputs)))
    references.write(place / REFERENCES, measured.outputs, measured.batch)
    sets.write(place / GATE, seen)
    sets.write(place / CALIBRATION, calibration)
    return Foundation(
        inputs=inputs,
        outputs=outputs,
        did=prepared.did,
        kept=prepared.kept,
        available=available,
        measured=len(seen),
        accuracy=None if seen.labels is None else accuracy(measured.outputs, seen.labels),
        latency_p50_ms=measured.figures.latency_p50_ms,
        memory_bytes=measured.figures.memory_bytes,
    )


def _measured(model: Path, gate: SampleSet, folder: Path, report: Report) -> Measured:
    """Run FP32 on the samples that will judge builds."""
    on_share = shares(report, "measure", 0.15, 0.3)
    golden = 1 if gate.rows > 1 else GOLDEN_SAMPLES
    try:
        measured = measure(
            model,
            gate,
            folder,
            provider=CPU_PROVIDER,
            golden=golden,
            lean=is_large(model),
            on_share=on_share,
        )
    except MeasuredError as error:
        raise _does_not_run(gate, short(error.message, model)) from error
    if not measured.finite:
        raise non_finite_outputs(gate)
    return measured


def _does_not_run(gate: SampleSet, words: str) -> ModelRefused:
    if gate.synthetic:
        return ModelRefused(
            "invalid_model",
            "The model does not run on generated inputs; upload an evaluation set with real ones. "
            f"ONNX Runtime says: {words}",
        )
    return ModelRefused(
        "wrong_sample_shape",
        f"The model does not run on the evaluation set; check shapes and values. ONNX Runtime says: {words}",
    )
