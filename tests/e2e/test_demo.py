"""The demo is the main end-to-end test: the same command on both stacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from demo.classes import CLASSES
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
    floors = {device_class["name"]: device_class["quality_floor"] for device_class in CLASSES}
    accepted = {device_class["name"]: device_class["precisions"] for device_class in CLASSES}
    assert set(by_class) == set(floors)
    for name, row in by_class.items():  # builds are mixes; most weights are in one that the class accepts
        assert row["quality"] >= floors[name], row
        assert row["precision"] in [*accepted[name], "int8"], row  # an NPU's table is in INT8 too
        assert row["build"], row
    assert by_class["midrange-gpu"]["precision"] == "fp16"
    assert by_class["midrange-gpu"]["quality"] > 0.999
    sizes = {name: row["size_bytes"] for name, row in by_class.items()}
    assert min(sizes, key=lambda name: sizes[name]) == "entry"
    assert sizes["entry"] < sizes["midrange-gpu"] / 2
    assert not processes_of(str(stack.var)), "the demo left a process behind"


def test_ctrl_c_in_the_middle_leaves_nothing_and_the_next_run_starts_over(tmp_path: Path) -> None:
    var = tmp_path / "var"
    for number in range(2):
        demo = subprocess.Popen(
            [sys.executable, "-m", "demo", "--port", "0"],
            cwd=ROOT,
            env={**os.environ, "POCKETFLEET_VAR": str(var)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert demo.stdout is not None
        awaited = ("control plane is up", "uploaded")[number]
        try:
            seen = next((line for line in demo.stdout if awaited in line), None)
            assert seen, f"the demo ended before it said {awaited!r}"
            assert processes_of(str(var))
            demo.send_signal(signal.SIGINT)
            demo.communicate(timeout=90)
        finally:
            demo.terminate()
            code = demo.wait(90)
        assert code == 130
        assert not processes_of(str(var)), "the demo left a process behind"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "credentials.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--once"],
        cwd=ROOT,
        env={**os.environ, "POCKETFLEET_VAR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "left alone" in done.stdout
    assert (tmp_path / "credentials.json").exists()


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
