"""Limits that a child process puts on itself before it touches anything uploaded."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

import msgspec

MAPS_AT_ONCE = 4
RESERVED_BYTES = 16 << 30  # address space of libraries and of memory that is reserved but not used
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Limits(msgspec.Struct, kw_only=True, frozen=True):
    """What one job may use.

    ``memory_bytes`` is memory that the kernel cannot take back (anonymous memory), of all processes
    of the job together. Files may be mapped on top of it.
    """

    wall_s: float
    memory_bytes: int
    file_bytes: int = 16 << 30  # the largest file it may write
    silence_s: float | None = None  # longest time without a progress line


def apply(limits: Limits, *, source_bytes: int = 0) -> None:
    """Set resource limits on this process; its children inherit them.

    The limit on data (private writable memory, setrlimit(2)) leaves room for mapped weights: ONNX
    Runtime maps them privately, which counts as data although nothing is written. So the parent
    watches what is really taken with :func:`anonymous_bytes`.

    Args:
        limits: what the job may use.
        source_bytes: of the files that it works on, which several sessions may map at once.
    """
    cpu_s = int(limits.wall_s * (os.cpu_count() or 1)) + 1
    mapped = MAPS_AT_ONCE * source_bytes
    _lower(resource.RLIMIT_DATA, limits.memory_bytes + mapped)
    _lower(resource.RLIMIT_AS, limits.memory_bytes + 2 * mapped + RESERVED_BYTES)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    _lower(resource.RLIMIT_CPU, cpu_s)
    _lower(resource.RLIMIT_CORE, 0)


def anonymous_bytes(process: int) -> int:
    """Anonymous resident memory of a process and all below it; 0 where /proc does not say."""
    total, pending = 0, [process]
    while pending:
        folder = Path("/proc") / str(pending.pop())
        with suppress(OSError, ValueError):  # it has ended
            total += _resident_anonymous(folder)
            for task in (folder / "task").iterdir():
                pending.extend(int(child) for child in (task / "children").read_text().split())
    return total


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent ends, however that happens.

    Args:
        parent: the expected parent's process id; if it has gone already, end at once.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def _resident_anonymous(folder: Path) -> int:
    for line in (folder / "status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))
