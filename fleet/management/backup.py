"""Backup and restore of the embedded default: one archive, checked by digests.

Databases are copied with SQLite's online backup, so a backup may be made while the system runs.
They are copied before the blobs: a blob is stored before a row speaks of it, so the archive holds
at least what its databases need. Messages are not kept: leases bring lost work back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import tarfile
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import msgspec
from django.conf import settings

DIGESTS = "digests.json"
FORMAT = 1
FOLDERS = ("blobs", "keys")
FILES = ("secret_key", "credentials.json", "root.json")
_NOT_KEPT = ("blobs/.incoming/", "blobs/cancel/")
_CHUNK = 1 << 20


class BackupFailed(Exception):
    """The archive was not made, or cannot be restored; says what to do."""


class State(msgspec.Struct, kw_only=True, frozen=True):
    """Where the embedded default keeps its state: a folder, and the databases' names in it."""

    folder: Path
    databases: list[str]


def embedded_state() -> State:
    """The state that the settings name.

    Raises:
        BackupFailed: if not all of it lies in POCKETFLEET_VAR.
    """
    var = Path(settings.VAR)
    blobs = urlsplit(settings.BLOBS_URL)
    inside = blobs.scheme == "file" and Path(unquote(blobs.path)) == var / "blobs"
    # A name may begin with two slashes, which POSIX keeps apart from one.
    databases = [Path("/" + str(each["NAME"]).lstrip("/")) for each in settings.DATABASES.values()]
    inside = inside and settings.EMBEDDED and all(path.parent == var for path in databases)
    if not inside or Path(settings.KEYS_FOLDER) != var / "keys":
        raise BackupFailed(
            "Backup and restore are for the embedded default, whose state all lies in POCKETFLEET_VAR. "
            "Use the tools of your database and object store."
        )
    return State(folder=var, databases=[path.name for path in databases])


class _Digests(msgspec.Struct, kw_only=True):
    """The archive's last member: what it holds. ``files`` maps path to SHA-256."""

    format: int
    made_at: str
    files: dict[str, str]


def back_up(archive: Path, *, state: State, now: datetime) -> int:
    """Write all state to ``archive``; it appears only when it is complete.

    Args:
        archive: ``….tar.zst`` or ``….tar.gz``.

    Returns:
        how many files it holds.

    Raises:
        BackupFailed: if the name ends otherwise.
    """
    work = _working_folder(state.folder.parent)
    temporary = archive.with_name(f".{archive.name}.new")
    try:
        with _compressed(temporary, archive.name) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            digests = _add_all(tar, state, work, now)
        _sync(temporary)
        temporary.replace(archive)
    finally:
        temporary.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)
    return len(digests.files)


def _add_all(tar: tarfile.TarFile, state: State, work: Path, now: datetime) -> _Digests:
    files: dict[str, str] = {}
    for name, source in [*_copied_databases(state, work), *_plain_files(state.folder)]:
        with contextlib.suppress(FileNotFoundError):  # staged parts come and go
            files[name] = _add(tar, name, source)
    digests = _Digests(format=FORMAT, made_at=now.isoformat(), files=files)
    listing = work / DIGESTS
    listing.write_bytes(msgspec.json.encode(digests))
    tar.add(listing, DIGESTS)
    return digests


def _copied_databases(state: State, work: Path) -> Iterator[tuple[str, Path]]:
    for name in state.databases:
        with (
            contextlib.closing(sqlite3.connect(state.folder / name)) as source,
            contextlib.closing(sqlite3.connect(work / name)) as destination,
        ):
            source.backup(destination)
        yield name, work / name


def _plain_files(var: Path) -> Iterator[tuple[str, Path]]:
    paths = [var / name for name in FILES]
    for folder in FOLDERS:
        paths += sorted((var / folder).rglob("*"))
    for path in paths:
        name = path.relative_to(var).as_posix()
        if path.is_file() and not path.is_symlink() and not name.startswith(_NOT_KEPT):
            yield name, path


def _add(tar: tarfile.TarFile, name: str, source: Path) -> str:
    with source.open("rb") as file:
        digested = _Digesting(file)
        member = tar.gettarinfo(arcname=name, fileobj=file)
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        tar.addfile(member, digested)
    return digested.sha256.hexdigest()


