"""Linux process trees: death signals, orphans, descendants. Elsewhere only the plain part works."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True) if _LINUX else None

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _prctl(option: int, value: int) -> None:
    if _libc is not None and _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def adopt_orphans() -> None:
    """Become the parent of whatever descendants lose theirs (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def before_exec(death_signal: signal.Signals) -> Callable[[], None]:
    """For ``subprocess.Popen(preexec_fn=…)``: the child gets ``death_signal`` when this process ends.

    It also gets an empty signal mask, for supervisors block the signals that they wait for.
    """
    parent = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        _prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)

    return prepare


def end_with_parent(*, interval_s: float = 1.0) -> None:
    """End this process soon after its parent: for workers of servers that do not do so themselves.

    By polling, not by a death signal: that one is bound to the parent's thread that forked.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_s)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def block_signals() -> set[signal.Signals]:
    """Block what :func:`wait_for_signal` waits for, so that none is missed between two waits."""
    waited = {*STOP_SIGNALS, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    return waited


def wait_for_signal(waited: Iterable[signal.Signals], timeout_s: float) -> int | None:
    """The next of these signals, or None after ``timeout_s`` seconds."""
    if _LINUX:
        caught = signal.sigtimedwait(set(waited), max(timeout_s, 0.0))
        return caught.si_signo if caught else None
    time.sleep(min(timeout_s, 0.1))
    pending = signal.sigpending() & set(waited)
    return signal.sigwait(pending) if pending else None


def reap() -> dict[int, int]:
    """Exit codes (negative: signals) of direct children that have ended, adopted ones too."""
    ended: dict[int, int] = {}
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


def children(pid: int) -> list[int]:
    """Direct children of a process (Linux, ``/proc/<pid>/task/<tid>/children``)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children") if _LINUX else ():
        with suppress(OSError):
            found.extend(int(child) for child in task.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, parents before their children (Linux)."""
    found = children(pid)
    for each in found:  # grows while it is walked
        found.extend(children(each))
    return found


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to each; those that have ended meanwhile are fine."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_below(pid: int, *, deadline_s: float = 5.0) -> None:
    """Kill everything below this process until nothing is left, reaping what falls to it."""
    until = time.monotonic() + deadline_s
    while left := descendants(pid):
        send(left, signal.SIGKILL)
        reap()
        if time.monotonic() > until:
            print(f"processes {left} do not end", file=sys.stderr, flush=True)  # noqa: T201
            return
        time.sleep(0.02)
    reap()
