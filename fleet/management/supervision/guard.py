"""Stands over the supervisor: ``python -m fleet.management.supervision.guard PLAN``.

It takes the terminal's signals, starts the supervisor anew should it be killed, and ends
whatever the supervisor could not. It does so little that there is little to go wrong in it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import msgspec

from fleet.management.supervision.plan import RunPlan
from fleet.management.supervision.process_tree import (
    STOP_SIGNALS,
    adopt_orphans,
    before_exec,
    block_signals,
    kill_below,
    reap,
    wait_for_signal,
)

RESTART_DELAY_S = 1.0
EXTRA_GRACE_S = 6.0  # the supervisor's own kill comes first


def guard(plan: RunPlan) -> int:
    """Run until a stop signal, or until the supervisor ends by itself; the exit code."""
    waited = block_signals()
    adopt_orphans()
    while True:
        supervisor = _start(plan)
        code = _watch(supervisor, plan, waited)
        kill_below(os.getpid())
        if code is not None:
            return code
        print("the supervisor was killed; starting it again", file=sys.stderr, flush=True)  # noqa: T201
        time.sleep(RESTART_DELAY_S)


def _start(plan: RunPlan) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "fleet.management.supervision.supervisor",
        msgspec.json.encode(plan).decode(),
    ]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(plan.lock_descriptor,),
        preexec_fn=before_exec(signal.SIGTERM),
    )


def _watch(supervisor: subprocess.Popen[bytes], plan: RunPlan, waited: set[signal.Signals]) -> int | None:
    """The exit code to end with, or None if the supervisor has to be started again."""
    stop_until: float | None = None
    while True:
        caught = wait_for_signal(waited, 1.0)
        code = reap().get(supervisor.pid)
        if code is not None:
            supervisor.returncode = code
            return 0 if stop_until is not None else (code if code >= 0 else None)
        if caught in STOP_SIGNALS:
            if stop_until is not None:  # asked twice: at once
                return 1
            stop_until = time.monotonic() + plan.grace_s + EXTRA_GRACE_S
            supervisor.terminate()
        if stop_until is not None and time.monotonic() > stop_until:
            return 1


def main() -> int:
    return guard(msgspec.json.decode(sys.argv[1], type=RunPlan))


if __name__ == "__main__":
    sys.exit(main())
