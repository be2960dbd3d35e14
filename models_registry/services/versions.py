"""Writes of model versions: announce, receive, complete; then they are inspected."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import PurePosixPath

import msgspec
from django.conf import settings
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from models_registry.errors import InvalidUpload, UploadIncomplete, UploadTooLarge, WrongState
from models_registry.models import Model, ModelVersion, UploadPart, VersionFile
from models_registry.services.checks import source_of
from models_registry.services.inspections import (
    apply_inspect_result,
    cancel_inspection,
    recheck_version,
    restart_check,
)
from models_registry.services.leases import apply_progress
from models_registry.services.uploads import (
    drop_staged,
    finish_file,
    receive_part,
    store_parts,
)
from quantize_worker.contract import digest
from tenancy.actor import Actor
from tenancy.audit import record

__all__ = [
    "FileSpec",
    "apply_inspect_result",
    "apply_progress",
    "cancel_inspection",
    "complete_version",
    "create_version",
    "discard_version",
    "put_single",
    "receive_part",
    "recheck_version",
    "restart_check",
    "source_of",
]

MAX_FILES = 1000
CONFIG_FILE = "config.json"
SAFETENSORS = ".safetensors"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_State = ModelVersion.State


class FileSpec(msgspec.Struct, kw_only=True, frozen=True):
    """A file that an upload announces: ``role`` is model, evaluation or calibration."""

    role: str
    path: str
    size_bytes: int
    sha256: str


def create_version(*, model: Model, files: list[FileSpec], actor: Actor) -> ModelVersion:
    """Announce an upload. The version is visible to its uploader alone until it is complete.

    Raises:
        InvalidUpload: a path, size, digest or the set of files is not well-formed (see ``code``).
        UploadTooLarge: if all files together exceed POCKETFLEET_MAX_UPLOAD_BYTES.
    """
    check_files(files)
    return _announce(model, files, actor)


def check_files(files: list[FileSpec]) -> None:
    """Everything about an upload that can be said before a byte of it has come."""
    if not 0 < len(files) <= MAX_FILES:
        raise InvalidUpload(f"An upload has 1 to {MAX_FILES} files.", code="invalid_file_count")
    for spec in files:
        _check_file(spec)
    _check_together(files)


def _check_file(spec: FileSpec) -> None:
    parts = spec.path.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and "\\" not in spec.path
    if not plain or len(spec.path) > 255 or not spec.path.isprintable():
        raise InvalidUpload(
            f"{spec.path!r} is not a plain relative path with forward slashes.", code="invalid_path"
        )
    if spec.role not in VersionFile.Role.values:
        raise InvalidUpload(
            f"Role {spec.role!r} of {spec.path} is none of {', '.join(VersionFile.Role.values)}.",
            code="invalid_role",
        )
    if spec.size_bytes < 1:
        raise InvalidUpload(f"{spec.path} is empty; leave it out.", code="empty_file")
    if not _SHA256.match(spec.sha256):
        raise InvalidUpload(
            f"sha256 of {spec.path} is not 64 lower-case hexadecimal digits.", code="invalid_digest"
        )


def is_model_source(paths: list[str]) -> bool:
    """Whether these files can be a model: an ONNX graph, or weights with the configuration beside them."""
    if any(path.endswith(".onnx") for path in paths):
        return True
    folders = {PurePosixPath(path).parent for path in paths if path.endswith(SAFETENSORS)}
    return any(str(folder / CONFIG_FILE) in paths for folder in folders)


def _check_together(files: list[FileSpec]) -> None:
    total = sum(spec.size_bytes for spec in files)
    if total > settings.MAX_UPLOAD_BYTES:
        raise UploadTooLarge(f"{total:,} bytes are more than the {settings.MAX_UPLOAD_BYTES:,} allowed here.")
    repeated = [path for path, count in Counter(spec.path for spec in files).items() if count > 1]
    if repeated:
        raise InvalidUpload(f"{repeated[0]} is announced twice.", code="duplicate_path")
    if not is_model_source([spec.path for spec in files if spec.role == "model"]):
        raise InvalidUpload(
            "There is no model among the files with the role model: send an .onnx file (with its external data), "
            f"or {CONFIG_FILE} and *{SAFETENSORS} in one folder.",
            code="missing_model_file",
        )
    for role in ("evaluation", "calibration"):
        sets = [spec for spec in files if spec.role == role]
        if len(sets) > 1 or any(not spec.path.endswith(".npz") for spec in sets):
            raise InvalidUpload(f"The {role} set is one .npz file.", code="invalid_sample_file")


@transaction.atomic
def _announce(model: Model, files: list[FileSpec], actor: Actor) -> ModelVersion:
    Model.objects.select_for_update().get(pk=model.pk)  # numbers are given out one at a time
    last = ModelVersion.objects.filter(model=model).aggregate(last=Max("number"))["last"] or 0
    version = ModelVersion.objects.create(
        tenant_id=model.tenant_id, model=model, number=last + 1, created_by=str(actor)[:100]
    )
    VersionFile.objects.bulk_create(
        VersionFile(tenant_id=model.tenant_id, version=version, **msgspec.to_builtins(spec)) for spec in files
    )
    record(
        tenant=model.tenant,
        actor=actor,
        action="version.create",
        subject_type="version",
        subject=version.pk,
        after={"model": model.name, "number": version.number, "files": len(files)},
    )
    return version


def put_single(
    *,
    model: Model,
    data: Iterable[bytes],
    size: int,
    sha256: str | None = None,
    actor: Actor,
    path: str = "model.onnx",
) -> ModelVersion:
    """Upload a one-file model at once; nothing of it stays if that fails.

    Args:
        size: in bytes, as announced (``Content-Length``).
        sha256: checked where the caller knows it.
    """
    spec = FileSpec(role="model", path=path, size_bytes=size, sha256=sha256 or "0" * 64)
    version = create_version(model=model, files=[spec], actor=actor)
    try:
        file = version.files.get()
        counted = _Hashed(data)
        store_parts(file, offset=0, stream=counted)
        if sha256 is None:
            file.sha256 = counted.sha256.hexdigest()
            VersionFile.objects.filter(pk=file.pk).update(sha256=file.sha256)
        return complete_version(version=version, actor=actor)
    except BaseException:
        discard_version(version=version, actor=actor)
        raise


class _Hashed:
    """Passes a stream on and keeps its SHA-256."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self.sha256 = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.sha256.update(chunk)
            yield chunk


