"""Configuration from file and environment, and what the device says it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from device_agent import capabilities
from device_agent.config import (
    AgentConfig,
    default_state_dir,
    load_config,
    render_config,
    require_server,
)
from device_agent.errors import ConfigError
from device_agent.protocol.messages import Accelerator

CPU = Accelerator(
    name="CPUExecutionProvider", kind="cpu", execution_provider="CPUExecutionProvider", data_types=["fp32"]
)
FIGURES = {"CPUExecutionProvider": {"fp32_gflops": 10.0, "int8_gops": 20.0}}


class TestConfig:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        config = AgentConfig(
            server="http://x",
            name='quotes " \\ and ünicode',
            tags=["a", "b"],
            trust_on_first_use=True,
            inference_port=99,
            retry_base_s=1.5,
        )
        (tmp_path / "agent.toml").write_bytes(render_config(config))
        assert load_config(tmp_path, environment={}) == config

    def test_the_environment_wins(self, tmp_path: Path) -> None:
        (tmp_path / "agent.toml").write_bytes(render_config(AgentConfig(server="http://file", threads=1)))
        environment = {
            "POCKETFLEET_AGENT_SERVER": "http://environment",
            "POCKETFLEET_AGENT_TAGS": "a,b",
            "POCKETFLEET_AGENT_THREADS": "3",
            "POCKETFLEET_AGENT_TRUST_ON_FIRST_USE": "true",
            "POCKETFLEET_AGENT_NAME": "",
        }
        config = load_config(tmp_path, environment=environment)
        assert (config.server, config.tags, config.threads) == ("http://environment", ["a", "b"], 3)
        assert config.trust_on_first_use is True

    def test_no_file_is_fine(self, tmp_path: Path) -> None:
        assert load_config(tmp_path, environment={}) == AgentConfig()

    @pytest.mark.parametrize("text", ["unknown = 1", "threads = 'many'", "server = ", "tags = 'a'"])
    def test_a_mistake_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "agent.toml").write_text(text)
        with pytest.raises(ConfigError, match=r"agent\.toml"):
            load_config(tmp_path, environment={})

    @pytest.mark.parametrize("server", ["", "fleet.example", "ftp://x"])
    def test_a_server_is_needed(self, server: str) -> None:
        with pytest.raises(ConfigError, match="--server"):
            require_server(AgentConfig(server=server))

    def test_the_state_folder(self) -> None:
        assert default_state_dir({"POCKETFLEET_AGENT_STATE_DIR": "/x"}) == Path("/x")
        assert default_state_dir({"XDG_DATA_HOME": "/d"}) == Path("/d/pocketfleet-agent")


class TestCapabilities:
    def report(self, folder: Path, profile: capabilities.Profile | None = None, **changes: Any) -> Any:
        profile = profile or capabilities.Profile()
        accelerators = capabilities.accelerators_of(profile, [CPU], FIGURES)
        arguments = {"folder": folder, "runtime_version": "1.32.0", "tags": ["b", "a", "a"], **changes}
        return capabilities.build_report(profile, accelerators, **arguments)

    def test_a_real_device(self, tmp_path: Path) -> None:
        report = self.report(tmp_path)
        assert report.ram_mb > 100
        assert report.soc
        assert report.tags == ["a", "b"]
        (accelerator,) = report.accelerators
        assert (accelerator.emulated, accelerator.fp32_gflops, accelerator.int8_gops) == (False, 10.0, 20.0)

    def test_a_profile_is_labelled_everywhere(self, tmp_path: Path) -> None:
        path = tmp_path / "p.toml"
        path.write_text(
            'soc = "Imaginary"\nram_mb = 4096\nos = "android"\nos_version = "16"\n'
            '[[accelerators]]\nname = "gpu0"\nkind = "gpu"\ndata_types = ["fp16"]\n'
            '[[accelerators]]\nname = "cpu"\nkind = "cpu"\n'
        )
        report = self.report(tmp_path, capabilities.load_profile(str(path)))
        assert (report.soc, report.ram_mb, report.os, report.os_version) == (
            "Imaginary",
            4096,
            "android",
            "16",
        )
        assert [one.emulated for one in report.accelerators] == [True, True]
        assert {one.execution_provider for one in report.accelerators} == {"CPUExecutionProvider"}
        assert report.accelerators[0].fp32_gflops == 10.0  # measured on the CPU that stands in

    def test_an_emulated_accelerator_cannot_claim_a_real_provider(self, tmp_path: Path) -> None:
        path = tmp_path / "p.toml"
        path.write_text(
            '[[accelerators]]\nname = "npu"\nkind = "npu"\nexecution_provider = "QNNExecutionProvider"\n'
        )
        with pytest.raises(ConfigError, match="CPUExecutionProvider"):
            capabilities.load_profile(str(path))

    @pytest.mark.parametrize("text", ["soc = 3", "speed = 1", "[[accelerators]]\nname = 'x'", "x ="])
    def test_a_malformed_profile(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "p.toml"
        path.write_text(text)
        with pytest.raises(ConfigError, match="profile"):
            capabilities.load_profile(str(path))

    def test_no_profile_is_the_device_itself(self) -> None:
        assert capabilities.load_profile("") == capabilities.Profile()

    def test_the_digest_changes_with_what_matters(self, tmp_path: Path) -> None:
        report = self.report(tmp_path)
        steady = msgspec.structs.replace(report, storage_free_mb=10 * 1024 + 1)
        nearly = msgspec.structs.replace(report, storage_free_mb=10 * 1024 + 900)
        fuller = msgspec.structs.replace(report, storage_free_mb=9 * 1024)
        assert capabilities.digest(steady) == capabilities.digest(nearly)
        assert capabilities.digest(steady) != capabilities.digest(fuller)
        assert capabilities.digest(report) != capabilities.digest(self.report(tmp_path, tags=["c"]))
