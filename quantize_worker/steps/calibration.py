"""What activations look like on calibration samples: ranges for static quantization, and which
columns of a weight matter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Sample = dict[str, NDArray[Any]]
BINS = 2048
RANGE_STEPS = 64
WATCHED_FILE = ".pocketfleet-watched.onnx"


@dataclass
class Activation:
    """Statistics of one tensor over all calibration samples."""

    low: float = 0.0  # never above 0, so that zero is exact
    high: float = 0.0
    histogram: NDArray[np.float64] | None = None  # between low and high
    squares: NDArray[np.float64] | None = None  # mean square per column (last axis)
    gram: Floats | None = None  # sum of xᵀx over rows (columns, columns)
    rows: int = 0

    def widen(self, values: Floats) -> None:
        """Widen the range to hold this sample."""
        self.low = min(self.low, float(values.min(initial=0.0)))
        self.high = max(self.high, float(values.max(initial=0.0)))

    def count(self, values: Floats) -> None:
        """Add this sample to the histogram; the range must hold it already."""
        bounds = (self.low, self.high if self.high > self.low else self.low + 1.0)
        found = np.histogram(values, bins=BINS, range=bounds)[0].astype(np.float64)
        self.histogram = found if self.histogram is None else self.histogram + found

    def weigh(self, values: Floats) -> None:
        """Add this sample to the mean squares of columns."""
        flat = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
        squares = np.square(flat, dtype=np.float64).sum(axis=0)
        if self.squares is None or self.squares.shape == squares.shape:
            self.squares = squares if self.squares is None else self.squares + squares
            self.rows += len(flat)

    def correlate(self, values: Floats) -> None:
        """Add this sample to the Gram matrix."""
        flat = values.reshape(-1, values.shape[-1])
        found = flat.T @ flat
        self.gram = found if self.gram is None else self.gram + found

    def importance(self) -> Floats | None:
        """Mean square per column, scaled to a mean of 1; None where it says nothing."""
        if self.squares is None or not self.squares.any():
            return None
        mean = self.squares.mean()
        shares: Floats = np.maximum(self.squares / mean, 1e-3).astype(np.float32)
        return shares

    def best_range(self, levels: int) -> tuple[float, float]:
        """The range whose rounding to ``levels`` steps loses the least squared error.

        Both ends are narrowed in steps; what lies outside is clipped.
        """
        if self.histogram is None or self.high <= self.low:
            return self.low, self.high
        centres = self.low + (np.arange(BINS) + 0.5) * (self.high - self.low) / BINS
        low, high = self.low, self.high
        for _ in range(2):
            low = min(_ends(self.low), key=lambda end: self._loss(centres, end, high, levels))
            high = min(_ends(self.high), key=lambda end: self._loss(centres, low, end, levels))
        return low, high

    def _loss(self, centres: NDArray[np.float64], low: float, high: float, levels: int) -> float:
        """Squared rounding error (step² / 12 inside) plus squared clipping error, by histogram."""
        assert self.histogram is not None
        clipped = centres - np.clip(centres, low, high)
        step = (high - low) / (levels - 1)
        inside = self.histogram[clipped == 0].sum()
        return float((self.histogram * np.square(clipped)).sum() + inside * step * step / 12.0)


def observe(
    path: Path,
    tensors: Sequence[str],
    samples: Sequence[Sample],
    *,
    ranged: Collection[str] = (),
    correlated: Collection[str] = (),
    on_sample: Callable[[float], None] = lambda share: None,
) -> dict[str, Activation]:
    """Run the samples, twice where ranges are wanted: the second time for histograms.

    Args:
        path: the source; a graph that also answers ``tensors`` is written beside it for a while.
        tensors: names of float tensors to watch.
        samples: inputs by name, one sample each.
        ranged: those of ``tensors`` whose range is wanted.
        correlated: those whose Gram matrix is wanted.
        on_sample: called after each run with the share done.
    """
    found = {name: Activation() for name in tensors}
    inner = [name for name in found if name not in samples[0]]
    session = _watching_session(path, inner)
    passes = 2 if ranged else 1
    for index, sample in enumerate([*samples] * passes):
        answers = dict(zip(inner, session.run(inner, sample), strict=True)) if inner else {}
        for name, activation in found.items():
            values = answers[name] if name in answers else sample[name]
            if index >= len(samples):
                if name in ranged:
                    activation.count(values)
                continue
            activation.weigh(values)
            if name in ranged:
                activation.widen(values)
            if name in correlated:
                activation.correlate(values)
        on_sample((index + 1) / (len(samples) * passes))
    return found


def _watching_session(path: Path, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session that answers inner tensors. One thread, so that sums do not vary."""
    model = onnx.load(path, load_external_data=False)
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in tensors if name not in present
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    watched = path.with_name(WATCHED_FILE)
    watched.write_bytes(model.SerializeToString())
    try:
        return onnxruntime.InferenceSession(str(watched), options, providers=["CPUExecutionProvider"])
    finally:
        watched.unlink()


def _ends(end: float) -> list[float]:
    """The end of a range and others nearer to zero."""
    return [float(end * share) for share in np.linspace(1.0, 0.1, RANGE_STEPS)]