def complete_version(*, version: ModelVersion, actor: Actor, now: datetime | None = None) -> ModelVersion:
    """Close an upload and have it checked; a repeated call changes nothing.

    Raises:
        UploadIncomplete: with ``missing``, the paths that are not complete.
    """
    version.refresh_from_db()
    if version.state != _State.UPLOADING:
        return version
    files = list(version.files.order_by("path"))
    for file in files:
        if file.received_bytes == file.size_bytes:
            finish_file(file)
    missing = [file.path for file in files if not file.complete]
    if missing:
        raise UploadIncomplete(
            f"{len(missing)} files are not complete, e.g. {missing[0]}. Send their missing parts first.",
            missing=missing[:100],
        )
    _start_check(version, files, actor, now or timezone.now())
    version.refresh_from_db()
    return version


@transaction.atomic
def _start_check(version: ModelVersion, files: list[VersionFile], actor: Actor, now: datetime) -> None:
    names = ("role", "path", "size_bytes", "sha256")
    closed = ModelVersion.objects.filter(pk=version.pk, state=_State.UPLOADING).update(
        source_digest=digest([{name: getattr(file, name) for name in names} for file in files]),
        completed_at=now,
    )
    if not closed or not restart_check(version=version, event="complete", now=now):
        return
    record(
        tenant=version.tenant,
        actor=actor,
        action="version.complete",
        subject_type="version",
        subject=version.pk,
        before={"state": _State.UPLOADING.value},
        after={"state": _State.CHECKING.value},
    )


@transaction.atomic
def discard_version(*, version: ModelVersion, actor: Actor) -> None:
    """Drop an upload that is not complete, with all that has been received.

    Raises:
        WrongState: if the upload is complete.
    """
    keys = list(UploadPart.objects.filter(file__version=version).values_list("key", flat=True))
    deleted, _ = ModelVersion.objects.filter(pk=version.pk, state=_State.UPLOADING).delete()
    if not deleted:
        version.refresh_from_db()
        raise WrongState(f"{version} is {version.state}: it is no upload any more.", state=version.state)
    transaction.on_commit(lambda: drop_staged(keys), robust=True)
    record(
        tenant=version.tenant,
        actor=actor,
        action="version.discard",
        subject_type="version",
        subject=version.pk,
        before={"model": version.model.name, "number": version.number},
    )
