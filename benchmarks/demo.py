"""The demo as a whole: how long it takes and how much memory each of its processes needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

from benchmarks.catalogue import Context
from benchmarks.errors import BenchmarkFailed
from benchmarks.figures import Figure
from benchmarks.process_tree import MIB, ProcessTree

DESCRIPTION = "the whole demo (make demo ONCE=1): seconds, and peak memory of each process"
PREDICTION = """
Under 180 s on two cores, most of it the four builds. The tailor worker's sandbox is the largest process
(the model is 90 MB, its quantizers hold about six copies): under 1,200 MB. Web and control worker stay
under 250 MB each, an agent under 450 MB with the model loaded and a self-test's second session beside it.
"""

SECONDS_GOAL = 180.0
PEAK_GOALS_MB = {
    "web": 250.0,
    "control-worker": 250.0,
    "beat": 200.0,
    "supervisor": 200.0,
    "setup": 250.0,
    "tailor-worker": 400.0,
    "sandbox": 1200.0,
    "agent": 450.0,
    "demo": 700.0,
}
OTHER_PEAK_GOAL_MB = 250.0
TIMEOUT_S = 900


def run(context: Context) -> list[Figure]:
    """Run the demo once in a scratch folder and watch its processes.

    Raises:
        BenchmarkFailed: it ended with an error, or its last line is not the JSON that it promises.
    """
    started = time.monotonic()
    process = _start(context)
    with ProcessTree(process.pid, role="demo") as tree:
        last_line = _follow(process)
    seconds = time.monotonic() - started
    result = _result(process.returncode, last_line)
    return figures(seconds, result, tree.peak_bytes, tree.total_peak_bytes, left_behind=len(tree.alive()))


def figures(
    seconds: float, result: dict[str, Any], peaks: dict[str, int], total_peak: int, *, left_behind: int
) -> list[Figure]:
    """The figures of a run. ``seconds`` is this side's clock, not the demo's own."""
    requirement = "the requirement"
    found = [
        Figure(
            name="seconds", value=round(seconds, 1), goal=SECONDS_GOAL, better="lower", against=requirement
        ),
        Figure(name="devices_active", value=result["active"], goal=6, better="higher", against=requirement),
        Figure(name="processes_left", value=left_behind, goal=0, better="lower", against=requirement),
    ]
    for role in sorted(peaks):
        goal = PEAK_GOALS_MB.get(role, OTHER_PEAK_GOAL_MB)
        value = round(peaks[role] / MIB, 1)
        against = "the prediction, largest process of its kind"
        found.append(
            Figure(name=f"peak_rss_mib/{role}", value=value, goal=goal, better="lower", against=against)
        )
    total = round(total_peak / MIB, 1)
    found.append(
        Figure(
            name="peak_rss_mib/all",
            value=total,
            goal=4096.0,
            better="lower",
            against="a machine with 4 GiB, all processes at one time, shared pages counted in each",
        )
    )
    return found


def _start(context: Context) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "POCKETFLEET_VAR": str(context.scratch / "var"),
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "demo", "--once"],
        cwd=context.root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def _follow(process: subprocess.Popen[str]) -> str:
    """Pass the output on, and keep its last line. Past the time limit the demo is asked to end (SIGTERM)."""
    assert process.stdout is not None
    limit = threading.Timer(TIMEOUT_S, process.terminate)
    limit.start()
    last_line = ""
    try:
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            last_line = line.strip() or last_line
        process.wait()
    finally:
        limit.cancel()
    return last_line


def _result(code: int, last_line: str) -> dict[str, Any]:
    try:
        result = json.loads(last_line)
    except json.JSONDecodeError:
        result = None
    if code != 0 or not isinstance(result, dict) or "active" not in result:
        raise BenchmarkFailed(f"the demo ended with code {code}; its last line was: {last_line[:500]!r}")
    return result
