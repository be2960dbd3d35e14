"""Installing on a device: real ONNX Runtime, real HTTP, real TUF; and everything that goes wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from device_agent.agent import status_of
from device_agent.errors import ServerUnreachable, UntrustedAssignment, UntrustedMetadata
from device_agent.install import decompress
from device_agent.install.installer import Installer
from device_agent.protocol.messages import Assignment, DeviceSample, InferenceAggregate
from tests.simulators.agents import InProcessAgent
from tests.simulators.artifacts import (
    golden,
    make_artifact,
    run_model,
    sha256,
    tiny_artifact,
    tiny_inputs,
    tiny_model,
)
from tests.simulators.device_server import DeviceServer


@pytest.fixture
def server() -> Iterator[DeviceServer]:
    with DeviceServer() as server:
        yield server


@pytest.fixture
def agent(server: DeviceServer, tmp_path: Path) -> Iterator[InProcessAgent]:
    agent = InProcessAgent(server, tmp_path / "state")
    yield agent
    agent.close()


def again(agent: InProcessAgent, server: DeviceServer, **config: Any) -> InProcessAgent:
    """The agent after a restart."""
    agent.close()
    return InProcessAgent(server, agent.state_dir, **config)


def states(server: DeviceServer) -> list[str]:
    return [event.state for event in server.install_events()]


class TestInstall:
    def test_from_nothing_to_active(self, server: DeviceServer, agent: InProcessAgent) -> None:
        artifact = tiny_artifact()
        server.roll_out(artifact)
        assert agent.run() == "active"
        assert states(server) == ["offered", "downloading", "verifying", "staged", "testing", "active"]
        last = server.install_events()[-1]
        assert last.self_test is not None
        assert last.self_test.passed
        assert last.self_test.provider == "CPUExecutionProvider"
        assert last.self_test.min_cosine == pytest.approx(1.0)
        assert last.downloaded_bytes == artifact.manifest.download_bytes
        expected = run_model(tiny_model(), tiny_inputs())["y"]
        np.testing.assert_allclose(agent.output(tiny_inputs()), expected, rtol=1e-5)

    def test_nothing_changed_costs_one_304(self, server: DeviceServer, agent: InProcessAgent) -> None:
        server.roll_out(tiny_artifact())
        agent.run()
        server.calls.clear()
        agent.run()
        assert dict(server.calls) == {"desired": 1}

    def test_an_update_reuses_what_is_installed(self, server: DeviceServer, agent: InProcessAgent) -> None:
        server.roll_out(tiny_artifact())
        agent.run()
        update = tiny_artifact(shift=0.5, version=2)
        server.roll_out(update)
        assert agent.run() == "active"
        last = server.install_events()[-1]
        assert last.version == 2
        assert last.reused_bytes > 0
        assert 0 < last.downloaded_bytes < update.manifest.download_bytes
        assert status_of(agent.state_dir)["models"][0]["active"]["slot"] == "b"
        expected = run_model(tiny_model(shift=0.5), tiny_inputs())["y"]
        np.testing.assert_allclose(agent.output(tiny_inputs()), expected, rtol=1e-5)

    def test_back_to_the_version_before_downloads_nothing(
        self, server: DeviceServer, agent: InProcessAgent
    ) -> None:
        first = server.roll_out(tiny_artifact())
        agent.run()
        server.roll_out(tiny_artifact(shift=0.5, version=2))
        agent.run()
        server.calls.clear()
        server.assign(msgspec.structs.replace(first, rollout=first.build))
        assert agent.run() == "active"
        assert server.calls["blobs"] == 0
        assert server.install_events()[-1].reused_bytes == tiny_artifact().manifest.size_bytes

    def test_a_new_rollout_of_the_active_build_is_only_reported(
        self, server: DeviceServer, agent: InProcessAgent
    ) -> None:
        first = server.roll_out(tiny_artifact())
        agent.run()
        server.assign(msgspec.structs.replace(first, rollout=first.build))
        agent.run()
        last = server.install_events()[-1]
        assert (last.state, last.rollout) == ("active", first.build)
        assert last.self_test is not None
        assert states(server).count("testing") == 1

    def test_several_models_side_by_side(self, server: DeviceServer, agent: InProcessAgent) -> None:
        one = server.publish(tiny_artifact(model="one"))
        two = server.publish(tiny_artifact(model="two", seed=1))
        server.assign(one, two)
        assert agent.run() == "active"
        outputs = [agent.output(tiny_inputs(), model) for model in ("one", "two")]
        assert not np.allclose(*outputs)

    def test_a_model_no_longer_assigned_goes(self, server: DeviceServer, agent: InProcessAgent) -> None:
        one, two = (server.publish(tiny_artifact(model=name)) for name in ("one", "two"))
        server.assign(one, two)
        agent.run()
        server.assign(two)
        agent.run()
        assert [model["model"] for model in status_of(agent.state_dir)["models"]] == ["two"]
        assert [served.manifest.model for served in agent.device.runtime.models()] == ["two"]
        assert not (agent.state_dir / "models" / "one").exists()

    def test_a_restart_serves_what_was_active(self, server: DeviceServer, agent: InProcessAgent) -> None:
        server.roll_out(tiny_artifact())
        agent.run()
        server.offline = True
        assert again(agent, server).output(tiny_inputs()).shape == (4, 16)

    def test_chunks_are_given_back(self, server: DeviceServer, agent: InProcessAgent) -> None:
        server.roll_out(tiny_artifact())
        agent.run()
        assert [path for path in (agent.state_dir / "chunks").rglob("*") if path.is_file()] == []

    def test_a_build_of_several_files(self, server: DeviceServer, agent: InProcessAgent) -> None:
        model, inputs = tiny_model(), tiny_inputs()
        files = {
            "model.onnx": model,
            "data/weights.bin": b"x" * 70_000,
            "golden.npz": golden(inputs, run_model(model, inputs)),
        }
        server.roll_out(make_artifact(files))
        assert agent.run() == "active"
        path = agent.state_dir / "models" / "tiny" / "a" / "data" / "weights.bin"
        assert path.read_bytes() == files["data/weights.bin"]


class TestInterruption:
    def test_a_broken_download_resumes_at_the_chunk(
        self, server: DeviceServer, agent: InProcessAgent
    ) -> None:
        artifact = tiny_artifact()
        server.roll_out(artifact)
        server.drop_after_blobs = 2
        with pytest.raises(ServerUnreachable):
            agent.run()
        assert status_of(agent.state_dir)["models"][0]["why_not_yet"] == "network"
        server.drop_after_blobs = None
        server.calls.clear()
        assert agent.run() == "active"
        assert server.calls["blobs"] == len(artifact.blobs) - 2
        last = server.install_events()[-1]
        assert last.downloaded_bytes == artifact.manifest.download_bytes

    def test_a_server_that_is_away_costs_no_attempt(
        self, server: DeviceServer, agent: InProcessAgent
    ) -> None:
        server.roll_out(tiny_artifact())
        server.drop_after_blobs = 0
        for _ in range(5):
            with pytest.raises(ServerUnreachable):
                agent.run()
        server.drop_after_blobs = None
        assert agent.run() == "active"

    @pytest.mark.parametrize("state", ["downloading", "verifying", "staged", "testing"])
    def test_a_crash_in_any_step_is_made_good(
        self, server: DeviceServer, agent: InProcessAgent, state: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Crash(BaseException):
            """As if the process had ended here: nothing may catch it."""

        methods = {
            "downloading": "_download",
            "verifying": "_write_slot",
            "staged": "_test_and_activate",
            "testing": None,
        }

        def crash(*arguments: object, **named: object) -> None:
            raise Crash

        server.roll_out(tiny_artifact(version=1))
        agent.run()
        server.roll_out(tiny_artifact(version=2, shift=0.5))
        with monkeypatch.context() as patched:
            if name := methods[state]:
                patched.setattr(Installer, name, crash)
            else:
                patched.setattr(agent.device.runtime, "prove", crash)
            with pytest.raises(Crash):
                agent.run()
        assert status_of(agent.state_dir)["models"][0]["state"] == state
        restarted = again(agent, server)
        assert restarted.device.runtime.model("tiny").manifest.version == 1
        restarted.now_s = 60.0
        assert restarted.run() == "active"
        assert restarted.device.runtime.model("tiny").manifest.version == 2

    def test_a_self_test_that_kills_the_agent_is_not_repeated_for_ever(
        self, server: DeviceServer, agent: InProcessAgent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Crash(BaseException):
            pass

        def crash(*arguments: object) -> None:
            raise Crash

        server.roll_out(tiny_artifact())
        for attempt in range(3):
            agent.now_s = attempt * 1000.0
            monkeypatch.setattr(agent.device.runtime, "prove", crash)
            with pytest.raises(Crash):
                agent.run()
            agent = again(agent, server)
        assert agent.run() == "failed"
        last = server.install_events()[-1]
        assert (last.state, last.failure) == ("failed", "session_failed")

    def test_a_damaged_active_slot_falls_back_to_the_other(
        self, server: DeviceServer, agent: InProcessAgent
    ) -> None:
        server.roll_out(tiny_artifact())
        agent.run()
        server.roll_out(tiny_artifact(version=2, shift=0.5))
        agent.run()
        agent.close()
        (agent.state_dir / "models" / "tiny" / "b" / "model.onnx").write_bytes(b"rot")
        restarted = InProcessAgent(server, agent.state_dir)
        assert restarted.device.runtime.model("tiny").manifest.version == 1
        restarted.run()
        last = server.install_events()[-1]
        assert (last.version, last.state, last.failure) == (2, "rolled_back", "session_failed")

    def test_a_damaged_only_slot_is_reported(self, server: DeviceServer, agent: InProcessAgent) -> None:
        server.roll_out(tiny_artifact())
        agent.run()
        agent.close()
        (agent.state_dir / "models" / "tiny" / "a" / "model.onnx").unlink()
        restarted = InProcessAgent(server, agent.state_dir)
        assert restarted.device.runtime.models() == []
        assert restarted.run() == "failed"


class TestRefusal:
    def test_a_corrupted_chunk_never_becomes_a_file(
        self, server: DeviceServer, agent: InProcessAgent
    ) -> None:
        artifact = tiny_artifact()
        server.roll_out(artifact)
        server.corrupt = set(artifact.blobs)
        assert agent.run() == "waiting"
        status = status_of(agent.state_dir)["models"][0]
        assert (status["failure"], status["why_not_yet"]) == ("digest_mismatch", "server")
        assert not (agent.state_dir / "models" / "tiny").exists()
        server.corrupt = set()
        agent.now_s = 100.0
        assert agent.run() == "active"

    def test_attempts_are_capped_until_the_assignment_changes(
        self, server: DeviceServer, agent: InProcessAgent
    ) -> None:
        artifact = tiny_artifact()
        assigned = server.roll_out(artifact)
        server.corrupt = set(artifact.blobs)
        for attempt in range(6):
            agent.now_s = attempt * 100.0
            outcome = agent.run()
        assert outcome == "failed"
        assert [event.failure for event in server.install_events()].count("digest_mismatch") == 3
        server.corrupt = set()
        agent.run()
        assert agent.check_in.outcome() == "failed"
        server.assign(msgspec.structs.replace(assigned, rollout=assigned.build))
        assert agent.run() == "active"

    def test_an_operators_retry_is_taken_up_once_the_failure_was_reported(
        self, server: DeviceServer, agent: InProcessAgent
    ) -> None:
        artifact = tiny_artifact(memory_bytes=2**60)
        assigned = server.roll_out(artifact)
        agent.check_in.run()
        server.assign(assigned)  # the server cannot know yet: no retry
        agent.check_in.run()
        assert len([one for one in agent.device.installs.all() if one.attempts == 1]) == 1
        agent.check_in.send_reports()
        assert states(server) == ["offered", "failed"]
        agent.now_s = 10.0
        agent.check_in.send_reports()
        server.assign(assigned)  # it knows, and asks for it all the same
        agent.run()
        assert states(server) == ["offered", "failed"] * 2

    def test_a_wrong_build_is_rolled_back_and_the_old_one_stays(
        self, server: DeviceServer, agent: InProcessAgent
    ) -> None:
        server.roll_out(tiny_artifact())
        agent.run()
        server.roll_out(tiny_artifact(version=2, shift=0.5, honest=False))
        assert agent.run() == "failed"
        last = server.install_events()[-1]
        assert (last.state, last.failure, last.version) == ("rolled_back", "output_mismatch", 2)
        assert last.self_test is not None
        assert not last.self_test.passed
        assert agent.device.runtime.model("tiny").manifest.version == 1
        assert again(agent, server).device.runtime.model("tiny").manifest.version == 1

    def test_a_wrong_first_build_fails(self, server: DeviceServer, agent: InProcessAgent) -> None:
        server.roll_out(tiny_artifact(honest=False))
        assert agent.run() == "failed"
        assert server.install_events()[-1].state == "failed"
        assert agent.device.runtime.models() == []
        assert status_of(agent.state_dir)["models"][0]["active"] is None

    @pytest.mark.parametrize(
        ("changes", "failure"),
        [
            ({"provider": "QNNExecutionProvider", "accelerator": "npu"}, "provider_fallback"),
            ({"memory_bytes": 2**60}, "insufficient_memory"),
            ({"minimum_version": "99.0.0"}, "runtime_too_old"),
        ],
    )
    def test_what_cannot_run_is_refused_before_the_download(
        self, server: DeviceServer, agent: InProcessAgent, changes: dict[str, Any], failure: str
    ) -> None:
        server.roll_out(tiny_artifact(**changes))
        assert agent.run() == "failed"
        assert server.install_events()[-1].failure == failure
        assert server.calls["blobs"] == 0

    def test_a_graph_that_does_not_load(self, server: DeviceServer, agent: InProcessAgent) -> None:
        files = {"model.onnx": b"no graph", "golden.npz": golden(tiny_inputs(), tiny_inputs())}
        server.roll_out(make_artifact(files))
        for attempt in range(4):
            agent.now_s = attempt * 1000.0
            agent.run()
        last = server.install_events()[-1]
        assert (last.state, last.failure) == ("failed", "session_failed")

    def test_no_room(self, server: DeviceServer, agent: InProcessAgent) -> None:
        server.roll_out(tiny_artifact())
        agent.device.installer._free_bytes = lambda path: 1000
        assert agent.run() == "waiting"
        assert server.install_events()[-1].waiting == "storage"
        assert server.calls["blobs"] == 0
        agent.device.installer._free_bytes = lambda path: 2**40
        assert agent.run() == "active"

    def test_a_decompression_bomb(self) -> None:
        import zstandard

        from device_agent.errors import InstallError
        from device_agent.protocol.manifest import Chunk

        stored = zstandard.compress(b"\0" * 2**28)
        chunk = Chunk(
            sha256=sha256(b"\0"), size_bytes=1, stored_sha256=sha256(stored), stored_size_bytes=len(stored)
        )
        with pytest.raises(InstallError, match="something else"):
            decompress(stored, chunk)


class TestTrust:
    def test_a_tampered_envelope_changes_nothing(self, server: DeviceServer, agent: InProcessAgent) -> None:
        server.roll_out(tiny_artifact())
        agent.run()

        def forged(assignment: Assignment) -> bytes:
            return server.sign(assignment).replace(b'"version":2', b'"version":3')

        server.envelope = forged
        server.roll_out(tiny_artifact(version=2))
        with pytest.raises(UntrustedAssignment):
            agent.run()
        assert agent.device.runtime.model("tiny").manifest.version == 1
        server.envelope = server.sign
        assert agent.run() == "active"

    def test_a_sequence_from_before_is_refused(self, server: DeviceServer, agent: InProcessAgent) -> None:
        server.roll_out(tiny_artifact())
        agent.run()
        server.roll_out(tiny_artifact(version=2))
        server.sequence = 1
        with pytest.raises(UntrustedAssignment, match="older"):
            agent.run()

    def test_a_digest_that_tuf_does_not_confirm(self, server: DeviceServer, agent: InProcessAgent) -> None:
        good = server.publish(tiny_artifact(model="good"))
        bad = msgspec.structs.replace(server.publish(tiny_artifact(model="bad")), sha256="0" * 64)
        server.assign(good, bad)
        assert agent.run() == "refused"
        (event,) = server.install_events("bad")
        assert (event.state, event.failure) == ("failed", "untrusted_assignment")
        assert agent.device.runtime.model("good").manifest.model == "good"
        agent.run()
        assert len(server.install_events("bad")) == 1  # told once
        assert status_of(agent.state_dir)["refused"][0]["model"] == "bad"

    def test_a_manifest_that_leaves_its_slot(self, server: DeviceServer, agent: InProcessAgent) -> None:
        artifact = tiny_artifact()
        artifact.manifest.files[0].path = artifact.manifest.entry = "../../../escaped.onnx"
        server.roll_out(artifact)
        assert agent.run() == "refused"
        assert server.install_events()[-1].failure == "untrusted_metadata"
        assert not list(agent.state_dir.parent.rglob("escaped.onnx"))

    def test_an_expired_assignment(self, server: DeviceServer, agent: InProcessAgent) -> None:
        server.roll_out(tiny_artifact())
        server.assignment_lifetime_s = -1
        with pytest.raises(UntrustedAssignment, match="expired"):
            agent.run()

    def test_an_assignment_that_expires_while_waiting(
        self, server: DeviceServer, agent: InProcessAgent
    ) -> None:
        server.roll_out(tiny_artifact())
        agent.device.installer._free_bytes = lambda path: 1000
        agent.run()
        agent.now_s = 7200.0  # the assignment lives an hour; a server that is away cannot renew it
        server.offline = True
        with pytest.raises(ServerUnreachable):
            agent.run()
        assert status_of(agent.state_dir)["models"][0]["state"] == "expired"
        server.offline = False
        agent.now_s = 0.0
        agent.device.installer._free_bytes = lambda path: 2**40
        agent.device.identity.set_value("assignment_expires", "0")
        assert agent.run() == "active"

    def test_the_wrong_root(self, server: DeviceServer, tmp_path: Path) -> None:
        with DeviceServer() as other:
            root = other.tuf.root
        (tmp_path / "root.json").write_bytes(root)
        agent = InProcessAgent(server, tmp_path)
        server.roll_out(tiny_artifact())
        with pytest.raises(UntrustedMetadata):
            agent.run()
        agent.close()

    def test_a_file_that_is_no_root_is_not_kept(self, server: DeviceServer, tmp_path: Path) -> None:
        given = tmp_path / "given.json"
        given.write_text("{}")
        agent = InProcessAgent(server, tmp_path / "state", root=str(given))
        (tmp_path / "state" / "root.json").unlink()
        server.roll_out(tiny_artifact())
        with pytest.raises(UntrustedMetadata):
            agent.run()
        given.write_bytes(server.tuf.root)
        assert agent.run() == "active"
        agent.close()

    def test_trust_on_first_use_is_a_choice(self, server: DeviceServer, tmp_path: Path) -> None:
        agent = InProcessAgent(server, tmp_path, trust_on_first_use=True)
        (tmp_path / "root.json").unlink()
        server.roll_out(tiny_artifact())
        assert agent.run() == "active"
        assert (tmp_path / "root.json").read_bytes() == server.tuf.root
        agent.close()


class TestIdentity:
    def test_a_pending_device_waits(self, server: DeviceServer, agent: InProcessAgent) -> None:
        from device_agent.errors import Refused

        server.enroll_state = "pending"
        server.roll_out(tiny_artifact())
        with pytest.raises(Refused, match="pending"):
            agent.run()
        server.enroll_state = "accepted"
        assert agent.run() == "active"

    def test_capabilities_are_sent_when_they_change(
        self, server: DeviceServer, agent: InProcessAgent
    ) -> None:
        for _ in range(3):
            agent.run()
        assert len(server.capabilities) == 1
        (accelerator,) = server.capabilities[0].accelerators
        assert accelerator.fp32_gflops
        assert accelerator.int8_gops
        assert accelerator.bandwidth_gb_per_s
        assert accelerator.session_start_ms
        again(agent, server, tags=["beta"]).run()
        assert [report.tags for report in server.capabilities] == [[], ["beta"]]

    def test_emulated_hardware_says_so(self, server: DeviceServer, tmp_path: Path) -> None:
        profile = tmp_path / "profile.toml"
        profile.write_text(
            'soc = "Imaginary 9"\nram_mb = 3072\n[[accelerators]]\nname = "npu0"\nkind = "npu"\n'
            'data_types = ["int8"]\n'
        )
        agent = InProcessAgent(server, tmp_path / "state", profile=str(profile))
        server.roll_out(tiny_artifact(accelerator="npu"))
        assert agent.run() == "active"
        (report,) = server.capabilities
        assert (report.soc, report.ram_mb) == ("Imaginary 9", 3072)
        (accelerator,) = report.accelerators
        assert (accelerator.emulated, accelerator.execution_provider) == (True, "CPUExecutionProvider")
        last = server.install_events()[-1]
        assert last.self_test is not None
        assert last.self_test.emulated
        assert agent.device.runtime.model("tiny").lanes == ("npu0",)
        agent.close()


def test_reports_are_numbered_and_never_repeated(server: DeviceServer, agent: InProcessAgent) -> None:
    server.roll_out(tiny_artifact())
    agent.run()
    agent.output(tiny_inputs())
    agent.check_in.send_reports(flush=True)
    expected = 0
    for report in server.reports:
        assert (report.boot, report.first_sequence) == (server.reports[0].boot, expected)
        expected += len(report.events)
    kinds = {type(event) for report in server.reports for event in report.events}
    assert DeviceSample in kinds
    assert InferenceAggregate not in kinds  # the local API counts, not the runtime
    assert agent.device.telemetry.waiting() == 0


def test_reports_wait_for_the_server(server: DeviceServer, agent: InProcessAgent) -> None:
    server.roll_out(tiny_artifact())
    agent.check_in.run()
    server.offline = True
    with pytest.raises(ServerUnreachable):
        agent.check_in.send_reports()
    server.offline = False
    again(agent, server).run()
    assert "active" in states(server)


def test_switching_is_one_transaction(server: DeviceServer, agent: InProcessAgent) -> None:
    """State, active slot and report change together: a failing report leaves the old slot active."""
    server.roll_out(tiny_artifact())
    agent.run()
    server.roll_out(tiny_artifact(version=2))

    def full(event: Any) -> None:
        if event.state == "active":
            raise sqlite3.OperationalError("disk is full")
        agent.device.telemetry.record(event)

    agent.device.installer._journal._report = full
    agent.run()
    assert agent.device.installs.active("tiny") == "a"
    assert agent.device.runtime.model("tiny").manifest.version == 1


def test_a_chunk_damaged_while_it_waited_is_fetched_again(
    server: DeviceServer, agent: InProcessAgent
) -> None:
    server.roll_out(tiny_artifact())
    server.drop_after_blobs = 1
    with pytest.raises(ServerUnreachable):
        agent.run()
    (kept,) = [path for path in (agent.state_dir / "chunks").rglob("*") if path.is_file()]
    kept.write_bytes(b"\0" * kept.stat().st_size)
    server.drop_after_blobs = None
    assert agent.run() == "waiting"
    agent.now_s = 100.0
    assert agent.run() == "active"
