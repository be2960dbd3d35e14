"""Writes of model versions: announce, receive, complete; then what the worker's check found."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import msgspec
from django.conf import settings
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from models_registry import lifecycle
from models_registry.blobs import blobs
from models_registry.errors import InvalidUpload, UploadIncomplete, UploadTooLarge, WrongState
from models_registry.models import Model, ModelVersion, UploadPart, VersionFile
from models_registry.selectors import as_id
from models_registry.services.leases import apply_progress, count_start, lease_of_attempt
from models_registry.services.uploads import (
    drop_staged,
    finish_file,
    receive_part,
    store_parts,
)
from quantize_worker.contract import (
    QUEUE_TAILOR,
    TASK_INSPECT,
    Blob,
    InspectRequest,
    InspectResult,
    Source,
    SourceFile,
    cancel_key,
    digest,
    to_wire,
)
from tenancy.actor import Actor
from tenancy.audit import record
from tenancy.outbox import enqueue

__all__ = [
    "FileSpec",
    "apply_inspect_result",
    "apply_progress",
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
CHECK_FAILED = "check_failed"  # the one refusal that is our fault, not the model's
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


def _check_together(files: list[FileSpec]) -> None:
    total = sum(spec.size_bytes for spec in files)
    if total > settings.MAX_UPLOAD_BYTES:
        raise UploadTooLarge(f"{total:,} bytes are more than the {settings.MAX_UPLOAD_BYTES:,} allowed here.")
    repeated = [path for path, count in Counter(spec.path for spec in files).items() if count > 1]
    if repeated:
        raise InvalidUpload(f"{repeated[0]} is announced twice.", code="duplicate_path")
    if not any(spec.role == "model" and spec.path.endswith(".onnx") for spec in files):
        raise InvalidUpload("There is no .onnx file with the role model.", code="missing_model_file")
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
def restart_check(*, version: ModelVersion, event: str, now: datetime) -> bool:
    """Hand the version to a worker as a new attempt.

    Args:
        event: of :data:`models_registry.lifecycle.VERSION`: complete, retry or recheck.

    Returns:
        False if another process was faster.
    """
    attempt = version.attempt + 1
    moved = ModelVersion.objects.filter(
        pk=version.pk, attempt=version.attempt, state__in=lifecycle.sources("version", event)
    ).update(
        state=lifecycle.result("version", event),
        attempt=attempt,
        step="",
        share=0.0,
        refusal_code="",
        refusal_message="",
        enqueued_at=now,
        lease_expires_at=lease_of_attempt(version, now=now),
    )
    if moved:
        request = InspectRequest(version=str(version.pk), attempt=attempt, source=source_of(version))
        enqueue(tenant=version.tenant, task=TASK_INSPECT, queue=QUEUE_TAILOR, payload=to_wire(request))
        if event == "retry":  # the message of the lost attempt may still be queued
            stale = cancel_key(str(version.pk), version.attempt)
            transaction.on_commit(lambda: blobs().put_bytes(b"", key=stale), robust=True)
    return bool(moved)


@transaction.atomic
def recheck_version(*, version: ModelVersion, actor: Actor, now: datetime | None = None) -> ModelVersion:
    """Check a version again whose check failed on our side.

    Raises:
        WrongState: if it was refused for a fault of its own, or not at all.
    """
    version.refresh_from_db()
    if version.refusal_code != CHECK_FAILED:
        raise WrongState(
            f"{version} is {version.state}; only a check that failed on our side can be repeated. "
            "Upload a corrected model as a new version.",
            state=version.state,
        )
    ModelVersion.objects.filter(pk=version.pk).update(starts=0)
    restart_check(version=version, event="recheck", now=now or timezone.now())
    record(
        tenant=version.tenant,
        actor=actor,
        action="version.recheck",
        subject_type="version",
        subject=version.pk,
    )
    version.refresh_from_db()
    return version


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


@transaction.atomic
def apply_inspect_result(*, result: InspectResult, now: datetime | None = None) -> bool:
    """Take over what the worker found.

    Returns:
        False if the attempt is stale or the version is not being checked: the result is ignored.
    """
    versions = ModelVersion.objects.select_for_update().filter(pk=as_id(result.version))
    version = versions.filter(state=_State.CHECKING, attempt=result.attempt).first()
    if version is None:
        marker = cancel_key(result.version, result.attempt)
        transaction.on_commit(lambda: blobs().delete(marker), robust=True)
        return False
    if result.status == "ready" and result.facts is not None:
        return _settle(
            version, "pass", facts=msgspec.to_builtins(result.facts), lineage=_lineage(version, result)
        )
    if result.status == "refused":
        return _settle(
            version,
            "refuse",
            refusal_code=result.code[:40] or "invalid_model",
            refusal_message=result.message,
        )
    return _retry_or_refuse(version, result, now or timezone.now())


def _retry_or_refuse(version: ModelVersion, result: InspectResult, now: datetime) -> bool:
    if lifecycle.may_start_again(count_start(version)):
        return restart_check(version=version, event="retry", now=now)
    return refuse_for_our_fault(version=version, message=result.message)


def refuse_for_our_fault(*, version: ModelVersion, message: str) -> bool:
    """Give up checking: the model may be fine, our side is not."""
    return _settle(
        version,
        "refuse",
        refusal_code=CHECK_FAILED,
        refusal_message=f"Checking the model failed on our side ({message or 'the worker was lost'}). "
        "Ask the operator to look at the worker's log, then check the version again.",
    )


def _settle(version: ModelVersion, event: str, **changes: Any) -> bool:
    return bool(
        ModelVersion.objects.filter(
            pk=version.pk, attempt=version.attempt, state__in=lifecycle.sources("version", event)
        ).update(
            state=lifecycle.result("version", event), lease_expires_at=None, step="", share=1.0, **changes
        )
    )


def _lineage(version: ModelVersion, result: InspectResult) -> dict[str, Any]:
    assert result.facts is not None
    sets = version.files.exclude(role=VersionFile.Role.MODEL)
    return {
        "source_digest": version.source_digest,
        **{f"{file.role}_sha256": file.sha256 for file in sets},
        "synthetic_samples": result.facts.synthetic_samples,
        "tool_versions": result.facts.tool_versions,
    }


def source_of(version: ModelVersion) -> Source:
    """The version's files as the worker gets them, the graph before its external data."""
    files = list(version.files.order_by("path"))
    sets = {
        file.role: Blob(sha256=file.sha256, size_bytes=file.size_bytes)
        for file in files
        if file.role != "model"
    }
    return Source(
        files=[
            SourceFile(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes)
            for file in files
            if file.role == "model"
        ],
        evaluation=sets.get("evaluation"),
        calibration=sets.get("calibration"),
    )
