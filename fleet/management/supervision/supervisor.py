"""Starts, watches, restarts and stops the children: ``python -m …supervisor PLAN``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fleet.management.supervision.plan import ChildPlan, RunPlan
from fleet.management.supervision.process_tree import (
    STOP_SIGNALS,
    adopt_orphans,
    before_exec,
    block_signals,
    children,
    descendants,
    kill_below,
    reap,
    send,
    wait_for_signal,
)

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
STABLE_AFTER_S = 60.0  # a child that ran this long starts over with the first delay
LOG_BYTES = 10 * 2**20
TICK_S = 0.2


@dataclass
class Child:
    """A child and its fate. Times are monotonic seconds."""

    plan: ChildPlan
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    delay_s: float = FIRST_DELAY_S
    restarts: int = 0


class Supervisor:
    """Keeps the children of a plan running until it is told to stop."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.children = [Child(child) for child in plan.children]
        self.ready = False

    def run(self) -> int:
        """Run until a stop signal; the exit code."""
        waited = block_signals()
        adopt_orphans()
        while True:
            self._start_due()
            caught = wait_for_signal(waited, TICK_S)
            if caught in STOP_SIGNALS:
                self._stop()
                return 0
            self._note_ended(reap())
            self._kill_strays()
            if not self.ready and self._answers():
                self.ready = True
                _say(self.plan.ready_line, stream=sys.stdout)

    def _start_due(self) -> None:
        due = [c for c in self.children if c.process is None and time.monotonic() >= c.start_at]
        for child in due:
            self._start(child)
        if due:
            self._write_pids()

    def _start(self, child: Child) -> None:
        with self._log_file(child.plan.name).open("ab") as log:
            child.process = subprocess.Popen(
                child.plan.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is for the guard alone
                preexec_fn=before_exec(signal.SIGKILL),
            )
        child.started = time.monotonic()

    def _log_file(self, name: str) -> Path:
        path = Path(self.plan.log_folder) / f"{name}.log"
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path

    def _note_ended(self, ended: dict[int, int]) -> None:
        for child in self.children:
            if child.process is not None and child.process.pid in ended:
                self._schedule_restart(child, ended[child.process.pid])

    def _schedule_restart(self, child: Child, code: int) -> None:
        assert child.process is not None
        pid, now = child.process.pid, time.monotonic()
        if now - child.started > STABLE_AFTER_S:
            child.delay_s = FIRST_DELAY_S
        child.process.returncode = code
        child.process, child.start_at = None, now + child.delay_s
        child.restarts += 1
        _say(
            f"{child.plan.name} (process {pid}) {_fate(code)}; restarting in {child.delay_s:g} s; "
            f"see {self._log_file(child.plan.name)}"
        )
        child.delay_s = min(child.delay_s * 2, LONGEST_DELAY_S)
        self._write_pids()

    def _kill_strays(self) -> None:
        """End what a dead child left behind: orphans fall to this process."""
        ours = {child.process.pid for child in self.children if child.process is not None}
        for pid in children(os.getpid()):
            if pid not in ours:
                send([pid, *descendants(pid)], signal.SIGKILL)

    def _write_pids(self) -> None:
        children = {
            child.plan.name: {"pid": child.process.pid if child.process else None, "restarts": child.restarts}
            for child in self.children
        }
        state = {"guard": os.getppid(), "supervisor": os.getpid(), "children": children}
        path = Path(self.plan.run_folder) / "pids.json"
        temporary = path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))
        temporary.replace(path)

    def _answers(self) -> bool:
        if any(child.process is None for child in self.children):
            return False
        try:
            with urllib.request.urlopen(self.plan.ready_url, timeout=2) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except OSError:
            return False

    def _stop(self) -> None:
        """TERM to the children, KILL to whatever is left after the grace."""
        running = {child.process.pid for child in self.children if child.process is not None}
        send(running, signal.SIGTERM)
        until = time.monotonic() + self.plan.grace_s
        while running and time.monotonic() < until:
            running -= reap().keys()
            time.sleep(0.02)
        if running:
            _say(f"killing what did not stop in {self.plan.grace_s:g} s: {sorted(running)}")
        kill_below(os.getpid())
        (Path(self.plan.run_folder) / "pids.json").unlink(missing_ok=True)


def _fate(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _say(line: str, stream: object = None) -> None:
    print(line, file=stream or sys.stderr, flush=True)  # type: ignore[arg-type]


def main() -> int:
    return Supervisor(msgspec.json.decode(sys.argv[1], type=RunPlan)).run()


if __name__ == "__main__":
    sys.exit(main())
