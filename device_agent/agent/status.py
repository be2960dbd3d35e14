"""What an agent is doing, read from its database while it may be running."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from device_agent.agent.device import is_locked
from device_agent.config import DATABASE_NAME
from device_agent.store import Database, IdentityStore, InstallStore, TelemetryQueue


def status_of(state_dir: Path) -> dict[str, Any]:
    """Device, models with build, slot, state and why-not-yet, and the inference address.

    Raises:
        ConfigError: if there is no agent state.
    """
    database = Database(state_dir / DATABASE_NAME, read_only=True)
    try:
        return _status(state_dir, database)
    finally:
        database.close()


def summary(status: Mapping[str, Any]) -> list[str]:
    """One line per assigned model, for people.

    Args:
        status: what :func:`status_of` gave for an enrolled device.
    """
    lines = [_line(model) for model in status["models"] if "state" in model]
    lines += [f"{one['model']}: refused ({one['failure']}: {one['detail']})" for one in status["refused"]]
    return lines or ["enrolled; nothing assigned"]


def _line(model: Mapping[str, Any]) -> str:
    line = f"{model['model']} v{model['version']}: {model['state']}"
    reasons = [text for text in (model["failure"] or model["why_not_yet"], model["detail"]) if text]
    if model["state"] == "active":
        return line
    if reasons:
        line += f" ({': '.join(reasons)})"
    return line + (f"; v{model['active']['version']} stays active" if model["active"] else "")


def _status(state_dir: Path, database: Database) -> dict[str, Any]:
    values, installs = IdentityStore(database), InstallStore(database)
    identity = values.load()
    running = is_locked(state_dir)
    refused = msgspec.json.decode(values.value("refused", "{}"))
    return {
        "running": running,
        "server": identity.server if identity else None,
        "device": identity.device if identity else None,
        "tenant": identity.tenant if identity else None,
        "state": identity.state if identity else "not enrolled",
        "inference": f"http://{values.value('inference_address')}" if running else None,
        "models": [_model(installs, name) for name in installs.models()],
        "refused": [{"model": name, **entry} for name, entry in sorted(refused.items())],
        "telemetry_waiting": TelemetryQueue(database).waiting(),
    }


def _model(installs: InstallStore, name: str) -> dict[str, Any]:
    install = installs.get(name)
    active = installs.active(name)
    slot = installs.slot(name, active) if active else None
    entry: dict[str, Any] = {
        "model": name,
        "active": {
            "slot": active,
            "version": slot.version,
            "build": slot.build,
            "precision": slot.manifest.precision,
        }
        if slot
        else None,
    }
    if install is not None:
        entry |= {
            "build": install.build,
            "version": install.version,
            "rollout": install.rollout,
            "state": install.state,
            "why_not_yet": install.waiting,
            "failure": install.failure,
            "detail": install.detail,
            "attempts": install.attempts,
            "downloaded_bytes": install.downloaded_bytes,
            "reused_bytes": install.reused_bytes,
            "size_bytes": install.manifest.size_bytes,
            "self_test": msgspec.to_builtins(install.self_test),
        }
    return entry
