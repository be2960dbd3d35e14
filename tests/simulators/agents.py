"""Agents under test: in this process, or as real ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_agent.agent import CheckIn, Device
from device_agent.config import ROOT_NAME, AgentConfig
from tests.simulators.device_server import PROVISIONING_KEY, DeviceServer

REPOSITORY = Path(__file__).resolve().parents[2]


class InProcessAgent:
    """The agent's parts without its loop: check-ins happen when the test says so."""

    def __init__(self, server: DeviceServer, state_dir: Path, **config: Any) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        if not (state_dir / ROOT_NAME).exists():
            (state_dir / ROOT_NAME).write_bytes(server.tuf.root)
        settings = {"server": server.url, "provisioning_key": PROVISIONING_KEY, "name": "test", "threads": 1}
        self.now_s = 0.0  # added to the clock
        self.state_dir = state_dir
        config = {**settings, "retry_base_s": 1.0, **config}
        self.device = Device(state_dir, AgentConfig(**config), clock=lambda: time.time() + self.now_s)
        self.device.recover()
        self.check_in = CheckIn(self.device)

    def run(self) -> str:
        """One check-in with its report; returns the outcome."""
        self.check_in.run()
        self.check_in.send_reports()
        return self.check_in.outcome()

    def output(self, inputs: dict[str, Any], model: str = "tiny") -> Any:
        """What the served build answers."""
        served = self.device.runtime.model(model)
        return next(iter(self.device.runtime.infer(served, inputs).result(timeout=30).values()))

    def close(self) -> None:
        self.device.close()


class AgentProcess:
    """``pocketfleet-agent`` as a process of its own, in its own folder."""

    def __init__(self, server: DeviceServer, folder: Path, **environment: str) -> None:
        self.state_dir = folder / "state"
        self.environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HOME": str(folder)} | environment
        self.log = folder / "agent.log"
        root = folder / "root.json"
        root.write_bytes(server.tuf.root)
        self.command(
            "init", "--server", server.url, "--provisioning-key", PROVISIONING_KEY, "--root", str(root)
        )
        self.process: subprocess.Popen[bytes] | None = None

    def command(
        self, name: str, *arguments: str, prefix: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        line = [*prefix, *self._line(name), *arguments]
        return subprocess.run(
            line, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )

    def start(self, *, prefix: tuple[str, ...] = ()) -> None:
        """Start ``run`` in the background."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*prefix, *self._line("run")], env=self.environment, stderr=log)

    def status(self) -> dict[str, Any]:
        answer = self.command("status")
        status: dict[str, Any] = json.loads(answer.stdout) if answer.returncode == 0 else {}
        return status

    def wait_until(
        self, ready: Callable[[dict[str, Any]], bool], *, timeout_s: float = 60.0
    ) -> dict[str, Any]:
        """Wait for a state that ``status`` shows."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.status()
            if status and ready(status):
                return status
            time.sleep(0.1)
        raise TimeoutError(f"{status}\n{self.log.read_text()}")

    def wait_active(self, version: int) -> dict[str, Any]:
        """Wait until this version of the only model serves."""
        return self.wait_until(
            lambda status: (
                any((m["active"] or {}).get("version") == version for m in status["models"])
                and bool(status["inference"])
            )
        )

    def kill(self) -> None:
        """``kill -9``."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def _line(self, name: str) -> list[str]:
        return [sys.executable, "-m", "device_agent", name, "--state-dir", str(self.state_dir)]
