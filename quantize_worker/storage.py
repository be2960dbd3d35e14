"""Between the blob store and a job's work folder. Only the parent process, outside the sandbox.

What the child wrote is not trusted: only plain files are taken, and only with the digest and
size the child declared.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path, PurePosixPath

import msgspec
import zstandard

from blobstore import BlobError, BlobMissing, BlobStore
from quantize_worker.contract import (
    AnalysisFile,
    AnalysisIndex,
    ArtifactChunk,
    ArtifactFile,
    Blob,
    Recipe,
    Source,
    blob_key,
    cancel_key,
    digest,
)
from quantize_worker.errors import ModelRefused, SandboxFailed

CHECKPOINT_FORMAT = 2
COPY_BYTES = 4 << 20


@contextmanager
def job_folder(work: Path) -> Iterator[Path]:
    """A folder of its own for one job, gone afterwards; what killed workers left behind goes first.

    Whoever works in a folder holds its lock, and the lock of ``work`` while it makes one, so that
    several workers may share ``work``.
    """
    with _locked(work):
        for left in work.glob("job-*"):
            with suppress(OSError), _locked(left, wait=False):
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=work)).resolve()
        held = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    descriptor = _lock(folder, wait=wait)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, *, wait: bool = True) -> int:
    """Lock a folder until the descriptor is closed, at the latest by the end of this process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def fetch_source(store: BlobStore, source: Source, folder: Path) -> None:
    """Write the upload's files under ``folder`` at their paths.

    Raises:
        ModelRefused: if a path leaves the folder.
        BlobError: if a blob is missing or damaged.
    """
    for file in source.files:
        store.fetch(blob_key(file.sha256), _within(folder, file.path), sha256=file.sha256)


def fetch_set(store: BlobStore, blob: Blob | None, path: Path) -> None:
    """Write a sample set, if there is one, to ``path``."""
    if blob is not None:
        store.fetch(blob_key(blob.sha256), path, sha256=blob.sha256)


def store_chunks(store: BlobStore, files: Iterable[ArtifactFile], folder: Path) -> None:
    """Upload the chunks of files from the child's folder, those that are not there yet.

    Raises:
        SandboxFailed: if one is not what the child said.
        BlobError: if the store fails.
    """
    for chunk in _distinct(files):
        key = blob_key(chunk.stored_sha256)
        content = _plain_content(folder / chunk.stored_sha256, chunk.stored_size_bytes)
        if hashlib.sha256(content).hexdigest() != chunk.stored_sha256:
            raise SandboxFailed("The child's chunk is not what it declared.")
        if store.size(key) != len(content):
            store.put_bytes(content, key=key)


def store_analysis(store: BlobStore, files: Iterable[AnalysisFile], folder: Path) -> None:
    """Upload files of an analysis from the child's folder, those that are not there yet.

    Raises:
        SandboxFailed: if one is not what the child said.
        BlobError: if the store fails.
    """
    for file in files:
        key = blob_key(file.sha256)
        if store.size(key) == file.size_bytes:
            continue
        path = _within(folder, file.path)
        if not path.parent.resolve().is_relative_to(folder.resolve()):
            raise SandboxFailed("A file of the child's analysis lies elsewhere.")
        with _plain_file(path, file.size_bytes) as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                raise SandboxFailed("A file of the child's analysis is not what it declared.")
            content.seek(0)
            stored, _ = store.put_stream(iter(lambda: content.read(COPY_BYTES), b""), key=key)
        if stored != file.sha256:  # changed between the two readings
            store.delete(key)
            raise SandboxFailed("A file of the child's analysis is not what it declared.")


def write_index(store: BlobStore, files: list[AnalysisFile]) -> Blob:
    """Store the index of an analysis whose files are stored."""
    body = msgspec.json.encode(AnalysisIndex(files=sorted(files, key=lambda file: file.path)))
    sha256 = hashlib.sha256(body).hexdigest()
    store.put_bytes(body, key=blob_key(sha256))
    return Blob(sha256=sha256, size_bytes=len(body))


def fetch_analysis(store: BlobStore, indexes: Iterable[Blob], recipe: Recipe | None, folder: Path) -> None:
    """Write the files of an analysis under ``folder``; of the candidates those of the recipe.

    Raises:
        BlobError: if a blob is missing or damaged.
    """
    for index in indexes:
        body = store.get_bytes(blob_key(index.sha256))
        if hashlib.sha256(body).hexdigest() != index.sha256:
            raise BlobMissing(index.sha256)
        for file in msgspec.json.decode(body, type=AnalysisIndex).files:
            if not file.layer or (recipe is not None and recipe.layers.get(file.layer) == file.format):
                store.fetch(blob_key(file.sha256), _within(folder, file.path), sha256=file.sha256)


