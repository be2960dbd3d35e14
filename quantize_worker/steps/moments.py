"""Second moments of activations (Gram matrices), summed up in files instead of in memory.

A matrix as wide as a layer is kept as blocks on its diagonal where it is too wide: columns of different
blocks are then taken as if they had nothing to do with each other.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MAXIMUM_COLUMNS = 2048  # of a block; factoring it takes half a second and 80 MB
ALIGNMENT = 128  # blocks start where blocks of weights that share a scale do


def spans(columns: int) -> list[slice]:
    """The columns of each diagonal block: as many as fit, about equally wide."""
    count = math.ceil(columns / MAXIMUM_COLUMNS)
    width = columns if count == 1 else math.ceil(columns / count / ALIGNMENT) * ALIGNMENT
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


def stored_bytes(columns: int) -> int:
    """Bytes of one file."""
    return sum(4 * (span.stop - span.start) ** 2 for span in spans(columns))


class Moments:
    """Adds up ``xᵀx`` over rows.

    Args:
        stem: path of the files without their ends.
        columns: of a row.
        held_rows: rows collected before they are multiplied, which costs a pass over the matrix.
    """

    def __init__(self, stem: Path, columns: int, held_rows: int) -> None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        self._spans = spans(columns)
        self._sums: list[Any] = [
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(s.stop - s.start,) * 2)
            for path, s in zip(paths(stem, columns), self._spans, strict=True)
        ]
        self._held: Floats = np.empty((held_rows, columns), np.float32)
        self._count = 0

    def add(self, rows: Floats, weight: float) -> None:
        """Add rows (n, columns), each ``weight`` times."""
        factor = np.float32(math.sqrt(weight))
        done = 0
        while done < len(rows):
            room = min(len(self._held) - self._count, len(rows) - done)
            target = self._held[self._count : self._count + room]
            np.multiply(rows[done : done + room], factor, out=target)
            self._count += room
            done += room
            if self._count == len(self._held):
                self.flush()

    def flush(self) -> None:
        """Multiply what was collected."""
        held, self._count = self._held[: self._count], 0
        for total, span in zip(self._sums, self._spans, strict=True):
            part = held[:, span]
            total += part.T @ part

    def close(self) -> None:
        """Finish the files."""
        self.flush()
        for total in self._sums:
            total.flush()
        self._sums = []
        self._held = np.empty((0, 0), np.float32)


def paths(stem: Path, columns: int) -> list[Path]:
    """Files of all diagonal blocks."""
    return [stem.with_name(f"{stem.name}.{index}.npy") for index in range(len(spans(columns)))]


def read(stem: Path, columns: int) -> list[Floats] | None:
    """The diagonal blocks, mapped; None if they were not kept."""
    found = paths(stem, columns)
    if not all(path.exists() for path in found):
        return None
    return [np.load(path, mmap_mode="r", allow_pickle=False) for path in found]
