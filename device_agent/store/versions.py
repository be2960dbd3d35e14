"""Floors that never go down: TUF metadata versions, assignment sequences, and time.

They live in SQLite because a power cut may zero the TUF client's cached files, and with them its
protection against rollback.
"""

from __future__ import annotations

from collections.abc import Mapping

from device_agent.store.database import Database

_TIME = "time"


class VersionFloors:
    """Implements :class:`device_agent.trust.Floors`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def versions(self) -> dict[str, int]:
        """The highest version seen of every role."""
        rows = self._database.rows("SELECT role, version FROM version_floor WHERE role != ?", (_TIME,))
        return {row["role"]: row["version"] for row in rows}

    def raise_versions(self, versions: Mapping[str, int]) -> None:
        """Lift floors; lower values change nothing."""
        known = self.versions()
        higher = [(role, version) for role, version in versions.items() if version > known.get(role, 0)]
        if higher:
            self._database.change_many(
                "INSERT INTO version_floor (role, version) VALUES (?, ?) "
                "ON CONFLICT (role) DO UPDATE SET version = max(version, excluded.version)",
                higher,
            )

    def time_floor(self) -> int:
        """The latest time (Unix seconds) at which signed metadata was found valid."""
        rows = self._database.rows("SELECT version FROM version_floor WHERE role = ?", (_TIME,))
        return int(rows[0]["version"]) if rows else 0

    def raise_time(self, now: int) -> None:
        self._database.change(
            "INSERT INTO version_floor (role, version) VALUES (?, ?) "
            "ON CONFLICT (role) DO UPDATE SET version = max(version, excluded.version)",
            (_TIME, now),
        )

    def sequence(self, device: str) -> int:
        """The highest assignment sequence accepted for ``device``; 0 before the first."""
        rows = self._database.rows("SELECT sequence FROM sequence_floor WHERE device = ?", (device,))
        return int(rows[0]["sequence"]) if rows else 0

    def raise_sequence(self, device: str, sequence: int) -> None:
        self._database.change(
            "INSERT INTO sequence_floor (device, sequence) VALUES (?, ?) "
            "ON CONFLICT (device) DO UPDATE SET sequence = max(sequence, excluded.sequence)",
            (device, sequence),
        )
