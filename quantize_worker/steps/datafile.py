"""The data file beside a graph: tensors streamed one after the other, aligned for memory maps."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from quantize_worker.errors import BuildFailed
from quantize_worker.steps.tensors import Array, pieces

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.data"
INLINE_BYTES = 1024  # smaller tensors stay in the graph, where shape inference reads them
ALIGNMENT = 64  # a cache line
PAGE_BYTES = 4096  # large tensors start at a page, so that they can be memory-mapped
PAGE_FROM = 64 << 10  # smaller ones would waste a tenth of themselves and more on it
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def room() -> Iterator[None]:
    """Say what a full disk means.

    Raises:
        BuildFailed: disk_full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise BuildFailed(
            "disk_full",
            "The worker's disk, or the largest file that a job may write, is full; "
            "give the worker more space and start the job again.",
            fault="system",
        ) from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then give it its own.

    Raises:
        BuildFailed: disk_full.
    """
    partial = path.with_name(f"{path.name}.partial")
    with room():
        try:
            partial.write_bytes(content)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(path)


class DataFile:
    """Appends tensors to ``model.data`` in a folder; the file appears when all is written.

    A graph that is mapped from the same folder stays readable: its file is replaced, not changed.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / DATA_FILE
        self.starts: list[int] = []
        self.position = 0
        self._partial = self.path.with_name(f"{DATA_FILE}.partial")
        self._file: IO[bytes] | None = None

    def __enter__(self) -> DataFile:
        with room():
            self._file = self._partial.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        assert self._file is not None
        try:
            with room():
                self._file.close()
                if kind is None and self.position:
                    self._partial.replace(self.path)
                elif kind is None:
                    self.path.unlink(missing_ok=True)
        finally:
            self._partial.unlink(missing_ok=True)

    def append(self, value: Array, length: int) -> int:
        """Write an array and return where it starts."""
        return self.append_pieces(pieces(value), length)

    def append_pieces(self, parts: Iterable[Array], length: int) -> int:
        """Write what comes in pieces.

        Args:
            parts: contiguous arrays, one after the other.
            length: bytes of all of them together.

        Returns:
            The offset of the first byte.

        Raises:
            BuildFailed: disk_full.
            ValueError: if the pieces have another length.
        """
        assert self._file is not None
        start = aligned(self.position, length)
        with room():
            self._file.write(b"\0" * (start - self.position))
            written = sum(self._file.write(_bytes_of(part)) for part in parts)
        if written != length:
            raise ValueError(f"a tensor of {length} bytes came as {written}")
        self.starts.append(start)
        self.position = start + length
        return start


def _bytes_of(part: Array) -> memoryview:
    return memoryview(part.reshape(-1).view(np.uint8).data)


def aligned(position: int, length: int) -> int:
    """The next offset at which a tensor of this length may start."""
    step = PAGE_BYTES if length >= PAGE_FROM else ALIGNMENT
    return -(-position // step) * step
