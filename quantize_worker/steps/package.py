"""The artifact's form: a graph, its weights as aligned external data (:mod:`.datafile`), cut into chunks.

Cuts are at tensor boundaries, so that tensors shared by versions or builds are stored and sent
once. Equal models give equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from quantize_worker.contract import ArtifactChunk, ArtifactFile
from quantize_worker.steps.datafile import DATA_FILE, GRAPH_FILE, room

__all__ = ["DATA_FILE", "GRAPH_FILE", "cut"]
SMALL_CHUNK_BYTES = 256 << 10
LARGE_CHUNK_BYTES = 4 << 20
ZSTD_LEVEL = 6


def cut(path: Path, chunks: Path, *, name: str, starts: list[int] | None = None) -> ArtifactFile:
    """Cut a file into zstd frames under ``chunks``, each named by its own SHA-256.

    Args:
        path: the file.
        chunks: folder for the frames.
        name: the file's path within the artifact.
        starts: boundaries to cut at, as :meth:`quantize_worker.steps.graph.Graph.write` returns them.

    Raises:
        BuildFailed: disk_full.
    """
    chunks.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True)
    whole, made = hashlib.sha256(), []
    with path.open("rb") as file:
        for length in _lengths(starts or [0, size], size):
            content = file.read(length)
            whole.update(content)
            made.append(_store(content, compressor.compress(content), chunks))
    return ArtifactFile(path=name, sha256=whole.hexdigest(), size_bytes=size, chunks=made)


def _lengths(starts: list[int], size: int) -> Iterator[int]:
    """Lengths of the chunks: small tensors together, large ones in pieces."""
    begin = 0
    for end in [*starts[1:-1], size]:
        if end - begin < SMALL_CHUNK_BYTES and end != size:
            continue
        while end - begin > LARGE_CHUNK_BYTES:
            yield LARGE_CHUNK_BYTES
            begin += LARGE_CHUNK_BYTES
        if end > begin:
            yield end - begin
        begin = end


def _store(content: bytes, frame: bytes, chunks: Path) -> ArtifactChunk:
    stored = hashlib.sha256(frame).hexdigest()
    with room():
        (chunks / stored).write_bytes(frame)
    return ArtifactChunk(
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        stored_sha256=stored,
        stored_size_bytes=len(frame),
    )
