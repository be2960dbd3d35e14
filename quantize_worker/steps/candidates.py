"""Candidates: a layer's weight in blocks of 4 or 8 bits, made once and used by every build."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantize_worker.formats import Format
from quantize_worker.steps import gptq, grids
from quantize_worker.steps.gptq import Metric
from quantize_worker.steps.grids import Grid
from quantize_worker.steps.moments import spans
from quantize_worker.steps.statistics import Activation
from quantize_worker.steps.weights import pack_nibbles, unpack_nibbles

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
FOLDER = "candidates"
DAMPING = 0.015  # of the mean square, added to each column's; tuned on all-MiniLM
PASSES = 2  # of coordinate descent
PIECE = 1 << 21  # weights, times formats, rounded at once; bounds the memory


@dataclass(frozen=True)
class Blocks:
    """``weight[n, k] ≈ (value[n, k] - zero_point[n, k // block]) * code[n, k // block] * row_scale[n]``.

    Scales are quantized a second time, to eight bits of a row's own scale. Packed as MatMulNBits
    and GatherBlockQuantized read it: four-bit values two a byte, the first in the low half.

    Args:
        values: packed, (out, blocks, block * bits / 8); the last block is padded with zero points.
        scale_codes: (out, blocks), from 1 on.
        row_scales: (out, 1).
        zero_points: packed along blocks, (out, ceil(blocks * bits / 8)); None: all are the middle,
            2 ** (bits - 1), which both operators assume.
        bits: 4 or 8.
        block: columns that share a scale.
        shape: (out, in).
    """

    values: Bytes
    scale_codes: Bytes
    row_scales: Floats
    zero_points: Bytes | None
    bits: int
    block: int
    shape: tuple[int, int]

    @property
    def size_bytes(self) -> int:
        """Of all initializers that a build writes."""
        zeros = 0 if self.zero_points is None else self.zero_points.nbytes
        return self.values.nbytes + self.scale_codes.nbytes + self.row_scales.nbytes + zeros

    @property
    def scales(self) -> Floats:
        """(out, blocks), as the runtime folds them."""
        product: Floats = self.scale_codes.astype(np.float32) * self.row_scales
        return product

    def integers(self) -> Bytes:
        """Values unpacked: (out, blocks, block)."""
        return unpack_nibbles(self.values, self.block) if self.bits == 4 else self.values

    def zeros(self) -> Bytes:
        """Zero points unpacked: (out, blocks)."""
        blocks = self.scale_codes.shape[1]
        if self.zero_points is None:
            return np.full((self.shape[0], blocks), 1 << (self.bits - 1), np.uint8)
        return unpack_nibbles(self.zero_points, blocks) if self.bits == 4 else self.zero_points

    def dequantized(self) -> Floats:
        """What the runtime multiplies by: (out, in)."""
        shifted = self.integers().astype(np.float32) - self.zeros()[..., None]
        shifted *= self.scales[..., None]
        return shifted.reshape(self.shape[0], -1)[:, : self.shape[1]]

    def rows(self, chosen: NDArray[np.intp] | slice) -> Blocks:
        """Some rows."""
        zeros = None if self.zero_points is None else self.zero_points[chosen]
        codes = self.scale_codes[chosen]
        shape = (len(codes), self.shape[1])
        return replace(
            self,
            values=self.values[chosen],
            scale_codes=codes,
            row_scales=self.row_scales[chosen],
            zero_points=zeros,
            shape=shape,
        )


def blocks_of(
    values: Bytes, codes: Bytes, row_scales: Floats, zeros: Bytes | None, *, bits: int, columns: int
) -> Blocks:
    """Pack.

    Args:
        values: (out, blocks, block), one a byte.
        codes: (out, blocks).
        row_scales: (out, 1).
        zeros: (out, blocks), one a byte, or None.
        bits: 4 or 8.
        columns: of the weight; fewer than blocks * block if the last block is padded.
    """
    packed = pack_nibbles(values) if bits == 4 else values
    zero_points = zeros if zeros is None or bits == 8 else pack_nibbles(zeros)
    return Blocks(packed, codes, row_scales, zero_points, bits, values.shape[2], (values.shape[0], columns))


def size_bytes(outputs: int, columns: int, *, bits: int, block: int, symmetric: bool) -> int:
    """Bytes of all initializers that a weight in blocks needs; equals :attr:`Blocks.size_bytes`."""
    blocks = math.ceil(columns / block)
    values, zeros = blocks * block * bits // 8, 0 if symmetric else math.ceil(blocks * bits / 8)
    return outputs * (values + blocks + zeros + 4)


def make(weight: Floats, form: Format, activation: Activation | None) -> Blocks:
    """Round one weight to one format; see :func:`make_all`."""
    return make_all(
        weight, [form], metrics_of(activation, weight.shape[1]), importance_of(activation, weight)
    )[0]


def make_all(
    weight: Floats,
    forms: Sequence[Format],
    metrics: Sequence[Metric] | None,
    importance: Floats | None = None,
    *,
    passes: int = PASSES,
) -> list[Blocks]:
    """Round a weight to several formats in blocks; the work that they share is done once.

    Args:
        weight: (out, in); may be mapped, it is read in pieces.
        forms: of 4 bits, which spread their errors if there are metrics, or of 8, which don't need to.
        metrics: of the columns, for each of their diagonal blocks of second moments.
        importance: (in,); what an error in a column costs, where there are no metrics.
        passes: of coordinate descent.
    """
    rows, columns = weight.shape
    step = max(1, PIECE // columns // max(1, len(forms)))
    pieces = [
        _piece(
            np.ascontiguousarray(weight[start : start + step].T, np.float32),
            forms,
            metrics,
            importance,
            passes,
        )
        for start in range(0, rows, step)
    ]
    return [_joined(list(parts)) for parts in zip(*pieces, strict=True)]


def metrics_of(
    activation: Activation | None, columns: int, part: str = "", *, damping: float = DAMPING
) -> list[Metric] | None:
    """What errors in the columns cost together; None where second moments are unknown or degenerate.

    Args:
        activation: what the weight meets.
        columns: of the weight.
        part: of the samples, see :meth:`Activation.moments`.
        damping: share of the mean of the squares that is added to each column's.
    """
    moments = activation.moments(part) if activation is not None else None
    if moments is None or sum(len(block) for block in moments) != columns:
        return None
    found = [gptq.metric(block, damping) for block in moments]
    return None if any(one is None for one in found) else [one for one in found if one is not None]


def importance_of(activation: Activation | None, weight: Floats) -> Floats | None:
    """What an error in each column costs by itself; None where it is unknown."""
    found = activation.importance() if activation is not None else None
    return found if found is not None and len(found) == weight.shape[1] else None


def _piece(
    upright: Floats,
    forms: Sequence[Format],
    metrics: Sequence[Metric] | None,
    importance: Floats | None,
    passes: int,
) -> list[Blocks]:
    """Some rows of a weight, given as (in, rows)."""
    columns = len(upright)
    if metrics is not None:
        importance = np.concatenate([metric.importance for metric in metrics])
    costs = np.ones(columns, np.float32) if importance is None else importance
    found = [_grid(upright, costs, form) for form in forms]
    spread = [index for index, form in enumerate(forms) if metrics is not None and form.data_aware]
    steps = [np.empty(0, np.float32)] * len(forms)
    for index, grid in enumerate(found):
        if index not in spread:
            steps[index] = grids.nearest(_padded(upright, grid.block), grid)[:columns]
    if spread and metrics is not None:
        made = _spread(upright, [found[index] for index in spread], metrics, passes)
        for index, values in zip(spread, made, strict=True):
            steps[index] = values
    return [_packed(values, grid, form) for values, grid, form in zip(steps, found, forms, strict=True)]


def _spread(upright: Floats, found: Sequence[Grid], metrics: Sequence[Metric], passes: int) -> list[Floats]:
    """Rounding with error feedback, one diagonal block of second moments after the other."""
    steps = [np.empty_like(upright) for _ in found]
    for span, metric in zip(spans(len(upright)), metrics, strict=True):
        parts = [_share(grid, span) for grid in found]
        made = gptq.propagate(upright[span], parts, metric)
        for index, (part, values) in enumerate(zip(parts, made, strict=True)):
            gptq.descend(upright[span], values, part, metric, passes)
            steps[index][span] = values
    return steps


def _grid(upright: Floats, costs: Floats, form: Format) -> Grid:
    assert form.block is not None
    padded = _padded(upright, form.block)
    shares = np.pad(costs, (0, len(padded) - len(costs)))
    return grids.search(padded, shares, bits=form.bits, block=form.block, symmetric=form.symmetric)


def _share(grid: Grid, span: slice) -> Grid:
    """The blocks of some columns; views, so that changes of codes are seen in the whole."""
    blocks = slice(span.start // grid.block, math.ceil(span.stop / grid.block))
    return replace(grid, codes=grid.codes[blocks], zeros=grid.zeros[blocks])


def _padded(upright: Floats, block: int) -> Floats:
    missing = -len(upright) % block
    return np.pad(upright, ((0, missing), (0, 0))) if missing else upright


def _packed(steps: Floats, grid: Grid, form: Format) -> Blocks:
    """Steps from the zero points, (in, rows), as stored."""
    columns, rows = steps.shape
    values = _padded(steps, grid.block).reshape(len(grid.zeros), grid.block, rows)
    stored = (values + grid.zeros[:, None]).astype(np.uint8).transpose(2, 0, 1)
    zeros = None if form.symmetric else np.ascontiguousarray(grid.zeros.T).astype(np.uint8)
    codes = np.ascontiguousarray(grid.codes.T).astype(np.uint8)
    row_scales = grid.row_scales.reshape(-1, 1)
    return blocks_of(np.ascontiguousarray(stored), codes, row_scales, zeros, bits=form.bits, columns=columns)


def _joined(parts: list[Blocks]) -> Blocks:
    """Rows after rows."""
    first = parts[0]
    zeros = (
        None
        if first.zero_points is None
        else np.concatenate([p.zero_points for p in parts if p.zero_points is not None])
    )
    return Blocks(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.scale_codes for part in parts]),
        np.concatenate([part.row_scales for part in parts]),
        zeros,
        first.bits,
        first.block,
        (sum(part.shape[0] for part in parts), first.shape[1]),
    )


def path_of(folder: Path, index: int, name: str) -> Path:
    """Where the candidate of a layer in a format lies.

    Args:
        folder: the analysis folder.
        index: the layer's position in ``layers_of``.
        name: the format's.
    """
    return folder / FOLDER / f"{index:04d}.{name}.npz"


def write(path: Path, blocks: Blocks) -> None:
    """Write as ``.npz``; equal blocks give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {"values": blocks.values, "scale_codes": blocks.scale_codes, "row_scales": blocks.row_scales}
    if blocks.zero_points is not None:
        parts["zero_points"] = blocks.zero_points
    form = np.array([blocks.bits, blocks.block, *blocks.shape], np.int64)
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        np.savez(file, form=form, **parts)  # type: ignore[arg-type]
    partial.replace(path)


def read(path: Path) -> Blocks:
    """Read what :func:`write` has written.

    Raises:
        OSError, ValueError, KeyError, zipfile.BadZipFile: if it is missing or damaged.
    """
    with np.load(path, allow_pickle=False) as stored:
        bits, block, rows, columns = (int(one) for one in stored["form"])
        zeros = stored["zero_points"] if "zero_points" in stored.files else None
        codes, scales = stored["scale_codes"], stored["row_scales"]
        return Blocks(stored["values"], codes, scales, zeros, bits, block, (rows, columns))
