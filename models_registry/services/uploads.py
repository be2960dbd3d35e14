"""Receiving the files of an upload, part by part, so that a broken line costs one segment.

Parts are staged in the blob store and noted one by one; a file's content appears under its
digest only when all of it has arrived and the digest is right.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from uuid import UUID

from django.db import transaction

from blobstore import BlobMissing
from models_registry.blobs import STAGING, blobs, staging_key
from models_registry.errors import (
    DigestMismatch,
    FileNotAnnounced,
    InvalidUpload,
    OffsetMismatch,
    WrongState,
)
from models_registry.models import ModelVersion, UploadPart, VersionFile
from models_registry.selectors import as_id
from quantize_worker.contract import blob_key
from tenancy.actor import Actor

SEGMENT_BYTES = 16 * 2**20  # what a killed process loses of a part at most


def receive_part(
    *, version: ModelVersion, path: str, offset: int, stream: Iterable[bytes], actor: Actor
) -> VersionFile:
    """Append a part to a file, at exactly the bytes received so far.

    What arrived before ``stream`` failed is kept; the error is raised all the same. A part
    that ends the file completes it: the digest is checked and the content stored under it.
    An empty part at the end finishes what a killed process did not.

    Raises:
        FileNotAnnounced: if the upload has no file of that path.
        WrongState: if the upload is complete.
        OffsetMismatch: with ``expected_offset``, if the part begins elsewhere.
        InvalidUpload: ``size_mismatch``, if more comes than was announced; the file starts over.
        DigestMismatch: if the file's SHA-256 is not the announced one; the file starts over.
    """
    file = _receiving(version, path)
    if not file.complete:
        store_parts(file, offset=offset, stream=stream)
    elif offset != file.size_bytes:
        raise _offset_mismatch(file)
    if file.received_bytes == file.size_bytes:
        finish_file(file)
    return file


def _receiving(version: ModelVersion, path: str) -> VersionFile:
    file = VersionFile.objects.filter(version=version, path=path).select_related("version").first()
    if file is None:
        raise FileNotAnnounced(f"The upload has no file {path!r}; announce it when you create the version.")
    if file.version.state != ModelVersion.State.UPLOADING:
        raise WrongState(
            f"{version} is {file.version.state}: its files do not change any more. Create a new version.",
            state=file.version.state,
        )
    return file


def store_parts(file: VersionFile, *, offset: int, stream: Iterable[bytes]) -> None:
    """Stage the stream in segments; ``file.received_bytes`` follows."""
    if offset != file.received_bytes:
        raise _offset_mismatch(file)
    incoming = _Incoming(stream)
    while file.received_bytes < file.size_bytes and not incoming.ended:
        _store_segment(file, incoming)
    if incoming.failure is not None:
        raise incoming.failure
    if not incoming.ended and incoming.has_more():
        restart_file(file)
        raise InvalidUpload(
            f"{file.path} is longer than the announced {file.size_bytes} bytes. "
            "Send it again from offset 0, or discard the upload.",
            code="size_mismatch",
        )


def _store_segment(file: VersionFile, incoming: _Incoming) -> None:
    offset = file.received_bytes
    key = staging_key(file.pk, f"{offset:020d}-{uuid.uuid4().hex}")
    limit = min(SEGMENT_BYTES, file.size_bytes - offset)
    _, size = blobs().put_stream(incoming.segment(limit), key=key)
    if size and _note_part(file, offset=offset, size_bytes=size, key=key):
        file.received_bytes = offset + size
        return
    blobs().delete(key)
    if size:  # somebody else sends the same file
        file.refresh_from_db()
        raise _offset_mismatch(file)


@transaction.atomic
def _note_part(file: VersionFile, *, offset: int, size_bytes: int, key: str) -> bool:
    """Whether the file was still at ``offset`` and its upload still open."""
    uploading = ModelVersion.objects.filter(pk=file.version_id, state=ModelVersion.State.UPLOADING)
    if uploading.select_for_update().first() is None:
        return False
    # Own columns only: with a join, PostgreSQL would not look at the condition again after a wait.
    moved = VersionFile.objects.filter(pk=file.pk, received_bytes=offset, complete=False).update(
        received_bytes=offset + size_bytes
    )
    if moved:
        UploadPart.objects.create(
            tenant_id=file.tenant_id, file=file, offset=offset, size_bytes=size_bytes, key=key
        )
    return bool(moved)


def finish_file(file: VersionFile) -> None:
    """Join a fully received file's parts under its digest; doing so twice is harmless."""
    if file.complete:
        return
    parts = list(file.parts.order_by("offset"))
    try:
        blobs().put_stream(_verified(file, parts), key=blob_key(file.sha256))
    except DigestMismatch:
        restart_file(file)
        raise
    except BlobMissing:  # e.g. after a restore: what was staged meanwhile is not in the backup
        restart_file(file)
        raise _offset_mismatch(file) from None
    with transaction.atomic():
        VersionFile.objects.filter(pk=file.pk, received_bytes=file.size_bytes).update(complete=True)
        UploadPart.objects.filter(file=file).delete()
    file.complete = True
    drop_staged(part.key for part in parts)


