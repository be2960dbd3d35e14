"""One blob store for a folder and for S3: atomic writes, digests checked on the way.

In a folder a blob is written to ``.incoming/``, flushed (fsync), renamed to its place, and the
folder is flushed, so that it survives a power cut once ``put_*`` has returned. S3 gives the
same promise by itself; large blobs go up in parts and appear only when complete.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from blobstore.errors import BlobError, BlobMissing, BlobStoreFailed, DigestMismatch

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNK_BYTES = 1 << 20
_INCOMING = ".incoming"


def open_store(url: str) -> BlobStore:
    """Open the blob store at ``url``.

    Args:
        url: ``file:///absolute/folder`` (made if it is not there) or ``s3://bucket/prefix``;
            for S3 the AWS_* variables hold credentials, region and endpoint, and
            ``AWS_ALLOW_HTTP=true`` allows an endpoint without TLS.

    Raises:
        BlobError: if the URL is of another kind, or its folder is not absolute.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        folder = Path(unquote(parts.path))
        folder.mkdir(parents=True, exist_ok=True)
        return BlobStore(LocalStore(folder), folder=folder)
    if parts.scheme == "s3" and parts.netloc:
        allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
        options = {"allow_http": allow_http, "connect_timeout": "10s", "timeout": "600s"}
        return BlobStore(S3Store.from_url(url, client_options=options))  # type: ignore[arg-type]
    raise BlobError(f"Blob store URL {url!r} must be file:///absolute/folder or s3://bucket/prefix.")


class BlobStore:
    """Blobs by key. Keys are relative paths with forward slashes. Safe to use from several threads."""

    def __init__(self, backend: ObjectStore, *, folder: Path | None = None) -> None:
        self._backend = backend
        self._folder = folder

    def put_file(self, path: Path, *, key: str) -> None:
        """Store a file's content; atomic, and durable when this returns."""
        if self._folder is None:
            with _translated(key):
                obstore.put(self._backend, _checked(key), path)
            return
        with path.open("rb") as file:
            self.put_stream(_read(file), key=key)

    def put_bytes(self, data: bytes, *, key: str) -> None:
        """Store ``data``; atomic, and durable when this returns."""
        if self._folder is None:
            with _translated(key):
                obstore.put(self._backend, _checked(key), data)
            return
        self.put_stream([data], key=key)

    def put_stream(self, chunks: Iterable[bytes], *, key: str) -> tuple[str, int]:
        """Store a stream. Nothing is visible under ``key`` unless the stream ends normally.

        Returns:
            SHA-256 as hexadecimal digits, and the size in bytes.
        """
        _checked(key)
        counted = _Digested(chunks)
        if self._folder is None:
            with _translated(key):
                self._put_parts(counted, key)
        else:
            with _translated(key):
                _write_durably(counted, self._folder / key, self._folder / _INCOMING)
        return counted.sha256, counted.size_bytes

    def _put_parts(self, chunks: Iterable[bytes], key: str) -> None:
        """Upload in parts. An error in the stream leaves the upload unfinished, hence invisible."""
        writer = obstore.open_writer(self._backend, key)
        for chunk in chunks:
            writer.write(chunk)
        writer.close()

    def get_bytes(self, key: str) -> bytes:
        """The whole blob.

        Raises:
            BlobMissing: if there is none.
        """
        with _translated(key):
            if (local := self.local_path(key)) is not None:
                return local.read_bytes()
            return bytes(obstore.get(self._backend, _checked(key)).bytes())

    def iter_bytes(self, key: str, chunk_size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The blob piece by piece; every piece but the last has at least ``chunk_size`` bytes.

        Raises:
            BlobMissing: at the first piece, if there is none.
        """
        with _translated(key):
            if (local := self.local_path(key)) is not None:
                with local.open("rb") as file:
                    yield from _read(file, chunk_size)
                return
            for piece in obstore.get(self._backend, _checked(key)).stream(min_chunk_size=chunk_size):
                yield bytes(piece)

    def size(self, key: str) -> int | None:
        """Size in bytes, or None if there is no such blob."""
        try:
            with _translated(key):
                return int(obstore.head(self._backend, _checked(key))["size"])
        except BlobMissing:
            return None

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def fetch(self, key: str, destination: Path, *, sha256: str) -> None:
        """Write the blob to ``destination``: temporary file, fsync, rename.

        Raises:
            BlobMissing: if there is none.
            DigestMismatch: if its content has another digest; ``destination`` is left untouched.
        """
        counted = _Digested(self.iter_bytes(key))

        def verify() -> None:
            if counted.sha256 != sha256:
                raise DigestMismatch(key, expected=sha256, found=counted.sha256)

        _write_durably(counted, destination, destination.parent, before_rename=verify)

    def delete(self, key: str) -> None:
        """Remove the blob; a missing one is fine."""
        with suppress(BlobMissing), _translated(key):
            obstore.delete(self._backend, _checked(key))

    def list(self, prefix: str) -> Iterator[str]:
        """Keys of all blobs under the folder ``prefix`` ("" for all), in no promised order."""
        stem = prefix.strip("/")
        for batch in obstore.list(self._backend, _checked(stem) if stem else None):
            for entry in batch:
                if not entry["path"].startswith(f"{_INCOMING}/"):
                    yield entry["path"]

    def local_path(self, key: str) -> Path | None:
        """Where a folder store keeps the blob (whether or not it exists), None for S3."""
        return self._folder / _checked(key) if self._folder is not None else None


class _Digested:
    """Passes a stream on and keeps its SHA-256 and size."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hash.update(chunk)
            self.size_bytes += len(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _checked(key: str) -> str:
    parts = key.split("/")
    if parts[0] == _INCOMING or "\\" in key or "\0" in key or any(p in ("", ".", "..") for p in parts):
        raise BlobError(f"Blob key {key!r} is not a plain relative path.")
    return key


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BlobMissing(key) from error
    except (BaseError, OSError) as error:
        raise BlobStoreFailed(f"The blob store failed at {key!r}: {error}") from error


def _read(file: IO[bytes], chunk_size: int = CHUNK_BYTES) -> Iterator[bytes]:
    while chunk := file.read(chunk_size):
        yield chunk


def _write_durably(
    chunks: Iterable[bytes],
    destination: Path,
    staging: Path,
    *,
    before_rename: Callable[[], None] | None = None,
) -> None:
    staging.mkdir(parents=True, exist_ok=True)
    made = _make_folders(destination.parent)
    temporary = staging / f".{uuid.uuid4().hex}.part"
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename()
        temporary.replace(destination)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for folder in made:
        _fsync_folder(folder)


def _make_folders(folder: Path) -> list[Path]:
    """Make the folder and its parents; return those whose entries change by it."""
    changed = [folder]
    while not changed[-1].exists():
        changed.append(changed[-1].parent)
    folder.mkdir(parents=True, exist_ok=True)
    return changed


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
