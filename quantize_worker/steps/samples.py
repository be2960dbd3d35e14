"""Evaluation and calibration sets: reading, checking, slicing into samples, making synthetic ones.

A sample is what one run takes: one row of every input (axis 0), or as many rows as the model
fixes. Sets are ``.npz`` files with an array per input, and optional ``labels``. Where axis 0 of an
input is not the samples' (a scalar, a recurrent state), the set is stacked: every array has one
more axis in front, the samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import TensorSpec
from quantize_worker.errors import ModelRefused
from quantize_worker.steps.archives import read_arrays
from quantize_worker.steps.axes import rows_per_run, sizes

Array = NDArray[Any]
Sample = dict[str, Array]
LABELS = "labels"
MAXIMUM_SET_BYTES = 4 << 30  # uncompressed
SYNTHETIC_SAMPLES = 16
SYNTHETIC_LENGTH = 16  # for dimensions that the model leaves open
SYNTHETIC_SEED = 20_26
CALIBRATION_SHARE = 4  # one sample in so many calibrates, where no set for it is given
MAXIMUM_CALIBRATION = 128


@dataclass(frozen=True)
class SampleSet:
    """Samples with the labels that belong to them.

    ``rows`` of axis 0 make a sample; in a ``stacked`` set, one, whose axis is then dropped.
    """

    inputs: dict[str, Array]
    labels: Array | None  # (rows of all samples, …)
    rows: int
    synthetic: bool = False
    stacked: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()))) // self.rows

    def sample(self, index: int) -> Sample:
        if self.stacked:
            return {name: np.asarray(values[index]) for name, values in self.inputs.items()}
        part = slice(index * self.rows, (index + 1) * self.rows)
        return {name: values[part] for name, values in self.inputs.items()}

    def samples(self) -> list[Sample]:
        return [self.sample(index) for index in range(len(self))]

    def batch(self, count: int) -> Sample:
        """The first samples as one run; just the first of a stacked set, which has no axis for more."""
        if self.stacked:
            return self.sample(0)
        return {name: values[: count * self.rows] for name, values in self.inputs.items()}

    def chosen(self, order: Sequence[int] | NDArray[np.integer]) -> SampleSet:
        """These samples, in this order."""
        index = np.asarray(order, dtype=np.int64)
        rows = (index[:, None] * self.rows + np.arange(self.rows)).reshape(-1)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, inputs={n: v[rows] for n, v in self.inputs.items()}, labels=labels)

    def limited(self, count: int) -> SampleSet:
        """At most ``count`` samples, spread evenly over the set."""
        if len(self) <= count:
            return self
        return self.chosen(np.linspace(0, len(self) - 1, count).round().astype(int))


def read_set(
    path: Path, specs: Sequence[TensorSpec], *, kind: str, maximum_bytes: int = MAXIMUM_SET_BYTES
) -> SampleSet:
    """Read and check a set.

    Args:
        path: an ``.npz`` file.
        specs: the model's inputs.
        kind: "evaluation" or "calibration", for messages.
        maximum_bytes: what it may hold when unpacked.

    Raises:
        ModelRefused: invalid_samples, too_large, wrong_input_names, wrong_sample_shape or wrong_labels.
    """
    arrays = read_arrays(path, kind, maximum_bytes)
    expected = {spec.name for spec in specs}
    labels = None if LABELS in expected else arrays.pop(LABELS, None)
    if set(arrays) != expected:
        raise ModelRefused(
            "wrong_input_names",
            f"The {kind} set has arrays {_listed(arrays)}, the model's inputs are {_listed(expected)}; "
            "name the arrays after the inputs.",
        )
    stacked, rows = _form(arrays, specs)
    inputs = {spec.name: _checked(arrays[spec.name], spec, kind, stacked=stacked) for spec in specs}
    counts = {len(values) for values in inputs.values()}
    if len(counts) != 1 or not (count := counts.pop()) or count % rows:
        raise ModelRefused(
            "wrong_sample_shape",
            f"The arrays of the {kind} set must all have the same first axis, a multiple of {rows}.",
        )
    return SampleSet(inputs, _checked_labels(labels, count, kind), rows, stacked=stacked)


def synthetic_set(
    specs: Sequence[TensorSpec],
    *,
    bounds: Mapping[str, int],
    lengths: frozenset[str] | set[str] = frozenset(),
    length: int = SYNTHETIC_LENGTH,
    past: int = SYNTHETIC_LENGTH,
) -> SampleSet:
    """Samples drawn at random, the same every time: normal numbers, indices within bounds, ones.

    Args:
        specs: the model's inputs.
        bounds: for integer inputs that index a table, its number of rows.
        lengths: inputs that say how long sequences are.
        length: of dimensions that the model leaves open.
        past: of what a decoder has seen before.
    """
    generator = np.random.default_rng(SYNTHETIC_SEED)
    rows = rows_per_run(specs)
    known = sizes(specs, length, past)
    inputs = {}
    for spec in specs:
        shape = [dim if isinstance(dim, int) else known[dim] for dim in spec.shape]
        whole = (SYNTHETIC_SAMPLES * rows, *shape[1:]) if rows else (SYNTHETIC_SAMPLES, *shape)
        kind = np.dtype(spec.dtype)
        if kind.kind == "f" and "mask" not in spec.name.lower():
            inputs[spec.name] = generator.standard_normal(whole).astype(kind)
        elif spec.name in bounds:
            inputs[spec.name] = generator.integers(0, bounds[spec.name], whole).astype(kind)
        else:
            inputs[spec.name] = np.full(whole, length if spec.name in lengths else 1, kind)
            if kind.kind == "b" and inputs[spec.name].size == SYNTHETIC_SAMPLES:
                inputs[spec.name][1::2] = False  # a switch, not a mask: both ways
    return SampleSet(inputs, None, rows or 1, synthetic=True, stacked=not rows)


def calibration_and_gate(
    evaluation: SampleSet, calibration: SampleSet | None = None
) -> tuple[SampleSet, SampleSet]:
    """Two sets without a sample in common: one to calibrate on, one to judge builds by.

    Samples of the calibration set that the evaluation set has as well are dropped from it. Where none
    is left, or none was given, the evaluation set is split.
    """
    if calibration is not None:
        judged = set(_digests(evaluation))
        kept = [index for index, digest in enumerate(_digests(calibration)) if digest not in judged]
        if kept:
            return (calibration if len(kept) == len(calibration) else calibration.chosen(kept)), evaluation
    return split(evaluation)


def split(evaluation: SampleSet) -> tuple[SampleSet, SampleSet]:
    """An evaluation set as (calibration, gate): every fourth sample calibrates, up to 128.

    Equal samples go to the same side. Deterministic. A set of one sample has to serve for both.
    """
    first: dict[str, int] = {}
    groups = [first.setdefault(digest, len(first)) for digest in _digests(evaluation)]
    if len(first) < 2:
        return evaluation, evaluation
    share = min(CALIBRATION_SHARE, len(first))
    step = max(share, -(-len(first) // MAXIMUM_CALIBRATION))
    calibrates = [group % step == step - 1 for group in groups]
    order = np.arange(len(evaluation))
    return evaluation.chosen(order[calibrates]), evaluation.chosen(order[np.logical_not(calibrates)])


def _digests(samples: SampleSet) -> list[str]:
    """A digest of every sample's inputs; equal samples have equal ones."""
    found = []
    for index in range(len(samples)):
        digest = hashlib.sha256()
        for name, values in sorted(samples.sample(index).items()):
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        found.append(digest.hexdigest())
    return found


