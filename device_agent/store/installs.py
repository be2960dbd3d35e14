"""Models, their A/B slots and their current installation."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec

from device_agent.protocol.manifest import Manifest, decode_manifest
from device_agent.protocol.messages import FailureCode, InstallState, SelfTest, WaitingReason
from device_agent.store.database import Database

SlotName = Literal["a", "b"]


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A slot's content; ``proven`` once it has passed its self-test here."""

    model: str
    slot: SlotName
    build: str
    version: int
    manifest: Manifest
    proven: bool


class Install(msgspec.Struct, frozen=True, kw_only=True):
    """The installation of a model: the build that is assigned, and how far it is.

    ``not_before`` is Unix seconds: earlier than that a postponed one is not tried again.
    """

    model: str
    build: str
    version: int
    rollout: str
    manifest: Manifest
    state: InstallState
    attempts: int = 0
    waiting: WaitingReason | None = None
    failure: FailureCode | None = None
    detail: str = ""
    self_test: SelfTest | None = None
    downloaded_bytes: int = 0
    reused_bytes: int = 0
    not_before: float = 0.0
    updated_at: float = 0.0


class InstallStore:
    """Reads and writes of the three tables."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.transaction = database.transaction

    def all(self) -> list[Install]:
        """Every installation, by model name."""
        return [_install(row) for row in self._database.rows("SELECT * FROM install ORDER BY model")]

    def get(self, model: str) -> Install | None:
        rows = self._database.rows("SELECT * FROM install WHERE model = ?", (model,))
        return _install(rows[0]) if rows else None

    def put(self, install: Install) -> None:
        """Insert or replace the installation of a model (a new offer)."""
        columns = _columns(msgspec.structs.asdict(install))
        marks = ", ".join("?" for _ in columns)
        self._database.change(
            f"INSERT OR REPLACE INTO install ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608
            list(columns.values()),
        )

    def move(self, model: str, *, build: str, old: str, changes: Mapping[str, Any]) -> bool:
        """Change an installation if it still is of ``build`` and in state ``old``.

        Returns:
            Whether it was; False means that somebody else moved it.
        """
        columns = _columns(changes)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        changed = self._database.change(
            f"UPDATE install SET {assignments} WHERE model = ? AND build = ? AND state = ?",  # noqa: S608
            [*columns.values(), model, build, old],
        )
        return changed == 1

    def slots(self) -> list[Slot]:
        """Every slot that holds something, proven or not."""
        return [_slot(row) for row in self._database.rows("SELECT * FROM slot ORDER BY model, slot")]

    def slot(self, model: str, slot: SlotName) -> Slot | None:
        rows = self._database.rows("SELECT * FROM slot WHERE model = ? AND slot = ?", (model, slot))
        return _slot(rows[0]) if rows else None

    def put_slot(self, slot: Slot) -> None:
        self._database.change(
            "INSERT OR REPLACE INTO slot (model, slot, build, version, manifest, proven) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (slot.model, slot.slot, slot.build, slot.version, slot.manifest.encode(), slot.proven),
        )

    def drop_slot(self, model: str, slot: SlotName) -> None:
        self._database.change("DELETE FROM slot WHERE model = ? AND slot = ?", (model, slot))

    def active(self, model: str) -> SlotName | None:
        """The slot that serves, or None."""
        rows = self._database.rows("SELECT active_slot FROM model WHERE model = ?", (model,))
        return cast("SlotName | None", rows[0]["active_slot"]) if rows else None

    def activate(self, model: str, slot: SlotName | None) -> None:
        """Switch the active slot: the one atomic step of an update."""
        self._database.change(
            "INSERT INTO model (model, active_slot) VALUES (?, ?) "
            "ON CONFLICT (model) DO UPDATE SET active_slot = excluded.active_slot",
            (model, slot),
        )

    def models(self) -> list[str]:
        """Every model with an installation or a slot."""
        rows = self._database.rows("SELECT model FROM install UNION SELECT model FROM slot ORDER BY 1")
        return [row["model"] for row in rows]

    def forget(self, model: str) -> None:
        """Drop a model with its slots and its installation."""
        with self.transaction():
            for table in ("install", "slot", "model"):
                self._database.change(f"DELETE FROM {table} WHERE model = ?", (model,))  # noqa: S608


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _encode(value) for name, value in values.items()}


def _encode(value: Any) -> Any:
    if isinstance(value, Manifest):
        return value.encode()
    if isinstance(value, SelfTest):
        return msgspec.json.encode(value)
    return value


def _install(row: sqlite3.Row) -> Install:
    values: dict[str, Any] = dict(row)
    values["manifest"] = decode_manifest(values["manifest"])
    if values["self_test"] is not None:
        values["self_test"] = msgspec.json.decode(values["self_test"], type=SelfTest)
    return Install(**values)


def _slot(row: sqlite3.Row) -> Slot:
    values: dict[str, Any] = dict(row)
    values["manifest"] = decode_manifest(values["manifest"])
    values["proven"] = bool(values["proven"])
    return Slot(**values)
