"""Telemetry that waits for the server.

Events wait unnumbered; cutting a batch numbers them and freezes the bytes that are sent. So a
batch never changes once it has a number, and dropping events of a full queue leaves no gap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from device_agent.store.database import Database

EVENT_LIMIT = 5000
BATCH_LIMIT = 200


class Batch(NamedTuple):
    boot: str
    first_sequence: int
    last_sequence: int
    payload: bytes


class TelemetryQueue:
    """A bounded queue of encoded events and the batches made of them."""

    def __init__(
        self, database: Database, *, event_limit: int = EVENT_LIMIT, batch_limit: int = BATCH_LIMIT
    ) -> None:
        self._database = database
        self._event_limit = event_limit
        self._batch_limit = batch_limit

    def append(self, payload: bytes, *, important: bool) -> None:
        """Queue one event. A full queue loses its oldest unimportant one, then its oldest."""
        with self._database.transaction():
            self._database.change(
                "INSERT INTO event (important, payload) VALUES (?, ?)", (important, payload)
            )
            (count,) = self._database.rows("SELECT count(*) FROM event")[0]
            if count > self._event_limit:
                self._database.change(
                    "DELETE FROM event WHERE id IN (SELECT id FROM event ORDER BY important, id LIMIT ?)",
                    (count - self._event_limit,),
                )

    def cut(
        self, *, boot: str, next_sequence: int, limit: int, render: Callable[[int, list[bytes]], bytes]
    ) -> int:
        """Make a batch of up to ``limit`` waiting events.

        Args:
            boot: this start of the agent.
            next_sequence: number of the first event.
            render: makes the request body from the first number and the events.

        Returns:
            How many events were numbered.
        """
        with self._database.transaction():
            rows = self._database.rows("SELECT id, payload FROM event ORDER BY id LIMIT ?", (limit,))
            if not rows:
                return 0
            payload = render(next_sequence, [row["payload"] for row in rows])
            self._database.change(
                "INSERT INTO batch (boot, first_sequence, last_sequence, payload) VALUES (?, ?, ?, ?)",
                (boot, next_sequence, next_sequence + len(rows) - 1, payload),
            )
            self._database.change("DELETE FROM event WHERE id <= ?", (rows[-1]["id"],))
            self._database.change(
                "DELETE FROM batch WHERE id NOT IN (SELECT id FROM batch ORDER BY id DESC LIMIT ?)",
                (self._batch_limit,),
            )
            return len(rows)

    def oldest(self) -> Batch | None:
        """The batch to send next."""
        rows = self._database.rows(
            "SELECT boot, first_sequence, last_sequence, payload FROM batch ORDER BY id LIMIT 1"
        )
        return Batch(*rows[0]) if rows else None

    def acknowledge(self, *, boot: str, up_to: int) -> int:
        """Delete batches of ``boot`` that the server has stored entirely; returns how many."""
        return self._database.change("DELETE FROM batch WHERE boot = ? AND last_sequence <= ?", (boot, up_to))

    def discard(self, *, boot: str, first_sequence: int) -> None:
        """Give up on a batch that the server refuses for good."""
        self._database.change(
            "DELETE FROM batch WHERE boot = ? AND first_sequence = ?", (boot, first_sequence)
        )

    def waiting(self) -> int:
        """Events and batches not yet acknowledged."""
        rows = self._database.rows("SELECT (SELECT count(*) FROM event) + (SELECT count(*) FROM batch) AS n")
        return int(rows[0]["n"])
