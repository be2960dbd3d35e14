"""Starts the whole embedded system (``manage.py up``) and ends it without leaving anything behind."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
STOP_GRACE_S = 30
MARKER = "made-by-the-demo"


class StartFailed(Exception):
    """The control plane did not come up; the message says why and where to look."""


def die_with_parent() -> None:
    """In a child before exec: be told to stop when the parent is gone, however it ended (Linux)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def free_port(preferred: int) -> int:
    """``preferred`` if nothing listens there, else a free one."""
    for port in (preferred, 0):
        with contextlib.closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StartFailed("no free port on 127.0.0.1")


def hold(var: Path) -> IO[str]:
    """Take the lock of this state folder, for as long as the returned file stays open.

    Raises:
        StartFailed: another run has it.
    """
    var.parent.mkdir(parents=True, exist_ok=True)
    lock = (var.parent / f".{var.name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartFailed(
            f"another demo runs on {var}; stop it first, or name another POCKETFLEET_VAR"
        ) from None
    return lock


def wipe(var: Path) -> None:
    """Make the state folder anew. Only a folder that an earlier demo made is ever removed.

    Raises:
        StartFailed: the folder holds something else.
    """
    if var.exists() and any(var.iterdir()):
        if not (var / MARKER).exists():
            raise StartFailed(
                f"{var} was not made by the demo, so it is left alone; name another POCKETFLEET_VAR"
            )
        shutil.rmtree(var)
    var.mkdir(parents=True, exist_ok=True)
    (var / MARKER).write_text("The demo removes this folder when it starts.\n")


def embedded_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without what would lead the control plane to anything but its own folder."""
    return {name: value for name, value in environment.items() if not name.startswith("POCKETFLEET_")}


class ControlPlane:
    """``manage.py up`` as a child process, with its state under ``var``.

    Args:
        environment: all of the child's environment but the folder, the address and the settings.
    """

    def __init__(self, var: Path, port: int, environment: dict[str, str]) -> None:
        self.var = var
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._log = var / "up.log"
        self._environment = {
            **environment,
            "DJANGO_SETTINGS_MODULE": "fleet.settings",
            "POCKETFLEET_VAR": str(var),
            "POCKETFLEET_PUBLIC_URL": self.url,
            "ORT_DISABLE_TELEMETRY": "1",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; :meth:`wait` says when it is there."""
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "manage.py", "up", "--port", str(self._port)],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops this in order
                preexec_fn=die_with_parent,
            )

    def wait(self, *, timeout_s: float = 90) -> dict[str, Any]:
        """Wait until it answers; returns the generated credentials.

        Raises:
            StartFailed: it ended, or did not answer in time.
        """
        assert self._process is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                tail = self._log.read_text(errors="replace")[-2000:]
                raise StartFailed(f"manage.py up ended with code {self._process.returncode}:\n{tail}")
            credentials = self.var / "credentials.json"
            if credentials.exists() and self._answers():
                loaded: dict[str, Any] = json.loads(credentials.read_text())
                return loaded
            time.sleep(0.2)
        raise StartFailed(f"the control plane did not answer within {timeout_s:.0f} s; see {self._log}")

    def _answers(self) -> bool:
        import urllib3

        try:
            return urllib3.request("GET", f"{self.url}/readyz", timeout=2.0, retries=False).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to its process group after a grace; harmless if never started."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
