"""Arrays kept in a file instead of in memory, until the graph is written."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize_worker.steps.datafile import room

Array = NDArray[Any]
LARGE_BYTES = 1 << 20  # smaller arrays stay in memory
BLOCK_BYTES = 32 << 20  # of a weight, handled at once
SEGMENT_BYTES = 256 << 20


class Scratch:
    """A file that grows; arrays in it are mapped, so that the kernel may write and drop their pages.

    It is mapped in segments that hold many arrays each, since every map takes a file descriptor. The
    file has no name once it is open: it goes when the process does.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ".scratch"
        self._file = path.open("w+b")
        path.unlink()
        self._begin = self._used = self._end = 0  # of the segment, within the file
        self._segment: NDArray[np.uint8] = np.empty(0, np.uint8)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()  # maps stay valid

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A writable array of zeros.

        Raises:
            BuildFailed: disk_full.
        """
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if size < LARGE_BYTES:
            return np.zeros(shape, kind)
        if self._used + size > self._end:
            self._add_segment(size)
        start = self._used
        self._used = _aligned(start + size)
        with room():  # now: a map of a full disk ends in a bus error
            os.posix_fallocate(self._file.fileno(), start, size)
        place = slice(start - self._begin, start - self._begin + size)
        found: Array = self._segment[place].view(kind).reshape(shape)
        return found

    def _add_segment(self, size: int) -> None:
        length = _aligned(max(size, SEGMENT_BYTES))
        self._begin = self._used = self._end
        self._end = self._begin + length
        with room():
            self._file.truncate(self._end)
        self._segment = np.frombuffer(mmap.mmap(self._file.fileno(), length, offset=self._begin), np.uint8)

    def keep(self, value: Array) -> Array:
        """The same values, in the file if they are many."""
        if value.nbytes < LARGE_BYTES:
            return value
        kept = self.empty(value.shape, value.dtype)
        kept[...] = value
        return kept

    def mapped(
        self, source: Array, dtype: Any, change: Callable[[Array, slice], Array], axis: int = 0
    ) -> Array:
        """What ``change`` makes of a weight, block by block.

        Args:
            source: the weight; its blocks are read one after the other.
            dtype: of the result, which has the weight's shape.
            change: takes a block and which part along ``axis`` it is.
            axis: along which the weight is cut.
        """
        made = self.empty(source.shape, dtype)
        for part in parts(source, axis):
            index = (*(slice(None) for _ in range(axis)), part)
            made[index] = change(source[index], part)
        return made


def parts(value: Array, axis: int = 0) -> Iterable[slice]:
    """Slices along an axis whose blocks have at most :data:`BLOCK_BYTES`, one index at least."""
    if not value.ndim:
        raise ValueError("a scalar has no parts")
    length = value.shape[axis]
    step = max(1, BLOCK_BYTES * length // max(1, value.nbytes))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _aligned(position: int) -> int:
    return -(-position // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
