"""What a command costs: processor seconds and peak memory of it and all it starts."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process_tree import ProcessTree

TAIL_CHARS = 2000


@dataclass(frozen=True)
class Spent:
    """A command that has ended.

    Args:
        code: of the exit; -15 also where it ran past its limit.
        output_tail: the last of what it wrote.
        wall_s, cpu_s: of the command and everything it started and waited for.
        peak_bytes: resident memory of its largest process.
    """

    code: int
    output_tail: str
    wall_s: float
    cpu_s: float
    peak_bytes: int


def spend(
    command: list[str], *, folder: Path, environment: dict[str, str] | None = None, timeout_s: float = 600.0
) -> Spent:
    """Run a command in ``folder`` to its end.

    Args:
        environment: added to this process's.
        timeout_s: after that long it is asked to end (SIGTERM).
    """
    log = folder / "output.txt"
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        limit = threading.Timer(timeout_s, process.terminate)
        limit.start()
        with ProcessTree(process.pid) as tree:
            _, status, usage = os.wait4(process.pid, 0)  # usage includes children that were waited for
        limit.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return Spent(
        code=process.returncode,
        output_tail=log.read_text(errors="replace")[-TAIL_CHARS:],
        wall_s=time.monotonic() - started,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=max(tree.peak_bytes.values(), default=0),
    )
