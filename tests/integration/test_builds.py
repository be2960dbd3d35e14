"""Builds: the registry's side of the contract, fed with the worker's own message types."""

from __future__ import annotations

import copy
import uuid
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from django.utils import timezone

from blobstore import BlobStore
from device_agent.protocol.manifest import decode_manifest
from models_registry import lifecycle, selectors
from models_registry.errors import WrongState
from models_registry.models import Build, Model, ModelVersion, Tailoring, TenantBlob
from models_registry.services.builds import apply_build_result, cancel_build, request_builds, retry_build
from models_registry.services.leases import apply_progress
from models_registry.services.sweeper import expire_leases, sweep
from models_registry.services.versions import (
    apply_inspect_result,
    put_single,
    recheck_version,
)
from models_registry.tasks import build_result, inspect_result, progress
from quantize_worker.contract import (
    LEASE_S,
    TASK_BUILD,
    ArtifactChunk,
    ArtifactDescription,
    ArtifactFile,
    BuildRequest,
    BuildResult,
    InspectResult,
    ModelFacts,
    Progress,
    QualityReport,
    Target,
    cancel_key,
    from_wire,
    to_wire,
)
from tenancy.actor import Actor
from tenancy.models import App, OutboxMessage
from tests.factories import make_facts

MB = 2**20
FACTS = make_facts()


def target(name: str = "mid", floor: float = 0.9, **changes: Any) -> Target:
    values: dict[str, Any] = {
        "name": name,
        "version": 1,
        "accelerator": "cpu",
        "execution_provider": "CPUExecutionProvider",
        "emulated": False,
        "precisions": ["int8-dynamic", "fp16", "fp32"],
        "memory_bytes": 4000 * MB,
        "storage_bytes": 1000 * MB,
        "quality_floor": floor,
    }
    return Target(**{**values, **changes})


def built(build: Build, quality: float = 0.99, size_bytes: int = 10 * MB) -> BuildResult:
    chunk = ArtifactChunk(sha256="a" * 64, size_bytes=10, stored_sha256="b" * 64, stored_size_bytes=7)
    files = [
        ArtifactFile(path=path, sha256="c" * 64, size_bytes=10, chunks=[chunk])
        for path in ("model.onnx", "golden.npz")
    ]
    return BuildResult(
        build=str(build.pk),
        attempt=build.attempt,
        status="built",
        artifact=ArtifactDescription(
            entry="model.onnx",
            files=files,
            golden_path="golden.npz",
            golden_samples=8,
            golden_min_cosine=0.9876543,
            size_bytes=size_bytes,
            download_bytes=7 * MB,
            memory_bytes=50 * MB,
            latency_p50_ms=3.25,
            provider="CPUExecutionProvider",
            minimum_runtime="1.20",
            tool_versions={"onnxruntime": "1.32.0"},
        ),
        quality=QualityReport(
            metric="cosine", value=quality, cosine=quality, top1_agreement=0.9, samples=100
        ),
    )


def failed(build: Build, fault: Any = "model") -> BuildResult:
    return BuildResult(
        build=str(build.pk),
        attempt=build.attempt,
        status="failed",
        code="unsupported_operator",
        message="No kernel for Foo.",
        fault=fault,
    )


def beat(subject: Build | ModelVersion, step: str = "quantize", share: float = 0.5) -> Progress:
    return Progress(
        subject=str(subject.pk),
        subject_kind="build" if isinstance(subject, Build) else "version",
        attempt=subject.attempt,
        step=step,
        share=share,
        worker="w1",
    )


@pytest.fixture
def checking(app: App, actor: Actor) -> ModelVersion:
    model = Model.objects.create(tenant=app.tenant, app=app, name="minilm")
    return put_single(model=model, data=[b"graph"], size=5, actor=actor)


@pytest.fixture
def version(checking: ModelVersion) -> ModelVersion:
    result = InspectResult(version=str(checking.pk), attempt=1, status="ready", facts=FACTS)
    assert apply_inspect_result(result=result)
    OutboxMessage.objects.all().delete()
    checking.refresh_from_db()
    return checking


def only_build(**filters: Any) -> Build:
    return Build.objects.get(**filters)


def tried(tailoring: Tailoring) -> list[dict[str, Any]]:
    """What became of the builds; what was left out and planned once more apart."""
    return [entry for entry in fresh(tailoring).history if entry["build"]]


