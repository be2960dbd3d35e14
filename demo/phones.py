"""Six phones of the demo: real agent processes with emulated hardware.

A profile overrides what the agent would find on this machine; the agent reports all of it as
emulated, and it runs on the CPU execution provider whatever accelerator it stands for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.control_plane import ROOT, die_with_parent, embedded_environment

STOP_GRACE_S = 10


@dataclass(frozen=True)
class Hardware:
    soc: str
    ram_mb: int
    accelerators: tuple[tuple[str, str, tuple[str, ...]], ...]  # (name, kind, data types)


CPU = ("cpu0", "cpu", ("float32", "int8"))
FLAGSHIP = Hardware("demo-flagship-npu", 12288, (("npu0", "npu", ("int8", "int16")), CPU))
MIDRANGE_GPU = Hardware("demo-midrange-gpu", 8192, (("gpu0", "gpu", ("float16", "float32")), CPU))
MIDRANGE_CPU = Hardware("demo-midrange-cpu", 8192, (CPU,))
ENTRY = Hardware("demo-entry", 3072, (CPU,))

PHONES: list[tuple[str, Hardware]] = [
    ("flagship-1", FLAGSHIP),
    ("midrange-gpu-1", MIDRANGE_GPU),
    ("midrange-cpu-1", MIDRANGE_CPU),
    ("midrange-cpu-2", MIDRANGE_CPU),
    ("entry-1", ENTRY),
    ("entry-2", ENTRY),
]


class PhoneFailed(Exception):
    """An agent command failed; the message holds what it said."""


class Phone:
    """One agent process with a state folder of its own."""

    def __init__(self, name: str, hardware: Hardware, folder: Path) -> None:
        self.name = name
        self.state = folder / name
        self._hardware = hardware
        self._process: subprocess.Popen[bytes] | None = None

    def initialise(self, *, server: str, provisioning_key: str, root: Path) -> None:
        """``pocketfleet-agent init`` with a profile of emulated hardware."""
        self.state.mkdir(parents=True)
        profile = self.state.parent / f"{self.name}.toml"
        profile.write_text(_toml(self._hardware))
        self._agent(
            "init", "--server", server, "--provisioning-key", provisioning_key, "--root", str(root),
            "--name", self.name, "--profile", str(profile), "--tag", "demo",
        )  # fmt: skip

    def start(self) -> None:
        """``pocketfleet-agent run``, its output in ``<name>.log`` beside the state folder."""
        with (self.state.parent / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command("run")],
                cwd=ROOT,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def status(self) -> dict[str, Any]:
        """``pocketfleet-agent status``."""
        answer: dict[str, Any] = json.loads(self._agent("status"))
        return answer

    def signal_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after a grace; harmless if never started."""
        self.signal_stop()
        if self._process is None:
            return
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """``kill -9``, for the tests of crash safety."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _command(self, verb: str) -> list[str]:
        return [sys.executable, "-m", "device_agent", verb, "--state-dir", str(self.state)]

    def _agent(self, verb: str, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command(verb), *arguments],
            cwd=ROOT,
            env=_environment(),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        if done.returncode != 0:
            raise PhoneFailed(
                f"pocketfleet-agent {verb} of {self.name} ended with {done.returncode}: {done.stderr}"
            )
        return done.stdout


def _environment() -> dict[str, str]:
    """Of an agent: nothing of this shell's own settings for Pocketfleet."""
    return {**embedded_environment(os.environ), "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}


def _toml(hardware: Hardware) -> str:
    lines = [
        f"soc = {json.dumps(hardware.soc)}",
        f"ram_mb = {hardware.ram_mb}",
        'os = "Android"',
        'os_version = "16"',
    ]
    for name, kind, data_types in hardware.accelerators:
        lines += ["", "[[accelerators]]", f'name = "{name}"', f'kind = "{kind}"']
        lines += [f"data_types = {json.dumps(list(data_types))}"]
    return "\n".join(lines) + "\n"
