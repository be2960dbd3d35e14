"""Backup and restore of the embedded default."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fleet.management.backup import BackupFailed, State, back_up, embedded_state, restore
from fleet.management.lock import acquire
from tests.processes import manage

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ADD_TENANT = "from tenancy.services import create_tenant; create_tenant(slug='later', name='Later')"
DATABASES = ["pocketfleet.sqlite3", "telemetry.sqlite3"]
NOT_KEPT = ("blobs/.incoming/", "blobs/cancel/", *DATABASES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a system that has been set up, with blobs and an upload under way."""
    folder = tmp_path_factory.mktemp("made") / "var"
    for database in ("default", "telemetry"):
        done = manage(folder, "migrate", "--database", database, "--run-syncdb", "--verbosity", "0")
        assert done.returncode == 0, done.stderr
    assert manage(folder, "setup_embedded").returncode == 0
    for name in ("blobs/blobs/ab/abcd", "blobs/staging/f/1", "blobs/.incoming/x.part", "blobs/cancel/b/1"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1000))
    return folder


@pytest.fixture
def var(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "var"))


def state(folder: Path) -> State:
    return State(folder=folder, databases=DATABASES)


def tenants(var: Path) -> list[str]:
    with sqlite3.connect(var / "pocketfleet.sqlite3") as database:
        return sorted(slug for (slug,) in database.execute("SELECT slug FROM tenancy_tenant"))


def content(var: Path) -> dict[str, bytes]:
    """What a backup keeps beside the databases."""
    paths = [path for path in var.rglob("*") if path.is_file() and path.parent.name != "run"]
    named = {path.relative_to(var).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in named.items() if not name.startswith(NOT_KEPT)}


def test_there_and_back_with_the_commands(var: Path, tmp_path: Path) -> None:
    archive = tmp_path / "backup.tar.zst"
    lock = acquire(var / "run")  # as if it ran: a backup may be made all the same
    done = manage(var, "backup", str(archive))
    assert done.returncode == 0, done.stderr
    assert archive.stat().st_mode & 0o077 == 0
    refused = manage(var, "restore", str(archive), "--force")
    os.close(lock)
    assert refused.returncode == 1
    assert f"process {os.getpid()}" in refused.stderr

    elsewhere = tmp_path / "elsewhere"
    done = manage(elsewhere, "restore", str(archive))
    assert done.returncode == 0, done.stderr
    assert content(elsewhere) == content(var)
    keys = sorted((elsewhere / "keys" / "demo").iterdir())
    assert len(keys) == 8
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
    assert manage(elsewhere, "shell", "-c", ADD_TENANT).returncode == 0
    assert tenants(elsewhere) == ["demo", "later"]

    refused = manage(elsewhere, "restore", str(archive))
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert tenants(elsewhere) == ["demo", "later"]
    assert manage(elsewhere, "restore", str(archive), "--force").returncode == 0
    assert tenants(elsewhere) == ["demo"]
    (kept,) = tmp_path.glob("elsewhere.replaced-*")
    assert tenants(kept) == ["demo", "later"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["var", "elsewhere", archive.name, kept.name]
    )


def test_gzip_too(var: Path, tmp_path: Path) -> None:
    archive = tmp_path / "backup.tar.gz"
    count = back_up(archive, state=state(var), now=NOW)
    assert count == len(content(var)) + len(DATABASES)
    (tmp_path / "new").mkdir()
    assert restore(archive, state=state(tmp_path / "new"), force=False, now=NOW) is None
    assert content(tmp_path / "new") == content(var)
    assert tenants(tmp_path / "new") == ["demo"]


def rewritten(archive: Path, folder: Path, *, flip: str = "", drop: str = "", rename: str = "") -> bytes:
    """The archive with one member changed, left out, or the first one renamed."""
    unpacked, changed = folder / "unpacked", folder / "changed.tar.gz"
    with tarfile.open(archive) as source, tarfile.open(changed, "w:gz") as tar:
        source.extractall(unpacked, filter="data")
        for index, member in enumerate(source.getmembers()):
            path = unpacked / member.name
            if member.name == flip:
                path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
            if member.name != drop:
                tar.add(path, rename if rename and index == 0 else member.name)
    return changed.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda archive, folder: archive.read_bytes()[:-500],
        lambda archive, folder: b"no archive",
        lambda archive, folder: rewritten(archive, folder, flip="blobs/blobs/ab/abcd"),
        lambda archive, folder: rewritten(archive, folder, flip="pocketfleet.sqlite3"),
        lambda archive, folder: rewritten(archive, folder, drop="keys/demo/bins.pem"),
        lambda archive, folder: rewritten(archive, folder, drop="digests.json"),
        lambda archive, folder: rewritten(archive, folder, rename="../outside"),
    ],
    ids=["cut", "nonsense", "flipped blob", "flipped database", "key gone", "list gone", "path outside"],
)
def test_a_damaged_archive_changes_nothing(
    var: Path, tmp_path: Path, damage: Callable[[Path, Path], bytes]
) -> None:
    archive, damaged = tmp_path / "backup.tar.gz", tmp_path / "damaged.tar.gz"
    back_up(archive, state=state(var), now=NOW)
    work = tmp_path / "work"
    work.mkdir()
    damaged.write_bytes(damage(archive, work))
    before = content(var)
    with pytest.raises(BackupFailed):
        restore(damaged, state=state(var), force=True, now=NOW)
    assert content(var) == before
    assert tenants(var) == ["demo"]
    assert {path.name for path in tmp_path.iterdir()} == {"var", "work", archive.name, damaged.name}


def test_a_failed_backup_leaves_no_archive(var: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupFailed, match=r"\.tar\.zst"):
        back_up(tmp_path / "backup.zip", state=state(var), now=NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["var"]


def test_only_the_embedded_default(settings: Any) -> None:
    settings.BLOBS_URL = "s3://bucket/prefix"
    with pytest.raises(BackupFailed, match="object store"):
        embedded_state()
