"""What activations look like on calibration data: one pass over the samples, for everything that follows.

Per tensor: its range and histogram, per column the range and the mean square, the spread of its range
over runs (which dynamic quantization rounds by), and its second moments (the Gram matrix), of which
rounding that spreads errors needs the most. Every sample counts the same, however many rows it
has; rows of padding that no output sees (:mod:`quantize_worker.steps.relevance`) don't count.

Second moments are kept in four sums: of most samples, of the others, and of variations
(:mod:`quantize_worker.steps.variations`) of the former and of all. What is rounded to fit the first
and their variations shows on the others how far a fit holds for samples that it has not seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize_worker.formats import FORMATS
from quantize_worker.steps.activation import MIXED, MOST, REAL, REST, VARIED
from quantize_worker.steps.activation import Activation as Activation
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.histogram import Histogram
from quantize_worker.steps.layers import RECURRENT, Layer
from quantize_worker.steps.moments import Moments
from quantize_worker.steps.relevance import relevant_rows
from quantize_worker.steps.samples import Sample
from quantize_worker.steps.shortening import Shortener
from quantize_worker.steps.variations import variations
from quantize_worker.steps.watching import groups_of, watched

Array = NDArray[Any]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
FILE = "statistics.npz"
GRAMS = "grams"
REST_EVERY = 6  # one sample in so many belongs to the rest
MINIMUM_SPLIT = 12  # samples; fewer are not divided
COPIES = {VARIED: 3, MIXED: 2}  # variations of most samples, and of all
WATCHED_SHARE = 8  # memory for the values of a run is the whole over this
HELD_VALUES = {False: 1 << 19, True: 1 << 18}  # of rows of a tensor, before they are multiplied; lean
HELD_ROWS = 512  # at most. Nothing here may depend on the memory there is: sums would differ
PEAK_BLOCKS = (16, 32, 128)  # of columns, in whose steps kernels for weights in blocks round activations
_COLUMNS = ("column_low", "column_high", "padded_low", "padded_high", "squares")


def collect(
    model: Path,
    graph: Graph,
    layers: Sequence[Layer],
    products: Sequence[onnx.NodeProto],
    samples: Sequence[Sample],
    folder: Path,
    *,
    memory_bytes: int,
    file: str = FILE,
    lean: bool = False,
    correlated: bool = True,
    on_share: Callable[[float], None] = lambda share: None,
) -> dict[str, Activation]:
    """Run the samples once and leave what they show in ``folder``.

    Args:
        model: the prepared model.
        graph: its graph.
        layers: whose activations are watched.
        products: products of two activations, whose inputs are watched.
        samples: inputs by name.
        folder: for ``file`` and the second moments below :data:`GRAMS`.
        memory_bytes: that this may take beside the model itself.
        file: name of what is left; collections of several jobs are loaded together, so they need their own.
        lean: open the model without copying its weights; no variations, which cost runs.
        correlated: whether second moments are wanted.
        on_share: called with the share done.

    Returns:
        Statistics by tensor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _wanted(layers, products, samples[0], correlated=correlated)
    most, rest = _divided(samples)
    parts = {MOST: most, REST: rest}
    if correlated and not lean:
        parts[VARIED] = variations(most, copies=COPIES[VARIED])
        parts[MIXED] = variations([*most, *rest], copies=COPIES[MIXED]) if rest else []
    runs = [(part, sample) for part, members in parts.items() for sample in members]
    masks = relevant_rows(model, layers, [sample for _, sample in runs], lean=lean)
    real = len(most) + len(rest)  # run as they are, for their ranges; variations without their padding
    shortener = Shortener(model, graph.model.graph, lean=lean)
    cut, cut_masks = shortener.shortened([sample for _, sample in runs[real:]], masks and masks[real:])
    runs[real:] = [(part, sample) for (part, _), sample in zip(runs[real:], cut, strict=True)]
    masks = masks and [*masks[:real], *(cut_masks or [])]
    counts = {part: len(members) for part, members in parts.items() if members}
    groups = groups_of(model, list(wanted), samples[0], memory_bytes=memory_bytes // WATCHED_SHARE, lean=lean)
    found: dict[str, Activation] = {}
    done = 0
    for group in groups:
        seen = {
            name: _Seen(wanted[name], folder, counts, _held_rows(wanted[name], lean=lean)) for name in group
        }
        values = watched(model, group, (sample for _, sample in runs), lean=lean)
        for index, tensors in enumerate(values):
            for name, tensor in tensors.items():
                seen[name].add(tensor, runs[index][0], None if masks is None else masks[index])
            done += 1
            on_share(done / (len(runs) * len(groups)))
        found.update((name, one.finished()) for name, one in seen.items())
    ordered = {name: found[name] for name in wanted}
    save(folder, ordered, file)
    return ordered


def load(folder: Path) -> dict[str, Activation]:
    """What :func:`collect` has left, here or in several jobs; second moments only if they are still there."""
    found: dict[str, Activation] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as stored:
            table = json.loads(bytes(stored["table"]))
            for index, (name, entry) in enumerate(table):
                found[name] = _restored(stored, folder, index, entry)
    return found


@dataclass(frozen=True)
class _Wanted:
    """What is wanted of a tensor: the axis of its columns (None: only ranges), and second moments."""

    place: int  # among all tensors; names may hold any character, and files are named after this
    axis: int | None
    columns: int = 0  # 0: no second moments


class _Seen:
    """Adds up one tensor's statistics."""

    def __init__(self, wanted: _Wanted, folder: Path, counts: Mapping[str, int], held_rows: int) -> None:
        total = sum(counts.get(part, 0) for part in REAL)
        self._wanted, self._counts = wanted, counts
        self._found = Activation()
        self._squares: Any = 0.0
        self._peaks: dict[int, Any] = dict.fromkeys(PEAK_BLOCKS if wanted.columns else (), 0.0)
        self._spans: list[float] = []
        self._moments: dict[str, Moments] = {}
        if wanted.columns:
            self._found.stem = folder / GRAMS / f"{wanted.place:04d}"
            self._found.shares = {name: count / total for name, count in counts.items()}
            self._moments = {
                name: Moments(
                    self._found.stem.with_name(f"{self._found.stem.name}.{name}"), wanted.columns, held_rows
                )
                for name in self._found.shares
            }

    def add(self, tensor: Array, part: str, mask: NDArray[np.bool_] | None) -> None:
        """Add one sample's values."""
        values = np.asarray(tensor, np.float32)
        if not np.isfinite(values).all():
            values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        rows = _rows(values, self._wanted.axis)
        relevant = rows[mask] if mask is not None and len(mask) == len(rows) else rows
        if part in REAL:
            self._widen(rows, relevant, tensor.shape)
        if part in self._moments and len(relevant):
            self._moments[part].add(relevant, 1.0 / len(relevant) / self._counts[part])

    def finished(self) -> Activation:
        for one in self._moments.values():
            one.close()
        found, runs = self._found, len(self._spans)
        found.rows /= max(1, runs)
        found.run_span = float(np.sqrt(np.mean(np.square(self._spans)))) if runs else 0.0
        if self._wanted.axis is not None and runs:
            found.squares = np.asarray(self._squares) / runs
            found.peaks = {block: np.asarray(total) / runs for block, total in self._peaks.items()}
        return found

    def _widen(self, rows: Floats, relevant: Floats, shape: tuple[int, ...]) -> None:
        found = self._found
        found.shape = found.shape or shape
        found.rows += len(rows)
        found.relevant += len(relevant)
        self._spans.append(max(0.0, float(rows.max(initial=0.0))) - min(0.0, float(rows.min(initial=0.0))))
        if self._wanted.axis is not None and rows.size:
            low, high = rows.min(axis=0), rows.max(axis=0)
            found.padded_low = low if found.padded_low is None else np.minimum(found.padded_low, low)
            found.padded_high = high if found.padded_high is None else np.maximum(found.padded_high, high)
        if not relevant.size:
            return
        low, high = relevant.min(axis=0), relevant.max(axis=0)
        found.low, found.high = min(found.low, float(low.min())), max(found.high, float(high.max()))
        found.histogram.add(relevant)
        if self._wanted.axis is not None:
            found.column_low = low if found.column_low is None else np.minimum(found.column_low, low)
            found.column_high = high if found.column_high is None else np.maximum(found.column_high, high)
            self._squares = self._squares + np.square(relevant, dtype=np.float64).mean(axis=0)
            for block in self._peaks:
                self._peaks[block] = self._peaks[block] + _peaks(relevant, block)


def _wanted(
    layers: Sequence[Layer], products: Sequence[onnx.NodeProto], sample: Sample, *, correlated: bool
) -> dict[str, _Wanted]:
    """Tensors to watch, in graph order: floats that meet weights, and inputs of products."""
    wanted: dict[str, _Wanted] = {}
    for layer in layers:
        name = layer.activation
        if not layer.plain or layer.is_table or (name in sample and sample[name].dtype.kind != "f"):
            continue
        axis = -1 if layer.is_matrix or layer.operator in RECURRENT else 1
        aware = any(FORMATS[form].data_aware for form in layer.formats())
        columns = layer.columns if layer.is_matrix and aware and correlated else 0
        known = wanted.get(name)
        place = known.place if known else len(wanted)
        wanted[name] = _Wanted(place, axis, max(columns, known.columns if known else 0))
    for node in products:
        for name in node.input[:2]:
            wanted.setdefault(name, _Wanted(len(wanted), None))
    return wanted


def _divided(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Most samples, and every so many-th."""
    if len(samples) < MINIMUM_SPLIT:
        return list(samples), []
    rest = [sample for index, sample in enumerate(samples) if index % REST_EVERY == REST_EVERY - 1]
    return [sample for index, sample in enumerate(samples) if index % REST_EVERY != REST_EVERY - 1], rest


def _held_rows(wanted: _Wanted, *, lean: bool) -> int:
    return max(1, min(HELD_ROWS, HELD_VALUES[lean] // max(1, wanted.columns)))


def _rows(values: Floats, axis: int | None) -> Floats:
    """(rows, columns); a tensor of which only the range is wanted is one column."""
    if axis is None or values.ndim < 2:
        return values.reshape(-1, 1 if axis is None else values.shape[-1] if values.ndim else 1)
    moved = np.moveaxis(values, axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def _peaks(rows: Floats, block: int) -> Doubles:
    """Mean square of the largest value in each block of columns: (rows, columns) to (blocks,)."""
    padded = np.pad(np.abs(rows), ((0, 0), (0, -rows.shape[1] % block)))
    largest = padded.reshape(len(rows), -1, block).max(axis=2)
    found: Doubles = np.square(largest, dtype=np.float64).mean(axis=0)
    return found


def save(folder: Path, activations: Mapping[str, Activation], file: str = FILE) -> None:
    """Leave statistics where :func:`load` finds them; the same ones give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    arrays: dict[str, Any] = {}
    table = []
    for index, (name, one) in enumerate(activations.items()):
        entry = {
            "low": one.low,
            "high": one.high,
            "run_span": one.run_span,
            "rows": one.rows,
            "relevant": one.relevant,
            "shape": list(one.shape),
            "width": one.histogram.width,
            "stem": one.stem.name if one.stem else "",
            "shares": one.shares,
        }
        table.append((name, entry))
        arrays.update((f"{index}.{key}", value) for key, value in _columns(one))
    arrays["table"] = np.frombuffer(json.dumps(table).encode(), np.uint8)
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as stream:
        np.savez(stream, **arrays)
    partial.replace(path)


def _columns(one: Activation) -> Iterator[tuple[str, Array]]:
    yield "counts", one.histogram.counts.astype(np.float32)
    for key in _COLUMNS:
        value = getattr(one, key)
        if value is not None:
            yield key, value
    for block, values in one.peaks.items():
        yield f"peaks{block}", values


def _restored(stored: Any, folder: Path, index: int, entry: dict[str, Any]) -> Activation:
    arrays = {key: stored[f"{index}.{key}"] for key in _COLUMNS if f"{index}.{key}" in stored.files}
    found = ((block, f"{index}.peaks{block}") for block in PEAK_BLOCKS)
    peaks = {block: stored[key] for block, key in found if key in stored.files}
    histogram = Histogram(entry["width"], stored[f"{index}.counts"].astype(np.float64))
    stem = folder / GRAMS / entry["stem"] if entry["stem"] else None
    return Activation(
        low=entry["low"],
        high=entry["high"],
        run_span=entry["run_span"],
        rows=entry["rows"],
        relevant=entry["relevant"],
        shape=tuple(entry["shape"]),
        histogram=histogram,
        stem=stem,
        shares=entry["shares"],
        peaks=peaks,
        **arrays,
    )
