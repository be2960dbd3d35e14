"""Watches a process and everything it starts: peak memory per role, and what is left behind.

Roles come from command lines; a process whose command line says nothing (a spawned worker of
granian, a sandbox) has the role of its parent.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil

SAMPLE_INTERVAL_S = 0.2
MIB = 2**20

# The first pattern found in the command line, its arguments joined by spaces, names the role.
ROLES: tuple[tuple[str, str], ...] = (
    (r"(^|/)bwrap |quantize_worker\.(sandbox|steps)|-m quantize_worker( |$)", "sandbox"),
    (r"-A quantize_worker\.app", "tailor-worker"),
    (r"-A fleet\.celery beat", "beat"),
    (r"-A fleet\.celery", "control-worker"),
    (r"granian", "web"),
    (r"manage\.py up|fleet\.management\.supervision", "supervisor"),
    (r"manage\.py", "setup"),
    (r"-m device_agent|pocketfleet-agent", "agent"),
    (r"-m demo", "demo"),
)


def role_of(command_line: list[str], parent: str) -> str:
    """The role that the command line names, else the parent's."""
    text = " ".join(command_line)
    return next((role for pattern, role in ROLES if re.search(pattern, text)), parent)


def peak_rss_bytes(process: psutil.Process) -> int:
    """The kernel's high-water mark of resident memory (``VmHWM``), else the present figure."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


class ProcessTree:
    """Samples a process tree in a thread while it is entered.

    Args:
        pid: the root of the tree.
        role: of the root, where its command line says nothing.
        sleep: waits between samples; returns True to end.

    Attributes:
        peak_bytes: per role, the peak of its largest process.
        total_peak_bytes: the largest sum of resident memory over all processes at one time. Shared
            pages count once per process, so this is an upper bound.
    """

    def __init__(self, pid: int, *, role: str = "root", sleep: Callable[[float], bool] | None = None) -> None:
        self._root = psutil.Process(pid)
        self._root_role = role
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._roles: dict[psutil.Process, str] = {}
        self.peak_bytes: dict[str, int] = {}
        self.total_peak_bytes = 0

    def __enter__(self) -> ProcessTree:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def alive(self) -> list[psutil.Process]:
        """Processes of the tree, once seen, that still run (zombies do not count)."""
        left = []
        for process in self._roles:
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
        return left

    def _watch(self) -> None:
        while True:
            self.sample()
            if self._sleep(SAMPLE_INTERVAL_S):
                return

    def sample(self) -> None:
        """Look at the tree once."""
        total = 0
        for process in self._members():
            with contextlib.suppress(psutil.Error):
                role = self._role(process)
                total += process.memory_info().rss
                self.peak_bytes[role] = max(self.peak_bytes.get(role, 0), peak_rss_bytes(process))
        self.total_peak_bytes = max(self.total_peak_bytes, total)

    def _members(self) -> list[psutil.Process]:
        """The root and its descendants; parents come before their children."""
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return []

    def _role(self, process: psutil.Process) -> str:
        """The process's role. Looked up each time: between fork and exec it is still the parent's."""
        parents = {member.pid: role for member, role in self._roles.items()}
        inherited = parents.get(process.ppid(), self._root_role)
        role = role_of(process.cmdline(), inherited)
        self._roles[process] = role
        return role
