"""Batches of candidates: a large model's check on many workers, fed with the worker's own messages."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from django.utils import timezone

from blobstore import BlobStore
from models_registry import lifecycle
from models_registry.errors import WrongState
from models_registry.models import CandidateBatch, Model, ModelVersion
from models_registry.services.batches import apply_candidates_result
from models_registry.services.inspections import (
    apply_inspect_result,
    cancel_inspection,
    recheck_version,
)
from models_registry.services.leases import apply_progress
from models_registry.services.sweeper import expire_leases, sweep
from models_registry.services.versions import put_single
from models_registry.tasks import candidates_result, inspect_result, progress
from quantize_worker.contract import (
    LARGE_SOURCE_BYTES,
    LEASE_S,
    TASK_CANDIDATES,
    TASK_INSPECT,
    Blob,
    CandidatesRequest,
    CandidatesResult,
    InspectResult,
    ModelFacts,
    Progress,
    cancel_key,
    from_wire,
    to_wire,
)
from tenancy.actor import Actor
from tenancy.models import App, AuditEntry, OutboxMessage
from tests.factories import make_facts

FACTS = make_facts(layers=4, analysis=[Blob(sha256="0" * 64, size_bytes=1)])
NAMES = [layer.name for layer in FACTS.layers]
LATE = timedelta(seconds=LEASE_S + 1)


@pytest.fixture
def checking(app: App, actor: Actor) -> ModelVersion:
    model = Model.objects.create(tenant=app.tenant, app=app, name="large")
    version = put_single(model=model, data=[b"graph"], size=5, actor=actor)
    OutboxMessage.objects.all().delete()
    return version


def inspected(version: ModelVersion, batches: list[list[str]], attempt: int = 1) -> InspectResult:
    return InspectResult(
        version=str(version.pk), attempt=attempt, status="ready", facts=FACTS, batches=batches
    )


@pytest.fixture
def version(checking: ModelVersion) -> ModelVersion:
    """A version whose layers are checked in two batches."""
    inspect_result(to_wire(inspected(checking, [NAMES[:2], NAMES[2:]])))
    checking.refresh_from_db()
    return checking


def batch(number: int) -> CandidateBatch:
    return CandidateBatch.objects.get(number=number)


def done(row: CandidateBatch, **changes: Any) -> CandidatesResult:
    layers = [
        msgspec.structs.replace(layer, reason=f"batch {row.number}")
        for layer in FACTS.layers
        if layer.name in row.layers
    ]
    values: dict[str, Any] = {
        "batch": str(row.pk),
        "attempt": row.attempt,
        "status": "ready",
        "layers": layers,
        "analysis": Blob(sha256=str(row.number) * 64, size_bytes=1),
    }
    return CandidatesResult(**values | changes)


def lost(row: CandidateBatch, code: str = "memory_limit") -> CandidatesResult:
    return done(row, status="failed", layers=[], analysis=None, code=code, message="It went wrong.")


def beat(row: CandidateBatch | ModelVersion, share: float = 0.5, step: str = "candidates") -> Progress:
    return Progress(
        subject=str(row.pk),
        subject_kind="batch" if isinstance(row, CandidateBatch) else "version",
        attempt=row.attempt,
        step=step,
        share=share,
        worker="w1",
    )


def refreshed(version: ModelVersion) -> ModelVersion:
    version.refresh_from_db()
    return version


def test_an_inspection_with_batches_goes_on_as_one_task_each(version: ModelVersion) -> None:
    assert (version.state, version.step, version.lease_expires_at) == ("checking", "candidates", None)
    messages = OutboxMessage.objects.order_by("id")
    assert [(m.task, m.queue) for m in messages] == [(TASK_CANDIDATES, "tailor.small")] * 2
    requests = [from_wire(m.payload, CandidatesRequest) for m in messages]
    assert [request.layers for request in requests] == [NAMES[:2], NAMES[2:]]
    assert all(request.facts == FACTS and request.version == str(version.pk) for request in requests)
    assert [request.batch for request in requests] == [str(batch(1).pk), str(batch(2).pk)]
    assert {(row.state, row.attempt) for row in CandidateBatch.objects.all()} == {("building", 1)}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_with_the_last_batch_the_version_is_ready_in_whatever_order(
    version: ModelVersion, order: tuple[int, int]
) -> None:
    first, second = (batch(number) for number in order)
    candidates_result(to_wire(done(first)))
    assert refreshed(version).state == "checking"
    assert version.share == pytest.approx(0.5)
    candidates_result(to_wire(done(second)))
    facts = msgspec.convert(refreshed(version).facts, ModelFacts)
    assert version.state == "ready"
    assert [layer.name for layer in facts.layers] == NAMES
    assert [layer.reason for layer in facts.layers] == ["batch 1"] * 2 + ["batch 2"] * 2
    assert [blob.sha256[0] for blob in facts.analysis] == ["0", "1", "2"]
    assert not CandidateBatch.objects.exclude(found=None).exists()  # kept once, in the facts


def test_the_share_of_the_version_is_the_mean_of_its_batches(version: ModelVersion) -> None:
    progress(to_wire(beat(batch(1), 0.6)))
    progress(to_wire(beat(batch(2), 0.2)))
    assert refreshed(version).share == pytest.approx(0.4)
    row = batch(1)
    assert (row.step, row.worker, row.starts) == ("candidates", "w1", 1)
    assert row.step_began_at is not None
    began = row.step_began_at
    progress(to_wire(beat(batch(1), 0.7)))
    assert batch(1).step_began_at == began
    progress(to_wire(beat(batch(1), 0.8, "store")))
    assert batch(1).step_began_at != began


def test_stale_and_repeated_messages_change_nothing(version: ModelVersion, blobs: BlobStore) -> None:
    result = done(batch(1))
    assert apply_candidates_result(result=result)
    assert not apply_candidates_result(result=result)
    assert not apply_candidates_result(result=done(batch(2), attempt=7))
    assert not apply_candidates_result(result=done(batch(2), batch="no-uuid"))
    assert not apply_progress(progress=beat(batch(1)))
    assert not apply_inspect_result(result=inspected(version, [NAMES]))  # delivered twice
    assert not apply_progress(progress=beat(version))  # a heartbeat that was late must not give it a lease
    assert CandidateBatch.objects.count() == 2
    assert refreshed(version).lease_expires_at is None


def test_a_lost_batch_is_given_out_again(
    version: ModelVersion, blobs: BlobStore, django_capture_on_commit_callbacks: Any
) -> None:
    apply_progress(progress=beat(batch(1)))
    old = batch(1)
    CandidateBatch.objects.filter(number=2).update(lease_expires_at=timezone.now() + 10 * LATE)
    with django_capture_on_commit_callbacks(execute=True):
        assert sweep(now=timezone.now() + LATE)["retried"] == 1
    again = batch(1)
    assert (again.state, again.attempt, again.starts, again.step) == ("building", 2, 1, "")
    assert blobs.exists(cancel_key(str(old.pk), 1))
    with django_capture_on_commit_callbacks(execute=True):
        assert not apply_candidates_result(result=done(old))
    assert not blobs.exists(cancel_key(str(old.pk), 1))
    assert apply_candidates_result(result=done(again))


def test_a_failed_batch_is_tried_again_and_then_the_check_failed_on_our_side(
    version: ModelVersion, actor: Actor, blobs: BlobStore, django_capture_on_commit_callbacks: Any
) -> None:
    assert apply_candidates_result(result=done(batch(2)))
    for attempt in range(1, lifecycle.MAX_STARTS + 1):
        assert batch(1).attempt == attempt
        apply_progress(progress=beat(batch(1)))
        assert apply_candidates_result(result=lost(batch(1)))
    assert (refreshed(version).state, version.refusal_code) == ("refused", "check_failed")
    assert "It went wrong." in version.refusal_message
    assert (batch(1).state, batch(1).error_code) == ("failed", "memory_limit")

    OutboxMessage.objects.all().delete()
    again = recheck_version(version=version, actor=actor)  # what is done is not done again
    assert (again.state, again.step, again.share) == ("checking", "candidates", pytest.approx(0.5))
    assert [m.task for m in OutboxMessage.objects.all()] == [TASK_CANDIDATES]
    assert (batch(1).state, batch(1).starts, batch(2).state) == ("building", 0, "ready")
    assert apply_candidates_result(result=done(batch(1)))
    assert refreshed(version).state == "ready"


def test_a_batch_lost_again_and_again_ends_the_check(version: ModelVersion) -> None:
    now = timezone.now()
    for _ in range(lifecycle.MAX_STARTS):
        apply_progress(progress=beat(batch(1)), now=now)
        CandidateBatch.objects.filter(number=2).update(lease_expires_at=now + 10 * LATE)
        now += LATE
        sweep(now=now)
    assert (refreshed(version).state, version.refusal_code) == ("refused", "check_failed")
    assert "1. batch" in version.refusal_message
    assert [row.state for row in CandidateBatch.objects.order_by("number")] == ["failed", "cancelled"]


def test_the_models_fault_refuses_it_at_once(
    version: ModelVersion, actor: Actor, blobs: BlobStore, django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        assert apply_candidates_result(result=lost(batch(1), "non_finite_weights"))
    assert (refreshed(version).state, version.refusal_code) == ("refused", "non_finite_weights")
    assert version.refusal_message == "It went wrong."
    assert blobs.exists(cancel_key(str(batch(2).pk), 1))  # the other one is asked to stop
    assert not apply_candidates_result(result=done(batch(2)))
    with pytest.raises(WrongState):
        recheck_version(version=version, actor=actor)


def test_cancel_stops_all_batches_and_a_recheck_goes_on(
    version: ModelVersion, actor: Actor, blobs: BlobStore, django_capture_on_commit_callbacks: Any
) -> None:
    assert apply_candidates_result(result=done(batch(1)))
    with django_capture_on_commit_callbacks(execute=True):
        cancelled = cancel_inspection(version=version, actor=actor)
    assert (cancelled.state, cancelled.refusal_code) == ("refused", "cancelled")
    assert "cancelled by user:tester" in cancelled.refusal_message
    assert blobs.exists(cancel_key(str(batch(2).pk), 1))
    assert (batch(1).state, batch(2).state) == ("ready", "cancelled")
    late = CandidatesResult(batch=str(batch(2).pk), attempt=1, status="cancelled")
    assert not apply_candidates_result(result=late)
    with pytest.raises(WrongState):
        cancel_inspection(version=version, actor=actor)
    assert AuditEntry.objects.filter(action="version.cancel").count() == 1

    recheck_version(version=version, actor=actor)
    assert (batch(2).state, batch(2).attempt) == ("building", 2)
    assert apply_candidates_result(result=done(batch(2)))
    assert refreshed(version).state == "ready"


def test_cancel_before_there_are_batches_checks_from_the_start(
    checking: ModelVersion, actor: Actor, blobs: BlobStore, django_capture_on_commit_callbacks: Any
) -> None:
    apply_progress(progress=beat(checking))
    with django_capture_on_commit_callbacks(execute=True):
        cancel_inspection(version=checking, actor=actor)
    assert blobs.exists(cancel_key(str(checking.pk), 1))
    with django_capture_on_commit_callbacks(execute=True):
        assert not apply_inspect_result(result=inspected(checking, []))
    assert not blobs.exists(cancel_key(str(checking.pk), 1))
    again = recheck_version(version=checking, actor=actor)
    assert (again.state, again.attempt) == ("checking", 2)
    assert OutboxMessage.objects.get().task == TASK_INSPECT
    assert apply_inspect_result(result=inspected(checking, [], attempt=2))
    assert refreshed(checking).state == "ready"


def test_a_cancelled_batch_nobody_asked_for_is_tried_again(version: ModelVersion) -> None:
    assert apply_candidates_result(result=done(batch(1), status="cancelled", layers=[], analysis=None))
    assert (batch(1).state, batch(1).attempt) == ("building", 2)


def test_a_version_with_batches_has_no_lease_that_could_expire(version: ModelVersion) -> None:
    CandidateBatch.objects.update(lease_expires_at=timezone.now() + 10 * LATE)
    assert "retried" not in sweep(now=timezone.now() + 5 * LATE)
    assert refreshed(version).attempt == 1


def test_at_start_begun_batches_are_lost_at_once(version: ModelVersion) -> None:
    apply_progress(progress=beat(batch(1)))
    assert expire_leases(now=timezone.now()) == 1
    assert sweep(now=timezone.now())["retried"] == 1


def test_large_models_go_to_the_large_queue(app: App, actor: Actor) -> None:
    model = Model.objects.create(tenant=app.tenant, app=app, name="huge")
    version = put_single(model=model, data=[b"graph"], size=5, actor=actor)
    version.files.update(size_bytes=LARGE_SOURCE_BYTES)
    OutboxMessage.objects.all().delete()
    assert apply_inspect_result(result=inspected(version, [NAMES]))
    assert OutboxMessage.objects.get().queue == batch(1).queue == "tailor.large"


def test_work_waits_its_turn_behind_work_of_its_own_queue_alone(version: ModelVersion) -> None:
    now = timezone.now()
    CandidateBatch.objects.filter(number=2).update(
        queue="tailor.large", enqueued_at=now, step="candidates", lease_expires_at=now + 10 * LATE
    )
    CandidateBatch.objects.filter(number=1).update(enqueued_at=now - LATE)
    assert sweep(now=now + LATE) == {"retried": 1, "messages_sent": 3}  # its workers are idle: lost
    CandidateBatch.objects.filter(number=2).update(queue="tailor.small", enqueued_at=now - 2 * LATE)
    CandidateBatch.objects.filter(number=1).update(lease_expires_at=now)
    assert sweep(now=now + LATE)["still_waiting"] == 1