class _Digesting:
    """Reads on and keeps the SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data


def restore(archive: Path, *, state: State, force: bool, now: datetime) -> Path | None:
    """Put an archive's state in place, once all of it has been checked. The caller holds the lock.

    Args:
        force: replace what is there; it is kept beside it under another name.

    Returns:
        where the replaced state is kept, if there was any.

    Raises:
        BackupFailed: if there is state and no ``force``, or the archive is damaged; nothing has
            changed then.
    """
    occupied = has_state(state)
    if occupied and not force:
        raise BackupFailed(f"{state.folder} holds state. Use --force to replace it, or set POCKETFLEET_VAR.")
    unpacked = _working_folder(state.folder.parent)
    try:
        _unpack(archive, unpacked)
        _check(unpacked)
        return _swap(state.folder, unpacked, now if occupied else None)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def has_state(state: State) -> bool:
    """Whether there is more than what a look at it leaves behind: locks, logs, a new secret."""
    names = (*state.databases, *FOLDERS, "credentials.json")
    return any((state.folder / name).exists() for name in names)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with _decompressed(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if not member.isfile() or not _plain(member.name):
                    raise BackupFailed(f"{archive} holds {member.name!r}, which no backup of ours does.")
                tar.extract(member, folder, filter="data")
    except (OSError, EOFError, tarfile.TarError, _zstd_error()) as error:
        raise BackupFailed(f"{archive} cannot be read: {error}. Nothing was changed.") from None


def _plain(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _check(folder: Path) -> None:
    try:
        digests = msgspec.json.decode((folder / DIGESTS).read_bytes(), type=_Digests)
    except (FileNotFoundError, msgspec.MsgspecError):
        raise BackupFailed(
            "The archive has no list of digests: it is incomplete. Nothing was changed."
        ) from None
    if digests.format != FORMAT:
        raise BackupFailed(f"The archive has format {digests.format}, this version reads {FORMAT}.")
    (folder / DIGESTS).unlink()
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    damaged = set(found.keys() ^ digests.files.keys())
    damaged |= {name for name, path in found.items() if _sha256(path) != digests.files.get(name)}
    if damaged:
        raise BackupFailed(f"{len(damaged)} files are damaged, e.g. {min(damaged)}. Nothing was changed.")


def _swap(var: Path, unpacked: Path, replaced_at: datetime | None) -> Path | None:
    """Move the new state in; the lock's folder and the logs stay."""
    kept: Path | None = None
    if replaced_at is not None:
        kept = var.with_name(f"{var.name}.replaced-{replaced_at:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}")
        kept.mkdir()
        for entry in list(var.iterdir()):
            if entry.name not in ("run", "log"):
                entry.rename(kept / entry.name)
    for entry in [path for path in var.iterdir() if path.name not in ("run", "log")]:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for entry in unpacked.iterdir():
        _sync_tree(entry)
        entry.rename(var / entry.name)
    _sync(var)
    return kept


def _working_folder(parent: Path) -> Path:
    """Beside the state, on the same file system, so that it can be renamed into place."""
    folder = parent / f".pocketfleet-{uuid.uuid4().hex}"
    folder.mkdir(mode=0o700)
    return folder


@contextlib.contextmanager
def _compressed(path: Path, name: str) -> Iterator[Any]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it holds keys
    with os.fdopen(descriptor, "wb") as file:
        if name.endswith(".tar.zst"):
            with _zstandard().ZstdCompressor(level=3).stream_writer(file, closefd=False) as stream:
                yield stream
        elif name.endswith((".tar.gz", ".tgz")):
            import gzip

            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6) as stream:
                yield stream
        else:
            raise BackupFailed(f"{name}: the name must end in .tar.zst or .tar.gz.")


@contextlib.contextmanager
def _decompressed(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        if path.name.endswith(".tar.zst"):
            with _zstandard().ZstdDecompressor().stream_reader(file, closefd=False) as stream:
                yield stream
        else:
            import gzip

            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                yield stream


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise BackupFailed("zstandard is not installed here; use a name that ends in .tar.gz.") from None
    return zstandard


def _zstd_error() -> type[Exception]:
    try:
        error: type[Exception] = _zstandard().ZstdError
    except BackupFailed:
        return EOFError
    return error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(path: Path) -> None:
    for each in [path, *path.rglob("*")]:
        _sync(each)
