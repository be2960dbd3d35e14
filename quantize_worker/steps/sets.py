"""The sample sets of a job: read from the upload or generated, and kept with the analysis."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quantize_worker.contract import TensorSpec
from quantize_worker.steps.gate import shuffled
from quantize_worker.steps.samples import SampleSet, calibration_and_gate, read_set

GATE_SAMPLES = 128
CALIBRATION_SAMPLES = 96
_INPUT = "input/"


def read_sets(
    evaluation: Path, calibration: Path, generated: SampleSet, inputs: list[TensorSpec]
) -> tuple[SampleSet, SampleSet, int]:
    """The sets that calibrate and that judge builds, without a sample in common.

    Without an evaluation set both are ``generated``; a calibration set alone still calibrates.

    Returns:
        calibration, gate (in a fixed random order) and the samples that the evaluation set has.

    Raises:
        ModelRefused: if a set does not fit the model.
    """
    given = read_set(calibration, inputs, kind="calibration") if calibration.exists() else None
    if evaluation.exists():
        everything = read_set(evaluation, inputs, kind="evaluation")
        calibrates, judges = calibration_and_gate(everything, given)
        available = len(everything)
    else:
        judges = generated
        calibrates, available = given or judges, len(judges)
    return calibrates.limited(CALIBRATION_SAMPLES), shuffled(judges.limited(GATE_SAMPLES)), available


def write(path: Path, samples: SampleSet) -> None:
    """Keep a set; equal sets give equal bytes."""
    arrays = {f"{_INPUT}{name}": values for name, values in samples.inputs.items()}
    if samples.labels is not None:
        arrays["labels"] = samples.labels
    arrays["form"] = np.array([samples.rows, samples.synthetic, samples.stacked], np.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read(path: Path) -> SampleSet:
    """A set that :func:`write` has kept."""
    with np.load(path, allow_pickle=False) as stored:
        rows, synthetic, stacked = (int(value) for value in stored["form"])
        inputs = {name[len(_INPUT) :]: stored[name] for name in stored.files if name.startswith(_INPUT)}
        labels = stored["labels"] if "labels" in stored.files else None
        return SampleSet(inputs, labels, rows, bool(synthetic), bool(stacked))
