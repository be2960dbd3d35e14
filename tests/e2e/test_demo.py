"""The demo is the main end-to-end test: the same command on both stacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest

from demo.control_plane import ROOT
from tests.e2e.stacks import Stack

pytestmark = pytest.mark.e2e


def test_demo_keeps_its_promise(stack: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--once", "--port", "0"],
        cwd=ROOT,
        env={
            **os.environ,
            **stack.environment,
            "POCKETFLEET_VAR": str(stack.var),
            "ORT_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["devices"] == result["active"] == 6
    assert result["rollout"] == "finished"
    by_class = {row["class"]: row for row in result["classes"]}
    assert {name: row["precision"] for name, row in by_class.items()} == {
        "flagship": "int8-qdq",
        "midrange-gpu": "fp16",
        "midrange-cpu": "int8-dynamic",
        "entry": "int4",
    }
    assert by_class["midrange-gpu"]["quality"] > 0.999
    assert all(row["quality"] >= 0.95 for row in by_class.values())
    assert by_class["entry"]["size_bytes"] < by_class["midrange-gpu"]["size_bytes"] / 2
    assert not processes_of(str(stack.var)), "the demo left a process behind"


def processes_of(var: str) -> list[list[str]]:
    """Command lines of processes that work on this state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("POCKETFLEET_VAR") == var:
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found