def is_cancelled(store: BlobStore, subject: str, attempt: int) -> bool:
    """Whether this attempt is asked to stop. An unreachable store is no request."""
    try:
        return store.exists(cancel_key(subject, attempt))
    except BlobError:
        return False


class Stages(msgspec.Struct, kw_only=True):
    """Stages of an analysis that are done, with their files, for a successor."""

    stages: list[str] = []
    files: list[AnalysisFile] = []


def stages_key(source: Source, layers: list[str], tools: dict[str, str]) -> str:
    """Where the finished stages of such an analysis are noted; other tool versions do not share it."""
    return f"checkpoints/{digest([msgspec.to_builtins(source), layers, tools, CHECKPOINT_FORMAT])}.json"


def write_stages(store: BlobStore, key: str, stages: Stages) -> None:
    store.put_bytes(msgspec.json.encode(stages), key=key)


def resume_stages(store: BlobStore, key: str, folder: Path) -> Stages:
    """Restore the stages that an earlier attempt has finished; none if they are not there whole."""
    try:
        found = msgspec.json.decode(store.get_bytes(key), type=Stages)
        for file in found.files:
            store.fetch(blob_key(file.sha256), _within(folder, file.path), sha256=file.sha256)
    except (BlobError, msgspec.MsgspecError, ModelRefused):
        shutil.rmtree(folder, ignore_errors=True)
        return Stages()
    return found


def checkpoint_key(source: Source, recipe: Recipe, tools: dict[str, str]) -> str:
    """Where the finished steps of such a build are noted; other tool versions do not share it."""
    parts = [msgspec.to_builtins(source), msgspec.to_builtins(recipe), tools, CHECKPOINT_FORMAT]
    return f"checkpoints/{digest(parts)}.json"


def write_checkpoint(store: BlobStore, key: str, files: list[ArtifactFile]) -> None:
    """Note files whose chunks are stored, for a successor."""
    store.put_bytes(msgspec.json.encode(files), key=key)


def drop_checkpoint(store: BlobStore, key: str) -> None:
    store.delete(key)


def resume(store: BlobStore, key: str, artifact: Path) -> list[ArtifactFile]:
    """Restore the files that an earlier attempt has finished into ``artifact``; [] if there are none.

    A checkpoint that cannot be used whole is not used at all.
    """
    try:
        files = msgspec.json.decode(store.get_bytes(key), type=list[ArtifactFile])
        for file in files:
            _restore(store, file, _within(artifact, file.path))
    except (BlobError, msgspec.MsgspecError, zstandard.ZstdError, SandboxFailed, ModelRefused):
        return []
    return files


def _restore(store: BlobStore, file: ArtifactFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = hashlib.sha256()
    with path.open("wb") as out:
        for chunk in file.chunks:
            frame = store.get_bytes(blob_key(chunk.stored_sha256))
            content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=chunk.size_bytes)
            whole.update(content)
            out.write(content)
    if whole.hexdigest() != file.sha256:
        raise BlobMissing(file.path)


def _distinct(files: Iterable[ArtifactFile]) -> list[ArtifactChunk]:
    return list({chunk.stored_sha256: chunk for file in files for chunk in file.chunks}.values())


def _within(folder: Path, path: str) -> Path:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or ".." in parts:
        raise ModelRefused("invalid_model", f"The upload's path {path!r} leaves its folder; rename the file.")
    return folder.joinpath(*parts)


def plain_files(folder: Path) -> list[Path]:
    """Plain files of a folder that a child has written.

    Raises:
        SandboxFailed: if the folder is a link, or holds anything else.
    """
    found = sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    if not found or not all(stat.S_ISREG(path.lstat().st_mode) for path in found):
        raise SandboxFailed("The child left something else than the files of a build.")
    return found


def _plain_content(path: Path, size: int) -> bytes:
    with _plain_file(path, size) as file:
        return file.read(size)


def _plain_file(path: Path, size: int) -> BufferedReader:
    """A plain file of exactly this size; links and devices are not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxFailed("A file that the child declared is not there.") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        os.close(descriptor)
        raise SandboxFailed("A file that the child declared is not a plain file of its size.")
    return os.fdopen(descriptor, "rb")