def _form(arrays: Mapping[str, Array], specs: Sequence[TensorSpec]) -> tuple[bool, int]:
    """Whether a set is stacked, and the rows that make a sample."""
    rows = rows_per_run(specs)
    every = all(arrays[spec.name].ndim == len(spec.shape) + 1 for spec in specs)
    return (True, 1) if every or not rows else (False, rows)


def _checked(values: Array, spec: TensorSpec, kind: str, *, stacked: bool) -> Array:
    wanted = np.dtype(spec.dtype)
    if values.dtype != wanted and not np.can_cast(values.dtype, wanted, "same_kind"):
        raise ModelRefused(
            "invalid_samples",
            f"{spec.name!r} of the {kind} set is {values.dtype}, the model takes {wanted}; convert it.",
        )
    _check_shape(values, spec, kind, stacked=stacked)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite
        converted = np.ascontiguousarray(values, dtype=wanted)
    if wanted.kind == "f" and not np.isfinite(converted).all():
        raise ModelRefused(
            "invalid_samples",
            f"{spec.name!r} of the {kind} set has values that are NaN or infinite as {wanted}; "
            "leave those samples out or replace the values.",
        )
    return converted


def _check_shape(values: Array, spec: TensorSpec, kind: str, *, stacked: bool) -> None:
    expected = ["samples", *spec.shape] if stacked else ["samples", *spec.shape[1:]]
    fits = values.ndim == len(expected) and all(
        not isinstance(d, int) or d == n for d, n in zip(expected, values.shape, strict=True)
    )
    if not fits:
        wanted = f"({', '.join(str(dim) for dim in expected)})"
        raise ModelRefused(
            "wrong_sample_shape",
            f"{spec.name!r} of the {kind} set has shape {values.shape}; make it {wanted}, with the "
            "samples along the first axis.",
        )


def _checked_labels(labels: Array | None, count: int, kind: str) -> Array | None:
    """Labels as (rows,), or (rows, …) where a row has several."""
    if labels is None:
        return None
    if not labels.ndim or len(labels) != count or labels.dtype.kind not in "iu":
        raise ModelRefused(
            "wrong_labels",
            f"The labels of the {kind} set are {labels.dtype} of shape {labels.shape}; they must be "
            f"{count} whole numbers, one per sample (or one row of them per sample).",
        )
    return labels.astype(np.int64).reshape(count) if labels.size == count else labels.astype(np.int64)


def _listed(names: object) -> str:
    return ", ".join(sorted(str(name) for name in names)) or "none"  # type: ignore[attr-defined]
