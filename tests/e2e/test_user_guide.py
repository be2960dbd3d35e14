"""The user guide, run as it stands: every ``sh`` block in order, in one shell, on a fresh system."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from demo.control_plane import ControlPlane, embedded_environment, free_port

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "user-guide.md"
TIMEOUT_S = 300

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


def script(folder: Path, port: int) -> str:
    """The guide's blocks, with its folder and port replaced so that runs do not meet."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    text = "\n".join(["set -euo pipefail", *blocks, "wait || true", "echo guide: done"])
    return text.replace("/tmp/guide", str(folder)).replace("PORT=8461", f"PORT={port}")


def run(text: str, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and output of a shell script; whatever it leaves running is ended."""
    shell = subprocess.Popen(
        ["bash", "-c", text],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=TIMEOUT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    return shell.returncode, output


def test_the_user_guide_works_as_it_stands(tmp_path: Path) -> None:
    settings = {**embedded_environment(os.environ), "POCKETFLEET_SWEEP_INTERVAL_S": "1"}
    control_plane = ControlPlane(tmp_path / "var", free_port(0), settings)
    control_plane.var.mkdir()
    environment = {"POCKETFLEET_VAR": str(control_plane.var), "ORT_DISABLE_TELEMETRY": "1"}
    try:
        control_plane.start()
        control_plane.wait()
        code, output = run(script(tmp_path / "guide", free_port(0)), environment)
    finally:
        control_plane.stop()
    assert code == 0, output[-4000:]
    assert output.endswith("guide: done\n")
    assert '"model_name":"guide-classifier"' in output
