"""ONNX Runtime reports usage by itself; here it must not: no socket, no file, in any process of ours.

``strace`` sees every system call; without it these tests cannot tell and are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators.agents import REPOSITORY, AgentProcess
from tests.simulators.artifacts import tiny_artifact, tiny_model
from tests.simulators.device_server import DeviceServer

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace (apt-get install strace)"
)

# As an application would embed the agent's runtime; with ``bare`` ONNX Runtime alone, to prove
# that the test sees what it looks for.
PROGRAM = """
import sys, time
if sys.argv[2] == "bare":
    import onnxruntime
    import numpy as np
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    for _ in range(50):
        session.run(None, {"x": np.zeros((1, 24), np.float32)})
else:
    from pathlib import Path
    import numpy as np
    from device_agent.runtime import measure, open_session
    session = open_session(Path(sys.argv[1]), provider="CPUExecutionProvider", threads=2)
    for _ in range(50):
        session.run({"x": np.zeros((1, 24), np.float32)})
    measure("CPUExecutionProvider", threads=2)
time.sleep(1)
"""


def run(tmp_path: Path, mode: str) -> tuple[list[str], list[Path]]:
    """Sockets opened and files left in the home folder, by a process that only infers."""
    home, trace, model = tmp_path / "home", tmp_path / "trace", tmp_path / "model.onnx"
    home.mkdir()
    model.write_bytes(tiny_model())
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    environment |= {"HOME": str(home), "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["strace", "-f", "-e", "trace=socket,connect,sendto", "-o", str(trace)]
    done = subprocess.run(
        [*command, sys.executable, "-c", PROGRAM, str(model), mode],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = [line for line in trace.read_text().splitlines() if "socket(" in line or "connect(" in line]
    return calls, [path for path in home.rglob("*") if path.is_file()]


def test_inference_opens_no_socket_and_leaves_no_file(tmp_path: Path) -> None:
    """Not even when whoever started the process has not switched the reports off."""
    assert run(tmp_path, "ours") == ([], [])


def test_the_test_would_see_it(tmp_path: Path) -> None:
    calls, files = run(tmp_path, "bare")
    if not calls and not files:
        pytest.skip("this build of ONNX Runtime reports nothing by itself")
    assert calls or files


class TestAgent:
    @pytest.fixture
    def server(self) -> Iterator[DeviceServer]:
        with DeviceServer() as server:
            yield server

    def test_a_whole_check_in_talks_to_its_server_only(self, server: DeviceServer, tmp_path: Path) -> None:
        server.roll_out(tiny_artifact())
        agent = AgentProcess(server, tmp_path)
        agent.environment.pop("ORT_DISABLE_TELEMETRY", None)
        trace = tmp_path / "trace"
        answer = agent.command(
            "once", prefix=("strace", "-f", "-e", "trace=connect,sendto", "-o", str(trace))
        )
        assert answer.returncode == 0, answer.stderr
        ports = set(re.findall(r"connect\(.*?sin_port=htons\((\d+)\)", trace.read_text()))
        assert ports == {server.url.rsplit(":", 1)[1]}
        assert not re.search(r"connect\(.*AF_INET6", trace.read_text())
        left = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
        assert left == {"state", "trace", "root.json"}
