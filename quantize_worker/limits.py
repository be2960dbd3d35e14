"""What one job may use of the machine, wherever it is started from."""

from __future__ import annotations

import os

import psutil

MEMORY_SHARE = 0.75  # of the machine's memory, for one job
MINIMUM_MEMORY_BYTES = 4 << 30  # of address space, which is more than what is resident


def job_memory_bytes() -> int:
    """``POCKETFLEET_JOB_MEMORY_BYTES``: what one job may use; by default 75 % of the machine's.

    Raises:
        ValueError: if the setting is not a whole number.
    """
    text = os.environ.get("POCKETFLEET_JOB_MEMORY_BYTES", "")
    if not text:
        return max(MINIMUM_MEMORY_BYTES, int(psutil.virtual_memory().total * MEMORY_SHARE))
    if not text.isdigit():
        raise ValueError(f"POCKETFLEET_JOB_MEMORY_BYTES={text!r} is not a whole number of bytes")
    return int(text)
