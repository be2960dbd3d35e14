"""The agent's memory: transactions, migrations, floors, slots and the telemetry queue."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from device_agent.errors import ConfigError
from device_agent.protocol.messages import SelfTest
from device_agent.store import (
    Database,
    Identity,
    IdentityStore,
    Install,
    InstallStore,
    Slot,
    TelemetryQueue,
    VersionFloors,
    write_durably,
)
from tests.simulators.artifacts import tiny_artifact


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "state.db")


def installation(**changes: object) -> Install:
    manifest = tiny_artifact().manifest
    values = {
        "model": "tiny",
        "build": manifest.build,
        "version": 1,
        "rollout": manifest.build,
        "manifest": manifest,
        "state": "offered",
    }
    return Install(**{**values, **changes})  # type: ignore[arg-type]


class TestDatabase:
    def test_it_is_durable(self, database: Database) -> None:
        assert database.rows("PRAGMA synchronous")[0][0] == 2  # FULL
        assert database.rows("PRAGMA journal_mode")[0][0] == "wal"

    def test_a_transaction_is_all_or_nothing(self, database: Database) -> None:
        values = IdentityStore(database)
        values.set_value("a", "1")

        def half() -> None:
            with database.transaction():
                values.set_value("a", "2")
                with database.transaction():
                    values.set_value("b", "2")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            half()
        assert (values.value("a"), values.value("b")) == ("1", "")

    def test_it_opens_again(self, tmp_path: Path, database: Database) -> None:
        IdentityStore(database).set_value("a", "1")
        database.close()
        assert IdentityStore(Database(tmp_path / "state.db")).value("a") == "1"

    def test_a_newer_schema_is_refused(self, tmp_path: Path, database: Database) -> None:
        database.close()
        with sqlite3.connect(tmp_path / "state.db") as connection:
            connection.execute("PRAGMA user_version=99")
        with pytest.raises(ConfigError, match="newer agent"):
            Database(tmp_path / "state.db")

    def test_reading_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="init"):
            Database(tmp_path / "none.db", read_only=True)
        assert not (tmp_path / "none.db").exists()

    def test_reading_beside_a_writer(self, tmp_path: Path, database: Database) -> None:
        IdentityStore(database).set_value("a", "1")
        assert IdentityStore(Database(tmp_path / "state.db", read_only=True)).value("a") == "1"


def test_identity_survives(database: Database) -> None:
    store = IdentityStore(database)
    assert store.load() is None
    identity = Identity(server="http://x", device="d", tenant="t", state="accepted")
    store.save(identity)
    assert store.load() == identity


class TestFloors:
    def test_they_never_go_down(self, database: Database) -> None:
        floors = VersionFloors(database)
        floors.raise_versions({"root": 3, "snapshot": 7})
        floors.raise_versions({"root": 2, "timestamp": 1})
        assert floors.versions() == {"root": 3, "snapshot": 7, "timestamp": 1}
        floors.raise_time(100)
        floors.raise_time(50)
        assert floors.time_floor() == 100
        assert "time" not in floors.versions()

    def test_sequences_are_per_device(self, database: Database) -> None:
        floors = VersionFloors(database)
        floors.raise_sequence("a", 5)
        floors.raise_sequence("a", 4)
        assert (floors.sequence("a"), floors.sequence("b")) == (5, 0)


class TestInstalls:
    def test_round_trip(self, database: Database) -> None:
        store = InstallStore(database)
        evidence = SelfTest(passed=True, provider="CPU", emulated=False, min_cosine=1.0, latency_p50_ms=1.0)
        install = installation(self_test=evidence, waiting="storage")
        store.put(install)
        assert store.get("tiny") == install
        assert store.all() == [install]

    def test_a_state_changes_only_from_the_state_that_was_read(self, database: Database) -> None:
        store = InstallStore(database)
        install = installation()
        store.put(install)
        arguments = {"build": install.build, "old": "offered", "changes": {"state": "downloading"}}
        assert store.move("tiny", **arguments) is True  # type: ignore[arg-type]
        assert store.move("tiny", **arguments) is False  # type: ignore[arg-type]

    def test_slots_and_the_switch(self, database: Database) -> None:
        store = InstallStore(database)
        install = installation()
        slot = Slot(
            model="tiny", slot="a", build=install.build, version=1, manifest=install.manifest, proven=True
        )
        store.put_slot(slot)
        assert (store.active("tiny"), store.slot("tiny", "a"), store.slot("tiny", "b")) == (None, slot, None)
        store.activate("tiny", "a")
        assert store.active("tiny") == "a"
        store.forget("tiny")
        assert (store.models(), store.slots(), store.active("tiny")) == ([], [], None)


class TestQueue:
    @staticmethod
    def render(first: int, payloads: list[bytes]) -> bytes:
        return msgspec.json.encode([first, *(payload.decode() for payload in payloads)])

    def cut(self, queue: TelemetryQueue, first: int, limit: int = 2) -> int:
        return queue.cut(boot="b", next_sequence=first, limit=limit, render=self.render)

    def test_batches_are_cut_in_order_and_stay_as_they_are(self, database: Database) -> None:
        queue = TelemetryQueue(database)
        for number in range(3):
            queue.append(f"e{number}".encode(), important=False)
        assert (self.cut(queue, 0), self.cut(queue, 2), self.cut(queue, 3)) == (2, 1, 0)
        first = queue.oldest()
        assert first is not None
        assert (first.first_sequence, first.last_sequence, first.payload) == (0, 1, b'[0,"e0","e1"]')
        assert queue.oldest() == first

    def test_only_what_is_acknowledged_goes(self, database: Database) -> None:
        queue = TelemetryQueue(database)
        for number in range(4):
            queue.append(f"e{number}".encode(), important=False)
        self.cut(queue, 0)
        self.cut(queue, 2)
        assert queue.acknowledge(boot="other", up_to=99) == 0
        assert queue.acknowledge(boot="b", up_to=2) == 1
        left = queue.oldest()
        assert left is not None
        assert left.first_sequence == 2

    def test_a_full_queue_keeps_what_is_important(self, database: Database) -> None:
        queue = TelemetryQueue(database, event_limit=3)
        queue.append(b"install", important=True)
        for number in range(5):
            queue.append(f"e{number}".encode(), important=False)
        self.cut(queue, 0, limit=10)
        batch = queue.oldest()
        assert batch is not None
        assert batch.payload == b'[0,"install","e3","e4"]'

    def test_batches_are_bounded_too(self, database: Database) -> None:
        queue = TelemetryQueue(database, batch_limit=2)
        for number in range(4):
            queue.append(b"e", important=True)
            self.cut(queue, number)
        oldest = queue.oldest()
        assert oldest is not None
        assert oldest.first_sequence == 2


def test_durable_files_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / "file.tmp").write_bytes(b"left over from a crash")
    write_durably(path, b"one")
    write_durably(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
