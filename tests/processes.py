"""Real processes for tests: ``manage.py`` in a folder of its own, ports, patience."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 60.0


def until(holds: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; fails the test if it never holds."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if value := holds():
            return value
        time.sleep(0.05)
    pytest.fail(f"still not so: {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def up_environment(var: Path) -> dict[str, str]:
    """The embedded default in ``var``, whatever this test run itself stands on."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POCKETFLEET_")}
    return kept | {
        "POCKETFLEET_VAR": str(var),
        "DJANGO_SETTINGS_MODULE": "fleet.settings",
        "POCKETFLEET_STOP_GRACE_S": "8",
    }


def manage(var: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a management command to its end."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=up_environment(var),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
