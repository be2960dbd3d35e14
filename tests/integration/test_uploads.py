"""Uploads: many files in parts, resumable, checked at once, invisible until complete."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from blobstore import BlobStore
from models_registry import selectors
from models_registry.errors import (
    DigestMismatch,
    FileNotAnnounced,
    InvalidUpload,
    ModelExists,
    OffsetMismatch,
    UploadIncomplete,
    UploadTooLarge,
    WrongState,
)
from models_registry.models import Model, ModelVersion, UploadPart
from models_registry.services import uploads
from models_registry.services.models import create_model, delete_alias, set_alias
from models_registry.services.sweeper import UPLOAD_KEPT, sweep
from models_registry.services.versions import (
    FileSpec,
    complete_version,
    create_version,
    discard_version,
    put_single,
    receive_part,
)
from quantize_worker.contract import TASK_INSPECT, InspectRequest, blob_key, from_wire
from tenancy.actor import Actor
from tenancy.models import App, OutboxMessage
from tenancy.selectors import audit_entries

GRAPH = random.Random(1).randbytes(100_000)
WEIGHTS = random.Random(2).randbytes(50_000)


def spec(path: str, content: bytes, role: str = "model") -> FileSpec:
    return FileSpec(role=role, path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def model(app: App, actor: Actor) -> Model:
    return create_model(app=app, name="minilm", actor=actor)


@pytest.fixture
def version(model: Model, actor: Actor) -> ModelVersion:
    files = [spec("model.onnx", GRAPH), spec("weights/model.data", WEIGHTS)]
    return create_version(model=model, files=files, actor=actor)


def send(version: ModelVersion, path: str, content: bytes, actor: Actor, offset: int = 0) -> Any:
    return receive_part(version=version, path=path, offset=offset, stream=[content], actor=actor)


def test_files_in_parts_then_complete(
    version: ModelVersion, actor: Actor, blobs: BlobStore, django_capture_on_commit_callbacks: Any
) -> None:
    send(version, "model.onnx", GRAPH[:30_000], actor)
    file = send(version, "model.onnx", GRAPH[30_000:], actor, offset=30_000)
    assert file.complete
    send(version, "weights/model.data", WEIGHTS, actor)
    complete_version(version=version, actor=actor)

    assert version.state == "checking"
    assert version.attempt == 1
    assert blobs.get_bytes(blob_key(hashlib.sha256(GRAPH).hexdigest())) == GRAPH
    assert list(blobs.list("staging")) == []
    message = OutboxMessage.objects.get()
    assert (message.task, message.queue) == (TASK_INSPECT, "tailor.small")
    request = from_wire(message.payload, InspectRequest)
    assert request.version == str(version.pk)
    assert [(file.path, file.size_bytes) for file in request.source.files] == [
        ("model.onnx", 100_000),
        ("weights/model.data", 50_000),
    ]


def test_completing_twice_asks_for_one_check(version: ModelVersion, actor: Actor) -> None:
    send(version, "model.onnx", GRAPH, actor)
    send(version, "weights/model.data", WEIGHTS, actor)
    digest = complete_version(version=version, actor=actor).source_digest
    assert len(digest) == 64
    assert complete_version(version=version, actor=actor).attempt == 1
    assert OutboxMessage.objects.count() == 1


def test_a_broken_line_keeps_what_came(version: ModelVersion, actor: Actor) -> None:
    def breaking() -> Iterator[bytes]:
        yield GRAPH[:10_000]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        receive_part(version=version, path="model.onnx", offset=0, stream=breaking(), actor=actor)
    with pytest.raises(OffsetMismatch) as caught:
        send(version, "model.onnx", GRAPH, actor)
    assert caught.value.extensions["expected_offset"] == 10_000
    assert send(version, "model.onnx", GRAPH[10_000:], actor, offset=10_000).complete


def test_segments_are_noted_one_by_one(
    version: ModelVersion, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SEGMENT_BYTES", 4096)
    seen: list[int] = []

    def watching() -> Iterator[bytes]:
        for start in range(0, len(GRAPH), 5000):
            seen.append(UploadPart.objects.count())
            yield GRAPH[start : start + 5000]

    file = receive_part(version=version, path="model.onnx", offset=0, stream=watching(), actor=actor)
    assert file.complete
    assert seen[-1] >= 20
    assert UploadPart.objects.count() == 0


def test_an_interrupted_upload_is_visible_to_nobody(
    version: ModelVersion, actor: Actor, blobs: BlobStore
) -> None:
    send(version, "weights/model.data", WEIGHTS, actor)
    send(version, "model.onnx", GRAPH[:5], actor)
    assert list(selectors.versions_of(version.tenant)) == []
    assert selectors.version(version.tenant, version.pk).state == "uploading"
    assert not blobs.exists(blob_key(hashlib.sha256(GRAPH).hexdigest()))
    with pytest.raises(UploadIncomplete) as caught:
        complete_version(version=version, actor=actor)
    assert caught.value.extensions["missing"] == ["model.onnx"]


def test_an_empty_part_finishes_what_a_killed_process_left(version: ModelVersion, actor: Actor) -> None:
    file = version.files.get(path="model.onnx")
    uploads.store_parts(file, offset=0, stream=[GRAPH])  # the process dies before the file is joined
    done = receive_part(version=version, path="model.onnx", offset=len(GRAPH), stream=[], actor=actor)
    assert done.complete
    again = receive_part(version=version, path="model.onnx", offset=len(GRAPH), stream=[], actor=actor)
    assert again.complete


def test_staged_parts_that_are_gone_start_the_file_over(
    version: ModelVersion, actor: Actor, blobs: BlobStore
) -> None:
    send(version, "model.onnx", GRAPH[:100], actor)
    (key,) = blobs.list("staging")
    blobs.delete(key)
    with pytest.raises(OffsetMismatch) as caught:
        send(version, "model.onnx", GRAPH[100:], actor, offset=100)
    assert caught.value.extensions["expected_offset"] == 0
    assert send(version, "model.onnx", GRAPH, actor).complete


def test_a_wrong_digest_starts_the_file_over(version: ModelVersion, actor: Actor, blobs: BlobStore) -> None:
    with pytest.raises(DigestMismatch) as caught:
        send(version, "model.onnx", b"x" * len(GRAPH), actor)
    assert f"DELETE /api/v1/versions/{version.pk}" in caught.value.detail
    assert list(blobs.list("")) == []
    assert version.files.get(path="model.onnx").received_bytes == 0
    assert send(version, "model.onnx", GRAPH, actor).complete


def test_more_than_announced_is_refused(version: ModelVersion, actor: Actor) -> None:
    with pytest.raises(InvalidUpload) as caught:
        send(version, "model.onnx", GRAPH + b"x", actor)
    assert caught.value.code == "size_mismatch"
    assert not version.files.get(path="model.onnx").complete


def test_only_announced_files_of_open_uploads(version: ModelVersion, actor: Actor) -> None:
    with pytest.raises(FileNotAnnounced):
        send(version, "other.onnx", GRAPH, actor)
    send(version, "model.onnx", GRAPH, actor)
    send(version, "weights/model.data", WEIGHTS, actor)
    complete_version(version=version, actor=actor)
    with pytest.raises(WrongState):
        send(version, "model.onnx", GRAPH, actor)
    with pytest.raises(WrongState):
        discard_version(version=version, actor=actor)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([], "invalid_file_count"),
        ([spec("../model.onnx", GRAPH)], "invalid_path"),
        ([spec("/model.onnx", GRAPH)], "invalid_path"),
        ([spec("a\\model.onnx", GRAPH)], "invalid_path"),
        ([spec("a//model.onnx", GRAPH)], "invalid_path"),
        ([spec("a\nb.onnx", GRAPH)], "invalid_path"),
        ([spec("model.onnx", GRAPH, "weights")], "invalid_role"),
        ([spec("model.onnx", b"")], "empty_file"),
        ([FileSpec(role="model", path="m.onnx", size_bytes=1, sha256="ABC")], "invalid_digest"),
        ([spec("m.onnx", GRAPH), spec("m.onnx", GRAPH)], "duplicate_path"),
        ([spec("model.bin", GRAPH)], "missing_model_file"),
        ([spec("m.onnx", GRAPH), spec("eval.csv", GRAPH, "evaluation")], "invalid_sample_file"),
        (
            [spec("m.onnx", GRAPH), spec("a.npz", GRAPH, "evaluation"), spec("b.npz", GRAPH, "evaluation")],
            "invalid_sample_file",
        ),
    ],
)
def test_form_errors_at_once(model: Model, actor: Actor, files: list[FileSpec], code: str) -> None:
    with pytest.raises(InvalidUpload) as caught:
        create_version(model=model, files=files, actor=actor)
    assert (caught.value.code, caught.value.status) == (code, 422)
    assert ModelVersion.objects.count() == 0


def test_too_large_at_once(model: Model, actor: Actor, settings: Any) -> None:
    settings.MAX_UPLOAD_BYTES = 1000
    with pytest.raises(UploadTooLarge):
        create_version(model=model, files=[spec("m.onnx", GRAPH)], actor=actor)


def test_single_put(model: Model, actor: Actor, blobs: BlobStore) -> None:
    version = put_single(model=model, data=[GRAPH], size=len(GRAPH), actor=actor)
    assert version.state == "checking"
    assert version.files.get().sha256 == hashlib.sha256(GRAPH).hexdigest()


@pytest.mark.parametrize("content", [GRAPH[:-1], GRAPH + b"x"])
def test_single_put_that_fails_leaves_nothing(
    model: Model,
    actor: Actor,
    blobs: BlobStore,
    content: bytes,
    django_capture_on_commit_callbacks: Any,
) -> None:
    with django_capture_on_commit_callbacks(execute=True), pytest.raises((UploadIncomplete, InvalidUpload)):
        put_single(model=model, data=[content], size=len(GRAPH), actor=actor)
    assert ModelVersion.objects.count() == 0
    assert list(blobs.list("")) == []


def test_discard_and_sweep(
    version: ModelVersion, actor: Actor, blobs: BlobStore, django_capture_on_commit_callbacks: Any
) -> None:
    send(version, "model.onnx", GRAPH[:100], actor)
    assert sweep(now=timezone.now()).get("uploads_dropped") is None
    with django_capture_on_commit_callbacks(execute=True):
        counts = sweep(now=timezone.now() + UPLOAD_KEPT + timedelta(minutes=1))
    assert counts["uploads_dropped"] == 1
    assert list(blobs.list("")) == []
    assert audit_entries(version.tenant)[0].action == "version.abandoned"


def test_parts_of_a_killed_process_are_dropped_once_nothing_is_received(
    version: ModelVersion, actor: Actor, blobs: BlobStore
) -> None:
    send(version, "model.onnx", GRAPH[:100], actor)
    noted = UploadPart.objects.get()
    unnoted = f"{noted.key.rpartition('/')[0]}/written-but-not-noted"
    gone = f"staging/{uuid.uuid4()}/of-a-file-that-was-discarded"
    for key in (unnoted, gone):
        blobs.put_bytes(b"x", key=key)
    assert uploads.drop_orphaned_parts() == 1
    assert set(blobs.list("")) == {noted.key, unnoted}
    receive_part(version=version, path="model.onnx", offset=100, stream=[GRAPH[100:]], actor=actor)
    assert uploads.drop_orphaned_parts() == 1
    assert not list(blobs.list("staging"))


def test_numbers_rise_per_model(model: Model, app: App, actor: Actor) -> None:
    other = create_model(app=app, name="other", actor=actor)
    numbers = [
        put_single(model=each, data=[GRAPH], size=len(GRAPH), actor=actor).number
        for each in (model, model, other)
    ]
    assert numbers == [1, 2, 1]
    with pytest.raises(ModelExists):
        create_model(app=app, name="other", actor=actor)


def test_alias_needs_a_ready_version_of_the_model(model: Model, version: ModelVersion, actor: Actor) -> None:
    with pytest.raises(WrongState):
        set_alias(model=model, name="champion", version=version, actor=actor)
    ModelVersion.objects.filter(pk=version.pk).update(state="ready")
    version.refresh_from_db()
    set_alias(model=model, name="champion", version=version, actor=actor)
    assert selectors.version_by_alias(model, "champion") == version
    delete_alias(model=model, name="champion", actor=actor)
    assert selectors.version_by_alias(model, "champion") is None
