"""Chunks by content: the cache of those fetched, and those that installed files already hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard

from device_agent.errors import InstallError
from device_agent.install.ports import BlobSource
from device_agent.protocol.manifest import Chunk, Manifest
from device_agent.store import write_durably

MAX_CHUNK_BYTES = 512 * 2**20
MAX_WINDOW_BYTES = 128 * 2**20
FETCHES = 3


class Place(NamedTuple):
    """Where an installed file is said to hold a chunk; only reading it proves that."""

    path: Path
    offset: int


class ChunkCache:
    """Verified chunks on disk, named by the SHA-256 of their content.

    Args:
        folder: kept until what needs them is installed, so a broken download resumes here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, chunk: Chunk) -> bytes | None:
        """The chunk's content if it is here and intact."""
        return read_verified(Place(self._path(chunk), 0), chunk)

    def has(self, chunk: Chunk) -> bool:
        """Whether a file of the right length is here; its content is checked when it is read."""
        path = self._path(chunk)
        return path.exists() and path.stat().st_size == chunk.size_bytes

    def put(self, chunk: Chunk, content: bytes) -> None:
        path = self._path(chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)

    def drop(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            self._path(chunk).unlink(missing_ok=True)

    def keep_only(self, chunks: Iterable[Chunk]) -> None:
        """Delete everything but ``chunks``: leftovers of assignments that are gone."""
        wanted = {chunk.sha256 for chunk in chunks}
        for path in self._folder.glob("*/*"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def _path(self, chunk: Chunk) -> Path:
        return self._folder / chunk.sha256[:2] / chunk.sha256


def fetch_chunk(source: BlobSource, chunk: Chunk) -> bytes:
    """Download a chunk and verify it twice: as stored, and as decompressed.

    Raises:
        InstallError: ``digest_mismatch`` after three downloads that did not verify.
        TransportError: if it cannot be had.
    """
    if max(chunk.size_bytes, chunk.stored_size_bytes) > MAX_CHUNK_BYTES:
        raise InstallError("digest_mismatch", f"chunk {chunk.sha256} is larger than {MAX_CHUNK_BYTES} bytes")
    for _ in range(FETCHES):
        stored = b"".join(source.blob(chunk.stored_sha256, size_bytes=chunk.stored_size_bytes))
        if hashlib.sha256(stored).hexdigest() == chunk.stored_sha256:
            return decompress(stored, chunk)
    raise InstallError("digest_mismatch", f"blob {chunk.stored_sha256} arrived damaged {FETCHES} times")


def decompress(stored: bytes, chunk: Chunk) -> bytes:
    """The content of a stored chunk, never longer than the manifest says.

    Raises:
        InstallError: ``digest_mismatch`` if it is not a zstd frame of exactly that content.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    try:
        with decompressor.stream_reader(stored) as reader:
            content = reader.read(chunk.size_bytes)
            excess = reader.read(1)
    except zstandard.ZstdError as error:
        raise InstallError("digest_mismatch", f"chunk {chunk.sha256} does not decompress: {error}") from error
    if excess or hashlib.sha256(content).hexdigest() != chunk.sha256:
        raise InstallError("digest_mismatch", f"chunk {chunk.sha256} holds something else")
    return content


def read_verified(place: Place, chunk: Chunk) -> bytes | None:
    """The chunk's content from ``place``, or None if it is not there."""
    try:
        with place.path.open("rb") as file:
            file.seek(place.offset)
            content = file.read(chunk.size_bytes)
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == chunk.sha256 else None


def places(folder: Path, manifest: Manifest) -> Iterator[tuple[str, Place]]:
    """Content digest and place of every chunk of an installed build."""
    for file in manifest.files:
        offset = 0
        for chunk in file.chunks:
            yield chunk.sha256, Place(folder / file.path, offset)
            offset += chunk.size_bytes