def _verified(file: VersionFile, parts: list[UploadPart]) -> Iterator[bytes]:
    """The parts' content; raises before its end if the digest is wrong, so that nothing appears."""
    sha256 = hashlib.sha256()
    for part in parts:
        for chunk in blobs().iter_bytes(part.key):
            sha256.update(chunk)
            yield chunk
    if sha256.hexdigest() != file.sha256:
        raise DigestMismatch(
            f"{file.path} has SHA-256 {sha256.hexdigest()}, announced was {file.sha256}. "
            "Send it again from offset 0; if the announced digest is wrong, discard the upload "
            f"(DELETE /api/v1/versions/{file.version_id}) and announce it anew."
        )


def restart_file(file: VersionFile) -> None:
    """Forget what has been received of a file."""
    keys = list(file.parts.values_list("key", flat=True))
    with transaction.atomic():
        UploadPart.objects.filter(file=file).delete()
        VersionFile.objects.filter(pk=file.pk).update(received_bytes=0, complete=False)
    file.received_bytes, file.complete = 0, False
    drop_staged(keys)


def drop_staged(keys: Iterable[str]) -> None:
    """Delete staged parts; what a killed process leaves over goes by :func:`drop_orphaned_parts`."""
    for key in keys:
        blobs().delete(key)


def drop_orphaned_parts() -> int:
    """Delete staged parts of files that receive nothing any more; returns how many.

    Those of a file that still receives stay until it is complete: one may be on its way into a row.
    """
    by_file: dict[UUID, list[str]] = defaultdict(list)
    for key in blobs().list(STAGING):
        by_file[as_id(key.split("/")[1])].append(key)
    receiving = VersionFile.objects.filter(
        pk__in=list(by_file), complete=False, version__state=ModelVersion.State.UPLOADING
    ).values_list("pk", flat=True)
    orphans = [key for file in by_file.keys() - set(receiving) for key in by_file[file]]
    drop_staged(orphans)
    return len(orphans)


def _offset_mismatch(file: VersionFile) -> OffsetMismatch:
    return OffsetMismatch(
        f"{file.received_bytes} bytes of {file.path} have been received; send the part that begins there.",
        expected_offset=file.received_bytes,
    )


class _Incoming:
    """A stream cut into segments. Its failure ends it and is kept, so that what came is stored."""

    def __init__(self, stream: Iterable[bytes]) -> None:
        self._chunks = iter(stream)
        self._rest = b""
        self.ended = False
        self.failure: Exception | None = None

    def segment(self, limit: int) -> Iterator[bytes]:
        """The next ``limit`` bytes, or fewer if the stream ends."""
        while limit > 0 and self._fill():
            piece, self._rest = self._rest[:limit], self._rest[limit:]
            limit -= len(piece)
            yield piece

    def has_more(self) -> bool:
        return self._fill()

    def _fill(self) -> bool:
        while not self._rest and not self.ended:
            try:
                self._rest = bytes(next(self._chunks))
            except StopIteration:
                self.ended = True
            except Exception as error:  # a broken line, of whatever kind the server makes of it
                self.ended, self.failure = True, error
        return bool(self._rest)
