"""The agent as a real process: kill -9, a server that restarts, exit codes, clean stop."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators.agents import AgentProcess
from tests.simulators.artifacts import tiny_artifact
from tests.simulators.device_server import DeviceServer


@pytest.fixture
def server() -> Iterator[DeviceServer]:
    with DeviceServer() as server:
        yield server


@pytest.fixture
def agent(server: DeviceServer, tmp_path: Path) -> Iterator[AgentProcess]:
    agent = AgentProcess(server, tmp_path, POCKETFLEET_AGENT_THREADS="1")
    yield agent
    if agent.process is not None and agent.process.poll() is None:
        agent.kill()


def test_kill_9_in_the_middle_of_a_download(server: DeviceServer, agent: AgentProcess) -> None:
    server.roll_out(tiny_artifact())
    agent.start()
    agent.wait_active(1)
    update = tiny_artifact(version=2, seed=3)
    server.blob_delay_s = 0.5
    server.calls.clear()
    server.roll_out(update)
    deadline = time.monotonic() + 60
    while server.calls["blobs"] < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    agent.kill()
    assert agent.status()["models"][0]["state"] == "downloading"
    assert agent.status()["running"] is False
    server.blob_delay_s = 0.0
    agent.start()
    status = agent.wait_active(2)
    (model,) = status["models"]
    assert (model["state"], model["active"]["slot"]) == ("active", "b")
    assert server.calls["blobs"] <= len(update.blobs) + 1  # what was lost is one chunk at most
    assert agent.stop() == 0


def test_it_outlives_its_server(server: DeviceServer, agent: AgentProcess) -> None:
    server.roll_out(tiny_artifact())
    agent.start()
    agent.wait_active(1)
    server.offline = True
    server.tokens.clear()
    time.sleep(1.5)
    assert agent.process is not None
    assert agent.process.poll() is None
    server.offline = False
    server.roll_out(tiny_artifact(version=2))
    agent.wait_active(2)
    assert agent.stop() == 0


def test_a_stop_is_clean_even_in_a_download(server: DeviceServer, agent: AgentProcess) -> None:
    server.blob_delay_s = 60.0
    server.roll_out(tiny_artifact())
    agent.start()
    deadline = time.monotonic() + 60
    while server.calls["blobs"] < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert agent.stop() == 0
    assert "Traceback" not in agent.log.read_text()


def test_only_one_agent_per_folder(server: DeviceServer, agent: AgentProcess) -> None:
    agent.start()
    agent.wait_until(lambda status: bool(status["running"]))
    second = agent.command("once")
    assert second.returncode == 7
    assert "another agent" in second.stderr
    assert agent.stop() == 0


class TestOnce:
    def test_everything_active(self, server: DeviceServer, agent: AgentProcess) -> None:
        server.roll_out(tiny_artifact())
        answer = agent.command("once")
        assert (answer.returncode, answer.stdout) == (0, "tiny v1: active\n"), answer.stderr
        assert [event.state for event in server.install_events()][-1] == "active"
        status = agent.status()
        assert (status["running"], status["state"], status["inference"]) == (False, "accepted", None)

    def test_nothing_assigned(self, agent: AgentProcess) -> None:
        answer = agent.command("once")
        assert (answer.returncode, answer.stdout) == (0, "enrolled; nothing assigned\n"), answer.stderr

    def test_a_build_that_failed(self, server: DeviceServer, agent: AgentProcess) -> None:
        server.roll_out(tiny_artifact())
        assert agent.command("once").returncode == 0
        server.roll_out(tiny_artifact(version=2, honest=False))
        answer = agent.command("once")
        assert answer.returncode == 6
        assert answer.stdout.startswith("tiny v2: rolled_back (output_mismatch: lowest cosine ")
        assert answer.stdout.endswith("; v1 stays active\n")

    def test_a_manifest_that_is_refused(self, server: DeviceServer, agent: AgentProcess) -> None:
        artifact = tiny_artifact()
        artifact.manifest.golden.min_cosine_ppm = 0
        server.roll_out(artifact)
        answer = agent.command("once")
        assert answer.returncode == 5
        assert answer.stdout.startswith("tiny: refused (untrusted_metadata: ")

    def test_a_build_that_waits(self, server: DeviceServer, agent: AgentProcess) -> None:
        artifact = tiny_artifact()
        server.roll_out(artifact)
        server.corrupt = set(artifact.blobs)
        answer = agent.command("once")
        assert answer.returncode == 8
        assert answer.stdout.startswith("tiny v1: offered (")

    def test_no_server(self, server: DeviceServer, agent: AgentProcess) -> None:
        server.offline = True
        answer = agent.command("once")
        assert answer.returncode == 3
        assert "503" in answer.stderr

    def test_not_accepted(self, server: DeviceServer, agent: AgentProcess) -> None:
        server.enroll_state = "rejected"
        assert agent.command("once").returncode == 4

    def test_not_to_be_trusted(self, server: DeviceServer, agent: AgentProcess) -> None:
        server.roll_out(tiny_artifact())
        server.envelope = lambda assignment: b'{"signed": {}, "signatures": []}'
        assert agent.command("once").returncode == 5


class TestCommandLine:
    @pytest.mark.parametrize("command", ["init", "run", "once", "status"])
    def test_help_names_every_exit_code_and_setting(self, agent: AgentProcess, command: str) -> None:
        text = agent.command(command, "--help").stdout
        assert re.findall(r"^  (\d)  ", text, flags=re.MULTILINE) == [str(code) for code in range(9)]
        for setting in ("STATE_DIR", "_PROVISIONING_KEY", "_ROOT", "_PROFILE", "_INFERENCE_PORT"):
            assert setting in text

    def test_init_asks_where_trust_comes_from(self, agent: AgentProcess) -> None:
        answer = agent.command("init", "--server", "http://x")
        assert answer.returncode == 2
        assert "--root" in answer.stderr

    @pytest.mark.parametrize("content", [None, "{}", "no JSON"])
    def test_init_refuses_what_is_no_root(
        self, agent: AgentProcess, tmp_path: Path, content: str | None
    ) -> None:
        path, state = tmp_path / "wrong.json", tmp_path / "other"
        if content is not None:
            path.write_text(content)
        answer = agent.command("init", "--state-dir", str(state), "--server", "http://x", "--root", str(path))
        assert answer.returncode == 2
        assert str(path) in answer.stderr
        assert ("TUF root metadata" in answer.stderr) == (content is not None)
        assert "Traceback" not in answer.stderr
        assert not state.exists()

    def test_init_twice_keeps_the_key(self, agent: AgentProcess) -> None:
        key = (agent.state_dir / "device.key").read_bytes()
        answer = agent.command("init", "--server", "http://x", "--trust-on-first-use")
        assert answer.returncode == 0
        assert (agent.state_dir / "device.key").read_bytes() == key

    def test_secrets_are_private(self, agent: AgentProcess) -> None:
        for name in ("device.key", "agent.toml"):
            assert (agent.state_dir / name).stat().st_mode & 0o077 == 0

    def test_status_before_init(self, agent: AgentProcess, tmp_path: Path) -> None:
        answer = agent.command("status", "--state-dir", str(tmp_path / "nothing"))
        assert answer.returncode == 2
        assert "init" in answer.stderr

    def test_status_is_json(self, agent: AgentProcess) -> None:
        assert json.loads(agent.command("status").stdout)["state"] == "not enrolled"