def outcomes(tailoring: Tailoring) -> list[str]:
    return [entry["outcome"] for entry in fresh(tailoring).history if entry["outcome"] != "left_out"]


def fresh(tailoring: Tailoring) -> Tailoring:
    return Tailoring.objects.select_related("build").get(pk=tailoring.pk)


# Checking a version


def test_a_version_passes(version: ModelVersion) -> None:
    assert version.state == "ready"
    assert msgspec.convert(version.facts, ModelFacts) == FACTS
    assert version.lineage["source_digest"] == version.source_digest


def test_a_refusal_names_code_and_sentence(checking: ModelVersion) -> None:
    result = InspectResult(
        version=str(checking.pk), attempt=1, status="refused", code="not_onnx", message="Export it again."
    )
    inspect_result(to_wire(result))
    checking.refresh_from_db()
    assert (checking.state, checking.refusal_code, checking.refusal_message) == (
        "refused",
        "not_onnx",
        "Export it again.",
    )
    assert not apply_inspect_result(result=result)


def test_a_failed_check_is_repeated_and_then_our_fault(checking: ModelVersion, actor: Actor) -> None:
    for attempt in range(1, lifecycle.MAX_STARTS + 1):
        result = InspectResult(
            version=str(checking.pk), attempt=attempt, status="failed", message="disk full"
        )
        apply_progress(progress=beat(checking))
        assert apply_inspect_result(result=result)
        checking.refresh_from_db()
    assert (checking.state, checking.refusal_code) == ("refused", "check_failed")
    assert "disk full" in checking.refusal_message
    again = recheck_version(version=checking, actor=actor)
    assert (again.state, again.attempt, again.starts) == ("checking", lifecycle.MAX_STARTS + 1, 0)
    with pytest.raises(WrongState):
        recheck_version(version=again, actor=actor)


# One class, one build


def test_request_build_ready(version: ModelVersion, actor: Actor) -> None:
    (tailoring,) = request_builds(version=version, targets=[target()], actor=actor)
    build = only_build()
    assert (build.state, build.attempt, build.precision) == ("building", 1, "int8-dynamic")
    message = OutboxMessage.objects.get()
    assert (message.task, message.queue) == (TASK_BUILD, "tailor.small")
    request = from_wire(message.payload, BuildRequest)
    assert (request.build, request.attempt) == (str(build.pk), 1)
    assert (request.recipe.precision, request.facts, request.floors) == ("int8-dynamic", FACTS, [0.9])
    assert request.source.files[0].path == "model.onnx"

    progress(to_wire(beat(build)))
    build_result(to_wire(built(build)))
    build.refresh_from_db()
    tailoring = fresh(tailoring)
    assert (build.state, tailoring.state, tailoring.build) == ("ready", "ready", build)
    assert (build.worker, build.share, build.lease_expires_at) == ("w1", 1.0, None)
    (entry,) = tried(tailoring)
    assert entry["outcome"] == "accepted"
    assert entry["quality"]["value"] == 0.99
    assert entry["size_bytes"] == 10 * MB


def test_the_manifest_says_what_was_built(version: ModelVersion, actor: Actor) -> None:
    request_builds(version=version, targets=[target()], actor=actor)
    build = only_build()
    apply_build_result(result=built(build))
    build = selectors.build(version.tenant, build.pk)
    manifest = decode_manifest(bytes(build.artifact.manifest))
    assert manifest.encode() == bytes(build.artifact.manifest)
    assert (manifest.build, manifest.model, manifest.version) == (str(build.pk), "minilm", 1)
    assert manifest.golden.min_cosine_ppm == 987_654
    assert manifest.quality.value_ppm == 990_000
    assert manifest.latency_p50_us == 3250
    assert (manifest.source_digest, manifest.recipe_digest) == (version.source_digest, build.recipe_digest)
    assert selectors.blob_claimed(version.tenant, "b" * 64)
    assert not selectors.blob_claimed(version.tenant, "a" * 64)  # what is stored is the compressed chunk


def test_asking_again_changes_nothing_and_a_changed_class_is_planned_anew(
    version: ModelVersion, actor: Actor
) -> None:
    (first,) = request_builds(version=version, targets=[target()], actor=actor)
    (again,) = request_builds(version=version, targets=[target()], actor=actor)
    assert (again.pk, OutboxMessage.objects.count()) == (first.pk, 1)
    apply_build_result(result=built(only_build()))
    (changed,) = request_builds(
        version=version, targets=[target(version=2, precisions=["fp32"])], actor=actor
    )
    assert (changed.pk, changed.state) == (first.pk, "building")
    assert Build.objects.count() == 2


