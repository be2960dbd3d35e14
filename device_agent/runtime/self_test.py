"""The golden-input self-test: does this build still compute what was promised, here?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from device_agent.errors import InferenceError, InstallError
from device_agent.protocol.manifest import Manifest
from device_agent.protocol.messages import SelfTest
from device_agent.runtime.session import Session, Tensor

LATENCY_RUNS = 20
LATENCY_BUDGET_S = 1.0

Tensors = dict[str, Tensor]


def self_test(
    session: Session,
    folder: Path,
    manifest: Manifest,
    *,
    emulated: bool,
    clock_s: Callable[[], float] = time.perf_counter,
) -> SelfTest:
    """Run the golden samples one at a time and compare with the references.

    Args:
        session: the build on its execution provider.
        folder: the slot.
        emulated: whether the accelerator is one that the CPU stands in for.

    Returns:
        The result, passed.

    Raises:
        InstallError: ``output_mismatch`` (with the result) when the lowest cosine is too low,
            ``session_failed`` when the samples do not fit the model.
    """
    inputs, references = load_golden(folder / manifest.golden.path)
    try:
        rows = _samples(inputs, manifest.golden.samples, session)
        outputs = _outputs(session, rows, inputs, references)
        latency_ms = _latency_p50_ms(session, rows, clock_s)
    except InferenceError as error:
        raise InstallError("session_failed", f"the golden samples do not run: {error}") from error
    lowest = min(
        (min_row_cosine(outputs[name], references[name]) for name in _compared(references)), default=1.0
    )
    result = SelfTest(
        passed=lowest * 1e6 >= manifest.golden.min_cosine_ppm,
        provider=session.provider,
        emulated=emulated,
        min_cosine=lowest,
        latency_p50_ms=latency_ms,
        peak_memory_bytes=psutil.Process().memory_info().rss,
    )
    if not result.passed:
        promised = manifest.golden.min_cosine_ppm / 1e6
        raise InstallError(
            "output_mismatch", f"lowest cosine {lowest:.6f}, promised {promised:.6f}", self_test=result
        )
    return result


def load_golden(path: Path) -> tuple[Tensors, Tensors]:
    """Inputs and references of a golden file (``.npz`` without pickles).

    Raises:
        InstallError: ``session_failed`` if it cannot be read or lacks either.
    """
    inputs: Tensors = {}
    references: Tensors = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                kind, _, name = key.partition("/")
                {"input": inputs, "reference": references}[kind][name] = archive[key]
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds between them
        raise InstallError("session_failed", f"the golden file cannot be read: {error}") from error
    if not inputs or not references:
        raise InstallError("session_failed", "the golden file lacks inputs or references")
    return inputs, references


def min_row_cosine(output: Tensor, reference: Tensor) -> float:
    """Lowest cosine between matching rows (axis 0), in [-1, 1]; -1 where shapes differ or not finite."""
    if output.shape != reference.shape or output.size == 0:
        return -1.0
    have = output.reshape(output.shape[0], -1).astype(np.float64)  # (samples, values)
    want = reference.reshape(reference.shape[0], -1).astype(np.float64)
    if not np.isfinite(have).all():
        return -1.0
    norms = np.linalg.norm(have, axis=1) * np.linalg.norm(want, axis=1)
    both_zero = ~have.any(axis=1) & ~want.any(axis=1)
    cosines = np.divide((have * want).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)
    return float(np.clip(np.where(both_zero, 1.0, cosines), -1.0, 1.0).min())


def _samples(inputs: Tensors, samples: int, session: Session) -> list[Tensors]:
    fixed = {info.name: info.shape[0] if info.shape else None for info in session.inputs}
    whole = any(fixed.get(name) not in (None, 1) for name in inputs)  # the model's batch size is fixed
    if whole:
        return [inputs]
    return [
        {name: array[i : i + 1] if array.shape[:1] == (samples,) else array for name, array in inputs.items()}
        for i in range(samples)
    ]


def _compared(references: Tensors) -> list[str]:
    """Floating-point outputs with rows, as the builder measures them; indices and labels may differ."""
    return [name for name, reference in references.items() if reference.dtype.kind == "f" and reference.ndim]


def _outputs(session: Session, rows: list[Tensors], inputs: Tensors, references: Tensors) -> Tensors:
    """Outputs of the samples one by one; of all at once where rows are not the first axis."""
    outputs = _concatenate([session.run(row, list(references)) for row in rows])
    if len(rows) > 1 and any(outputs[name].shape != references[name].shape for name in _compared(references)):
        return session.run(inputs, list(references))
    return outputs


def _concatenate(results: list[dict[str, Any]]) -> Tensors:
    return {name: np.concatenate([np.atleast_1d(one[name]) for one in results]) for name in results[0]}


def _latency_p50_ms(session: Session, rows: list[Tensors], clock_s: Callable[[], float]) -> float:
    times: list[float] = []
    deadline = clock_s() + LATENCY_BUDGET_S
    while len(times) < LATENCY_RUNS and (not times or clock_s() < deadline):
        started = clock_s()
        session.run(rows[len(times) % len(rows)])
        times.append((clock_s() - started) * 1000.0)
    return statistics.median(times)
