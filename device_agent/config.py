"""The agent's configuration: ``agent.toml`` in the state folder, then the environment over it.

Every key of :class:`AgentConfig` may be given as ``POCKETFLEET_AGENT_<KEY>``; lists are separated
by commas. Sizes and times carry their unit in the name.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from device_agent.errors import ConfigError

ENVIRONMENT_PREFIX = "POCKETFLEET_AGENT_"
CONFIG_NAME = "agent.toml"
ROOT_NAME = "root.json"
KEY_NAME = "device.key"
DATABASE_NAME = "state.db"


class AgentConfig(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Settings of one agent.

    Args:
        server: base URL of the control plane, without a path.
        provisioning_key: lets the device join the key's tenant; needed until it is enrolled.
        name: what operators see; the host name by default.
        root: file with the tenant's TUF root to start from. ``init`` copies it into the state folder.
        trust_on_first_use: accept the first root that the server sends when there is no file.
        inference_host: loopback address that the local API listens on.
        inference_port: its port; 0 takes a free one (``status`` tells which).
        max_request_bytes: longest body that the local API accepts.
        profile: TOML file with the hardware to emulate; everything in it is reported as emulated.
        tags: labels for device filters.
        threads: ONNX Runtime threads per session; 0 means one per core, at most 4.
        request_timeout_s: longest silence of the server within one call.
        minimum_rate_bytes_per_s: slower downloads are given up (and resumed later).
        retry_base_s: wait before a failed install is tried again; doubles each time.
        log_level: DEBUG, INFO, WARNING or ERROR.
    """

    server: str = ""
    provisioning_key: str = ""
    name: str = ""
    root: str = ""
    trust_on_first_use: bool = False
    inference_host: str = "127.0.0.1"
    inference_port: int = 0
    max_request_bytes: int = 64 * 2**20
    profile: str = ""
    tags: list[str] = []
    threads: int = 0
    request_timeout_s: float = 15.0
    minimum_rate_bytes_per_s: int = 4096
    retry_base_s: float = 10.0
    log_level: str = "INFO"


def default_state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """``POCKETFLEET_AGENT_STATE_DIR``, else a folder of the user's data directory."""
    if given := environment.get(ENVIRONMENT_PREFIX + "STATE_DIR"):
        return Path(given)
    data = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "pocketfleet-agent"


def load_config(state_dir: Path, *, environment: Mapping[str, str] = os.environ) -> AgentConfig:
    """Read ``agent.toml`` (which may be missing) and the environment.

    Raises:
        ConfigError: naming the key that is unknown or of the wrong type.
    """
    values = _read_toml(state_dir / CONFIG_NAME)
    for field in msgspec.structs.fields(AgentConfig):
        text = environment.get(ENVIRONMENT_PREFIX + field.name.upper())
        if text:
            values[field.name] = text.split(",") if field.name == "tags" else text
    try:
        config = msgspec.convert(values, AgentConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{state_dir / CONFIG_NAME} or {ENVIRONMENT_PREFIX}*: {error}") from error
    return config


def require_server(config: AgentConfig) -> str:
    """The server's base URL without a trailing slash.

    Raises:
        ConfigError: if it is missing or not an HTTP URL.
    """
    if not config.server.startswith(("http://", "https://")):
        raise ConfigError(
            "no server: run `pocketfleet-agent init --server URL` or set POCKETFLEET_AGENT_SERVER"
        )
    return config.server.rstrip("/")


def render_config(config: AgentConfig) -> bytes:
    """``config`` as TOML; keys with their default are left out."""
    defaults = AgentConfig()
    lines = ["# Written by `pocketfleet-agent init`; `pocketfleet-agent run --help` lists every key."]
    for field in msgspec.structs.fields(AgentConfig):
        value = getattr(config, field.name)
        if value != getattr(defaults, field.name):
            # JSON strings, numbers, booleans and lists of strings are TOML as they stand
            lines.append(f"{field.name} = {json.dumps(value, ensure_ascii=False)}")
    return ("\n".join(lines) + "\n").encode()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