def test_builds_need_a_ready_version(checking: ModelVersion, actor: Actor) -> None:
    with pytest.raises(WrongState):
        request_builds(version=checking, targets=[target()], actor=actor)


def test_an_unknown_build_or_version_is_ignored(version: ModelVersion) -> None:
    missing = Build(id=uuid.uuid4(), attempt=1)
    assert not apply_build_result(result=built(missing))
    assert not apply_progress(progress=beat(missing))
    strange = msgspec.structs.replace(beat(missing), subject="no-uuid")
    assert not apply_progress(progress=strange)


# Several classes, several candidates


def test_equal_plans_share_a_build_and_each_floor_is_its_own(version: ModelVersion, actor: Actor) -> None:
    strict, lax = request_builds(
        version=version, targets=[target("strict", 0.95), target("lax", 0.5)], actor=actor
    )
    build = only_build()
    assert fresh(strict).build == fresh(lax).build == build
    request = from_wire(OutboxMessage.objects.get().payload, BuildRequest)
    assert request.floors == [0.5, 0.95]  # of all that wait, in one message
    apply_build_result(result=built(build, quality=0.8))
    build.refresh_from_db()
    assert build.state == "ready"
    assert fresh(lax).state == "ready"
    moved = fresh(strict)
    assert moved.state == "building"
    assert moved.build is not None
    assert moved.build.plan["predicted_quality"] > 0.95
    assert moved.build != build
    assert outcomes(moved) == ["rejected", "replanned"]
    assert tried(moved)[0]["reason"] == "cosine 0.8000 on 100 of 300 samples is below the floor 0.95"


def test_rejected_replanned_once_then_careful_then_impossible(version: ModelVersion, actor: Actor) -> None:
    (tailoring,) = request_builds(
        version=version, targets=[target(floor=0.98, precisions=["int4", "int8"])], actor=actor
    )
    expected = []
    for quality in (0.96, 0.965, 0.97):
        build = only_build(state="building")
        expected.append(build.plan["predicted_quality"])
        apply_build_result(result=built(build, quality=quality))
    tailoring = fresh(tailoring)
    assert (tailoring.state, tailoring.build, tailoring.replans) == ("impossible", None, 1)
    assert outcomes(tailoring) == ["rejected", "replanned", "rejected", "rejected"]
    assert expected == sorted(expected)  # the corrected plan is more careful, the last one most
    assert len({entry["recipe_digest"] for entry in tried(tailoring)}) == 3
    for figure in ("0.9600", "0.9650", "0.9700"):
        assert f"cosine {figure} on" in tailoring.reason
    assert tailoring.nearest is not None
    assert (tailoring.nearest["budget"], tailoring.nearest["needed"]) == ("floor", 0.97)
    assert {build.state for build in Build.objects.all()} == {"rejected"}
    assert TenantBlob.objects.count() == 0


def test_the_corrected_plan_is_taken_when_it_holds(version: ModelVersion, actor: Actor) -> None:
    (tailoring,) = request_builds(
        version=version, targets=[target(floor=0.98, precisions=["int4", "int8"])], actor=actor
    )
    first = only_build()
    apply_build_result(result=built(first, quality=0.96))
    corrected = only_build(state="building")
    assert corrected.plan["predicted_size_bytes"] > first.plan["predicted_size_bytes"]
    assert any("corrected by 1 measured build" in reason for reason in corrected.plan["reasons"])
    apply_build_result(result=built(corrected, quality=0.981))
    tailoring = fresh(tailoring)
    assert (tailoring.state, tailoring.build, tailoring.nearest) == ("ready", corrected, None)
    assert tailoring.plan == corrected.plan
    assert not Build.objects.filter(state="building").exists()  # the careful one was not needed


def test_no_plan_at_all_names_memory(version: ModelVersion, actor: Actor) -> None:
    (tailoring,) = request_builds(version=version, targets=[target(memory_bytes=MB)], actor=actor)
    assert tailoring.state == "impossible"
    assert "memory" in tailoring.reason
    assert [entry["outcome"] for entry in tailoring.history] == ["left_out"] * 3
    assert tailoring.nearest is not None
    assert (tailoring.nearest["budget"], tailoring.nearest["allowed"]) == ("memory", MB)
    assert Build.objects.count() == 0


