"""The connection, its schema and its transactions."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from device_agent.errors import ConfigError

# One script per schema version; the database's user_version says how many have run.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE value (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE version_floor (role TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE sequence_floor (device TEXT PRIMARY KEY, sequence INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE model (model TEXT PRIMARY KEY, active_slot TEXT CHECK (active_slot IN ('a', 'b')));
    CREATE TABLE slot (
        model TEXT NOT NULL, slot TEXT NOT NULL CHECK (slot IN ('a', 'b')),
        build TEXT NOT NULL, version INTEGER NOT NULL, manifest BLOB NOT NULL,
        proven INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (model, slot)
    ) WITHOUT ROWID;
    CREATE TABLE install (
        model TEXT PRIMARY KEY, build TEXT NOT NULL, version INTEGER NOT NULL, rollout TEXT NOT NULL,
        manifest BLOB NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
        waiting TEXT, failure TEXT, detail TEXT NOT NULL DEFAULT '', self_test BLOB,
        downloaded_bytes INTEGER NOT NULL DEFAULT 0, reused_bytes INTEGER NOT NULL DEFAULT 0,
        not_before REAL NOT NULL DEFAULT 0, updated_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE event (
        id INTEGER PRIMARY KEY AUTOINCREMENT, important INTEGER NOT NULL, payload BLOB NOT NULL
    );
    CREATE TABLE batch (
        id INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL,
        first_sequence INTEGER NOT NULL, last_sequence INTEGER NOT NULL, payload BLOB NOT NULL,
        UNIQUE (boot, first_sequence)
    );
    """,
)


class Database:
    """One SQLite file, shared by the agent's threads.

    Args:
        path: the file; made when missing.
        read_only: open for ``status`` beside a running agent.

    Raises:
        ConfigError: if a newer agent wrote it, or it is missing and ``read_only``.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        if read_only and not path.exists():
            raise ConfigError(f"no agent state in {path.parent}: run `pocketfleet-agent init` first")
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        self._connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=10.0
        )
        self._connection.row_factory = sqlite3.Row
        self._lock = threading.RLock()
        self._depth = 0
        if not read_only:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._migrate()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, durable once left. Inside another one it becomes part of that."""
        with self._lock:
            if self._depth == 0:
                self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._connection.execute("ROLLBACK")
                raise
            self._depth -= 1
            if self._depth == 0:
                self._connection.execute("COMMIT")

    def rows(self, sql: str, arguments: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Run one statement and return its rows."""
        with self._lock:
            return self._connection.execute(sql, arguments).fetchall()

    def change(self, sql: str, arguments: Sequence[Any] = ()) -> int:
        """Run one statement and return how many rows it changed."""
        with self._lock:
            return self._connection.execute(sql, arguments).rowcount

    def change_many(self, sql: str, arguments: Sequence[Sequence[Any]]) -> None:
        """Run one statement for every row of ``arguments``, in one transaction."""
        with self.transaction():
            self._connection.executemany(sql, arguments)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _migrate(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise ConfigError(f"the state was written by a newer agent (schema {version}): update this one")
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            self._connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version={number}; COMMIT;")
