"""Who this device is to its server, and small values that outlive a restart."""

from __future__ import annotations

import msgspec

from device_agent.protocol.messages import DeviceState
from device_agent.store.database import Database


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What enrolment returned."""

    server: str
    device: str
    tenant: str
    state: DeviceState


class IdentityStore:
    """The identity, and named values."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> Identity | None:
        """The identity, or None before enrolment."""
        text = self.value("identity")
        return msgspec.json.decode(text, type=Identity) if text else None

    def save(self, identity: Identity) -> None:
        self.set_value("identity", msgspec.json.encode(identity).decode())

    def value(self, name: str, default: str = "") -> str:
        rows = self._database.rows("SELECT value FROM value WHERE name = ?", (name,))
        return str(rows[0]["value"]) if rows else default

    def set_value(self, name: str, value: str) -> None:
        self._database.change(
            "INSERT INTO value (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )
