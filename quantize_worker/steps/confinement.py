"""Limits that a child process puts on itself before it touches anything uploaded."""

from __future__ import annotations

import ctypes
import os
import resource
import signal

import msgspec

_PR_SET_PDEATHSIG = 1  # prctl(2)


class Limits(msgspec.Struct, kw_only=True, frozen=True):
    """What one job may use."""

    wall_s: float
    memory_bytes: int  # address space
    file_bytes: int = 16 << 30  # the largest file it may write
    silence_s: float | None = None  # longest time without a progress line


def apply(limits: Limits) -> None:
    """Set resource limits on this process; its children inherit them."""
    cpu_s = int(limits.wall_s * (os.cpu_count() or 1)) + 1
    _lower(resource.RLIMIT_AS, limits.memory_bytes)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    _lower(resource.RLIMIT_CPU, cpu_s)
    _lower(resource.RLIMIT_CORE, 0)


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent ends, however that happens.

    Args:
        parent: the expected parent's process id; if it has gone already, end at once.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))