def test_a_rejected_build_serves_a_class_with_a_lower_floor(version: ModelVersion, actor: Actor) -> None:
    request_builds(version=version, targets=[target("strict", 0.95)], actor=actor)
    build = only_build()
    apply_build_result(result=built(build, quality=0.8))
    messages = OutboxMessage.objects.count()
    (lax,) = request_builds(version=version, targets=[target("lax", 0.5)], actor=actor)
    build.refresh_from_db()
    assert (lax.state, lax.build, build.state) == ("ready", build, "ready")
    assert OutboxMessage.objects.count() == messages
    assert selectors.blob_claimed(version.tenant, "b" * 64)


def test_too_big_for_the_class_is_rejected(version: ModelVersion, actor: Actor) -> None:
    (tailoring,) = request_builds(version=version, targets=[target()], actor=actor)
    apply_build_result(result=built(only_build(), size_bytes=1001 * MB))
    assert "storage budget" in tried(tailoring)[0]["reason"]


def test_the_models_fault_leads_to_the_next_candidate(version: ModelVersion, actor: Actor) -> None:
    (tailoring,) = request_builds(version=version, targets=[target()], actor=actor)
    build = only_build()
    apply_build_result(result=failed(build))
    build.refresh_from_db()
    assert (build.state, build.error_code, build.fault) == ("failed", "unsupported_operator", "model")
    moved = fresh(tailoring)
    assert moved.build is not None
    assert moved.build.precision == "fp16"
    assert (tried(moved)[0]["outcome"], tried(moved)[0]["code"]) == ("failed", "unsupported_operator")
    assert moved.replans == 0  # nothing was measured that a new plan could know


def test_our_fault_is_tried_again_first(version: ModelVersion, actor: Actor) -> None:
    request_builds(version=version, targets=[target()], actor=actor)
    build = only_build()
    for attempt in range(1, lifecycle.MAX_STARTS):
        apply_build_result(result=failed(build, "system"))
        build.refresh_from_db()
        assert (build.state, build.attempt) == ("building", attempt + 1)
    apply_build_result(result=failed(build, "system"))
    build.refresh_from_db()
    assert (build.state, build.fault) == ("failed", "system")


# Attempts and leases


def test_stale_attempts_are_ignored(
    version: ModelVersion, actor: Actor, blobs: BlobStore, django_capture_on_commit_callbacks: Any
) -> None:
    request_builds(version=version, targets=[target()], actor=actor)
    old = only_build()
    apply_progress(progress=beat(old))
    with django_capture_on_commit_callbacks(execute=True):
        assert sweep(now=timezone.now() + timedelta(seconds=LEASE_S + 1))["retried"] == 1
    build = only_build()
    assert (build.attempt, build.step) == (2, "")
    assert blobs.exists(cancel_key(str(old.pk), 1))  # should attempt 1 still run, it stops
    assert not apply_progress(progress=beat(old))
    with django_capture_on_commit_callbacks(execute=True):
        assert not apply_build_result(result=built(old))
    assert not blobs.exists(cancel_key(str(old.pk), 1))  # it has stopped
    assert only_build().state == "building"
    assert apply_build_result(result=built(build))
    assert not apply_build_result(result=built(build))
    assert only_build().state == "ready"


def test_progress_extends_the_lease(version: ModelVersion, actor: Actor) -> None:
    now = timezone.now()
    request_builds(version=version, targets=[target()], actor=actor, now=now)
    for minute in range(1, 5):
        apply_progress(progress=beat(only_build()), now=now + timedelta(seconds=LEASE_S * 0.9 * minute))
    assert sweep(now=now + timedelta(seconds=LEASE_S * 4)).get("retried") is None
    build = only_build()
    assert (build.starts, build.attempt, build.started_at) == (
        1,
        1,
        now + timedelta(seconds=LEASE_S * 0.9),
    )


def test_a_build_lost_again_and_again_is_our_fault(version: ModelVersion, actor: Actor) -> None:
    now = timezone.now()
    (tailoring,) = request_builds(
        version=version, targets=[target(precisions=["int8-dynamic"])], actor=actor, now=now
    )
    for _ in range(lifecycle.MAX_STARTS):
        apply_progress(progress=beat(only_build()), now=now)
        now += timedelta(seconds=LEASE_S + 1)
        sweep(now=now)
    build = only_build()
    assert (build.state, build.fault, build.error_code) == ("failed", "system", "worker_lost")
    assert fresh(tailoring).state == "impossible"


