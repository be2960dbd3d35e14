"""The lock that whoever owns the embedded system's state holds: ``up``, or ``restore``."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

LOCK_NAME = "up.lock"


class Locked(Exception):
    """Another process holds the lock. ``holder`` is its process id, as it wrote it."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"locked by process {holder or '?'}")
        self.holder = holder


def acquire(run_folder: Path) -> int:
    """Take the lock and keep it until the descriptor and its inherited copies are closed.

    Returns:
        the open descriptor, not inherited by default.

    Raises:
        Locked: if another process holds it.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise Locked(holder) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
