"""Evaluation and calibration sets: reading, checking, slicing into samples, making synthetic ones.

A sample is what one run takes: one row of every input (axis 0), or as many rows as the model
fixes. Sets are ``.npz`` files with an array per input, and optional ``labels``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import TensorSpec
from quantize_worker.errors import ModelRefused

Array = NDArray[Any]
Sample = dict[str, Array]
LABELS = "labels"
MAXIMUM_SET_BYTES = 4 << 30  # uncompressed
SYNTHETIC_SAMPLES = 16
SYNTHETIC_LENGTH = 16  # for dimensions that the model leaves open
SYNTHETIC_SEED = 20_26


@dataclass(frozen=True)
class SampleSet:
    """Samples with the labels that belong to them."""

    inputs: dict[str, Array]
    labels: Array | None
    rows: int  # rows of axis 0 that one run takes
    synthetic: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()))) // self.rows

    def sample(self, index: int) -> Sample:
        part = slice(index * self.rows, (index + 1) * self.rows)
        return {name: values[part] for name, values in self.inputs.items()}

    def samples(self) -> list[Sample]:
        return [self.sample(index) for index in range(len(self))]

    def limited(self, count: int) -> SampleSet:
        """At most ``count`` samples, spread evenly over the set."""
        if len(self) <= count:
            return self
        chosen = np.linspace(0, len(self) - 1, count).round().astype(int)
        rows = (chosen[:, None] * self.rows + np.arange(self.rows)).reshape(-1)
        labels = None if self.labels is None else self.labels[rows]
        return SampleSet({n: v[rows] for n, v in self.inputs.items()}, labels, self.rows, self.synthetic)


def rows_per_run(specs: Sequence[TensorSpec]) -> int:
    """Rows of axis 0 that one run takes: what the model fixes, else 1.

    Raises:
        ModelRefused: if an input has no axis to batch along, or inputs disagree.
    """
    fixed = set()
    for spec in specs:
        if not spec.shape:
            raise ModelRefused(
                "invalid_model", f"Input {spec.name!r} is a scalar; give every input a batch axis."
            )
        if isinstance(spec.shape[0], int):
            fixed.add(spec.shape[0])
    if len(fixed) > 1 or 0 in fixed:
        raise ModelRefused(
            "invalid_model", "The inputs fix different batch sizes; give them the same first axis."
        )
    return fixed.pop() if fixed else 1


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
        ModelRefused: invalid_samples, too_large, wrong_input_names or wrong_sample_shape.
    """
    arrays = _read_arrays(path, kind, maximum_bytes)
    expected = {spec.name for spec in specs}
    labels = None if LABELS in expected else arrays.pop(LABELS, None)
    if set(arrays) != expected:
        raise ModelRefused(
            "wrong_input_names",
            f"The {kind} set has arrays {_listed(arrays)}, the model's inputs are {_listed(expected)}; "
            "name the arrays after the inputs.",
        )
    rows = rows_per_run(specs)
    inputs = {spec.name: _checked(arrays[spec.name], spec, kind) for spec in specs}
    counts = {len(values) for values in inputs.values()}
    if len(counts) != 1 or not (count := counts.pop()) or count % rows:
        raise ModelRefused(
            "wrong_sample_shape",
            f"The arrays of the {kind} set must all have the same first axis, a multiple of {rows}.",
        )
    return SampleSet(inputs, _checked_labels(labels, count, kind), rows)


def synthetic_set(specs: Sequence[TensorSpec], *, bounds: Mapping[str, int]) -> SampleSet:
    """Samples drawn at random, the same every time: normal numbers, indices within bounds, ones.

    Args:
        specs: the model's inputs.
        bounds: for integer inputs that index a table, its number of rows.
    """
    generator = np.random.default_rng(SYNTHETIC_SEED)
    rows = rows_per_run(specs)
    inputs = {}
    for spec in specs:
        shape = [d if isinstance(d, int) else SYNTHETIC_LENGTH for d in spec.shape[1:]]
        whole = (SYNTHETIC_SAMPLES * rows, *shape)
        kind = np.dtype(spec.dtype)
        if kind.kind == "f":
            inputs[spec.name] = generator.standard_normal(whole).astype(kind)
        elif spec.name in bounds:
            inputs[spec.name] = generator.integers(0, bounds[spec.name], whole).astype(kind)
        else:
            inputs[spec.name] = np.ones(whole, kind)
    return SampleSet(inputs, None, rows, synthetic=True)


def _read_arrays(path: Path, kind: str, maximum_bytes: int) -> dict[str, Array]:
    hint = f"Save the {kind} set with numpy.savez(name=array, …), plain numbers only."
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > maximum_bytes:
                raise ModelRefused(
                    "too_large",
                    f"Unpacked, the {kind} set has over {maximum_bytes} bytes; use fewer samples.",
                )
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ModelRefused("invalid_samples", f"The {kind} set is not a valid .npz file. {hint}") from error


def _checked(values: Array, spec: TensorSpec, kind: str) -> Array:
    wanted = np.dtype(spec.dtype)
    if values.dtype != wanted and not np.can_cast(values.dtype, wanted, "same_kind"):
        raise ModelRefused(
            "invalid_samples",
            f"{spec.name!r} of the {kind} set is {values.dtype}, the model takes {wanted}; convert it.",
        )
    fits = values.ndim == len(spec.shape) and all(
        not isinstance(d, int) or d == n for d, n in zip(spec.shape[1:], values.shape[1:], strict=True)
    )
    if not fits:
        raise ModelRefused(
            "wrong_sample_shape",
            f"{spec.name!r} of the {kind} set has shape {values.shape}, the model takes "
            f"{tuple(spec.shape)} with samples along the first axis.",
        )
    with np.errstate(over="ignore"):  # what does not fit becomes infinite
        converted = np.ascontiguousarray(values, dtype=wanted)
    if wanted.kind == "f" and not np.isfinite(converted).all():
        raise ModelRefused(
            "invalid_samples",
            f"{spec.name!r} of the {kind} set has values that are NaN or infinite as {wanted}; "
            "leave those samples out or replace the values.",
        )
    return converted


def _checked_labels(labels: Array | None, count: int, kind: str) -> Array | None:
    if labels is None:
        return None
    flat = labels.reshape(-1)
    if len(flat) != count or flat.dtype.kind not in "iu":
        raise ModelRefused(
            "wrong_sample_shape",
            f"The labels of the {kind} set must be {count} whole numbers, one per sample.",
        )
    return flat.astype(np.int64)


def _listed(names: object) -> str:
    return ", ".join(sorted(str(name) for name in names)) or "none"  # type: ignore[attr-defined]