def test_without_any_worker_nothing_is_given_up_and_attempts_get_rare(
    version: ModelVersion, actor: Actor
) -> None:
    now = timezone.now()
    request_builds(version=version, targets=[target()], actor=actor, now=now)
    for _ in range(400):  # more than half a day, looked at every two minutes
        now += timedelta(seconds=LEASE_S + 1)
        sweep(now=now)
    build = only_build()
    assert (build.state, build.starts) == ("building", 0)
    assert 5 < build.attempt < 30


def test_work_that_waits_its_turn_keeps_its_attempt(version: ModelVersion, actor: Actor) -> None:
    now = timezone.now()
    request_builds(version=version, targets=[target("a")], actor=actor, now=now)
    first = only_build()
    request_builds(
        version=version,
        targets=[target("b", precisions=["fp32"])],
        actor=actor,
        now=now + timedelta(seconds=1),
    )
    second = only_build(precision="fp32")
    later = now + timedelta(seconds=LEASE_S + 2)
    apply_progress(progress=beat(first), now=later)
    assert sweep(now=later)["still_waiting"] == 1
    second.refresh_from_db()
    assert second.attempt == 1

    # But if later work has begun, the message of the earlier was lost.
    Build.objects.filter(pk=first.pk).update(step="", lease_expires_at=later)
    apply_progress(progress=beat(second), now=later)
    assert sweep(now=later)["retried"] == 1
    first.refresh_from_db()
    assert first.attempt == 2


def test_at_start_what_had_begun_is_lost_at_once(version: ModelVersion, actor: Actor) -> None:
    request_builds(version=version, targets=[target("a")], actor=actor)
    request_builds(version=version, targets=[target("b", precisions=["fp32"])], actor=actor)
    apply_progress(progress=beat(only_build(precision="int8-dynamic")))
    assert expire_leases(now=timezone.now()) == 1
    assert sweep(now=timezone.now())["retried"] == 1


def test_a_lost_check_is_repeated(checking: ModelVersion) -> None:
    apply_progress(progress=beat(checking))
    assert sweep(now=timezone.now() + timedelta(seconds=LEASE_S + 1))["retried"] == 1
    checking.refresh_from_db()
    assert (checking.state, checking.attempt) == ("checking", 2)


# Cancel and retry


def test_cancel_then_retry(
    version: ModelVersion, actor: Actor, blobs: BlobStore, django_capture_on_commit_callbacks: Any
) -> None:
    (tailoring,) = request_builds(version=version, targets=[target()], actor=actor)
    build = only_build()
    with django_capture_on_commit_callbacks(execute=True):
        cancel_build(build=build, actor=actor)
    assert blobs.exists(cancel_key(str(build.pk), 1))
    stopped = fresh(tailoring)
    assert stopped.state == "impossible"
    assert "cancelled by user:tester" in stopped.reason
    late = BuildResult(build=str(build.pk), attempt=1, status="cancelled")
    assert not apply_build_result(result=late)
    with pytest.raises(WrongState):
        cancel_build(build=build, actor=actor)

    retry_build(build=build, actor=actor)
    build.refresh_from_db()
    assert (build.state, build.attempt) == ("building", 2)
    assert fresh(tailoring).state == "building"
    apply_build_result(result=built(build))
    assert fresh(tailoring).state == "ready"
    with pytest.raises(WrongState):
        retry_build(build=build, actor=actor)


def test_a_cancelled_result_nobody_asked_for_is_retried(version: ModelVersion, actor: Actor) -> None:
    request_builds(version=version, targets=[target()], actor=actor)
    apply_build_result(result=BuildResult(build=str(only_build().pk), attempt=1, status="cancelled"))
    assert (only_build().state, only_build().attempt) == ("building", 2)


def test_the_history_keeps_every_figure(version: ModelVersion, actor: Actor) -> None:
    (tailoring,) = request_builds(version=version, targets=[target(floor=0.95)], actor=actor)
    apply_build_result(result=built(only_build(), quality=0.9))
    before = copy.deepcopy(tried(tailoring))
    apply_build_result(result=built(only_build(state="building"), quality=0.99))
    after = tried(tailoring)
    assert after[:1] == before
    assert [entry["outcome"] for entry in after] == ["rejected", "accepted"]
    assert after[0]["description"] == "int8-dynamic"
