"""A whole running system for end-to-end tests: control plane, workers and phones as real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from demo.classes import CLASSES
from demo.client import Client
from demo.control_plane import ControlPlane, embedded_environment, free_port
from demo.phones import PHONES, Phone
from tests.e2e.stacks import Stack

# Short leases, so that a lost worker is noticed within seconds.
FAST = {
    "POCKETFLEET_POLL_INTERVAL_S": "0.5",
    "POCKETFLEET_SWEEP_INTERVAL_S": "1",
    "POCKETFLEET_LEASE_S": "8",
    "POCKETFLEET_HEARTBEAT_S": "1",
}


class System:
    """What a test needs of a running system."""

    def __init__(self, control_plane: ControlPlane, credentials: dict[str, Any]) -> None:
        self.control_plane = control_plane
        self.credentials = credentials
        self.client = Client(control_plane.url, credentials["api_token"])
        self.phones: list[Phone] = []

    def add_phones(self, names: set[str]) -> list[Phone]:
        """Enrol and start those phones of the demo whose names are given."""
        added = [
            Phone(name, hardware, self.control_plane.var / "phones")
            for name, hardware in PHONES
            if name in names
        ]
        for phone in added:
            phone.initialise(
                server=self.control_plane.url,
                provisioning_key=self.credentials["provisioning_key"],
                root=Path(self.credentials["root_json_path"]),
            )
            phone.start()
        self.phones += added
        return added

    def kill_nine(self, child: str) -> int:
        """``kill -9`` of one child of the supervisor, by its own process id; returns that id."""
        pid = self.pid(child)
        os.kill(pid, signal.SIGKILL)
        return pid

    def pid(self, child: str) -> int:
        """Process id of the supervisor's child, as ``manage.py up --status`` tells it."""
        status = json.loads((self.control_plane.var / "run" / "pids.json").read_text())
        return int(status["children"][child]["pid"])

    def until(self, question: Callable[[], Any], *, timeout_s: float, what: str) -> Any:
        """Ask until the answer is true.

        Raises:
            AssertionError: it was not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while not (answer := question()):
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
            time.sleep(0.1)
        return answer


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[System]:
    """Start everything on ``stack``, with the demo's four classes; stop it all at the end."""
    stack.var.mkdir(parents=True)
    control_plane = ControlPlane(
        stack.var, free_port(0), {**embedded_environment(os.environ), **stack.environment, **FAST}
    )
    system: System | None = None
    try:
        control_plane.start()
        system = System(control_plane, control_plane.wait())
        for device_class in CLASSES:
            system.client.post("/device-classes", device_class)
        yield system
    finally:
        if system is not None:
            for phone in system.phones:
                phone.stop()
        control_plane.stop()
