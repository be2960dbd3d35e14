"""Anonymous memory of a process and everything it starts: what is resident and backed by no file.

Pages of mapped weights do not count; the kernel can drop them at any time. A page that a fork shares
counts once.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import TracebackType

import psutil

INTERVAL_S = 0.05


def anonymous_bytes(pid: int) -> int:
    """``Pss_Anon`` of one process, its share of shared pages; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) * 1024
    return 0


class AnonymousMemory:
    """Samples in a thread while entered.

    Args:
        pid: the root of the tree.

    Attributes:
        peak_bytes: the largest sum over all processes at one time.
        largest_bytes: the largest single process.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0
        self.largest_bytes = 0

    def __enter__(self) -> AnonymousMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(INTERVAL_S):
            with contextlib.suppress(psutil.Error):
                members = [self._root, *self._root.children(recursive=True)]
                sizes = [anonymous_bytes(member.pid) for member in members]
                self.peak_bytes = max(self.peak_bytes, sum(sizes))
                self.largest_bytes = max(self.largest_bytes, max(sizes))
