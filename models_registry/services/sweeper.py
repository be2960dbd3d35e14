"""The periodic sweep: the database is the truth, the queue is a hint.

Work whose lease has expired lost its worker or its message: it gets a new attempt. What began
too often is given up as our fault. Work that still waits behind other work keeps waiting.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet

from models_registry import lifecycle
from models_registry.models import ModelVersion, Release, UploadPart
from models_registry.services.batches import give_up, start_batch
from models_registry.services.builds import fail_build
from models_registry.services.checks import refuse_for_our_fault
from models_registry.services.fronts import draw_fronts
from models_registry.services.inspections import restart_check
from models_registry.services.leases import AnyWork, batching, building, checking, lease_until
from models_registry.services.releases import TASK_SIGN_RELEASE, request_signature
from models_registry.services.tailorings import lock_builds, start_build
from models_registry.services.uploads import drop_staged
from quantize_worker.contract import LEASE_S
from tenancy.actor import SYSTEM
from tenancy.audit import record
from tenancy.errors import BrokerUnavailable
from tenancy.models import OutboxMessage
from tenancy.outbox import drop_sent, relay
from tenancy.services import drop_idempotency_records

log = logging.getLogger(__name__)

UPLOAD_KEPT = timedelta(days=7)
OUTBOX_KEPT = timedelta(days=7)
ANSWERS_KEPT = timedelta(days=7)  # for repeated Idempotency-Keys
BATCH = 500  # rows of each kind in one sweep


def sweep(*, now: datetime) -> dict[str, int]:
    """Bring back lost work, publish waiting messages, draw fronts, drop what was abandoned.

    Returns:
        how many of each were dealt with, by kind.
    """
    counts: Counter[str] = Counter()
    for (version_id,) in list(_expired(checking(), now)):
        counts[_sweep_version(version_id, now)] += 1
    for batch_id, version_id in list(_expired(batching(), now, "version_id")):
        counts[_sweep_batch(batch_id, version_id, now)] += 1
    for build_id, version_id in list(_expired(building(), now, "version_id")):
        counts[_sweep_build(build_id, version_id, now)] += 1
    counts["signatures"] = _sweep_releases(now)
    counts["uploads_dropped"] = _drop_uploads(now)
    counts["messages_dropped"] = drop_sent(before=now - OUTBOX_KEPT)
    counts["answers_dropped"] = drop_idempotency_records(before=now - ANSWERS_KEPT)
    counts["messages_sent"] = _relay()
    counts["fronts_drawn"] = draw_fronts()
    return {kind: count for kind, count in counts.items() if count}


def _expired(work: QuerySet[Any], now: datetime, *columns: str) -> QuerySet[Any, tuple[UUID, ...]]:
    late = work.filter(lease_expires_at__lte=now).order_by("lease_expires_at")
    return late.values_list("pk", *columns)[:BATCH]


@transaction.atomic
def _sweep_version(version_id: UUID, now: datetime) -> str:
    locked = checking().select_for_update(skip_locked=True, of=("self",)).select_related("tenant")
    version = locked.filter(pk=version_id, lease_expires_at__lte=now).first()
    if version is None:
        return "overtaken"
    return _settle_lost(
        version,
        now,
        retry=lambda: restart_check(version=version, event="retry", now=now),
        give_up=lambda: refuse_for_our_fault(version=version, message="the worker was lost again and again"),
    )


@transaction.atomic
def _sweep_batch(batch_id: UUID, version_id: UUID, now: datetime) -> str:
    ModelVersion.objects.select_for_update().get(pk=version_id)
    locked = batching().select_for_update(skip_locked=True, of=("self",)).select_related("version__tenant")
    batch = locked.filter(pk=batch_id, lease_expires_at__lte=now).first()
    if batch is None:
        return "overtaken"
    lost = f"the worker was lost in each of {batch.starts} attempts"
    return _settle_lost(
        batch,
        now,
        retry=lambda: start_batch(batch=batch, event="retry", now=now),
        give_up=lambda: give_up(batch=batch, code="worker_lost", message=lost, now=now),
    )


@transaction.atomic
def _sweep_build(build_id: UUID, version_id: UUID, now: datetime) -> str:
    lock_builds(version_id)
    locked = building().select_for_update(skip_locked=True, of=("self",)).select_related("version", "tenant")
    build = locked.filter(pk=build_id, lease_expires_at__lte=now).first()
    if build is None:
        return "overtaken"
    return _settle_lost(
        build,
        now,
        retry=lambda: start_build(build=build, event="retry", now=now),
        give_up=lambda: fail_build(
            build=build,
            code="worker_lost",
            message=f"The worker was lost in each of {build.starts} attempts. Look at its log and memory.",
            fault="system",
            now=now,
        ),
    )


def _settle_lost(
    work: AnyWork, now: datetime, *, retry: Callable[[], object], give_up: Callable[[], object]
) -> str:
    if work.step == "" and _waits_its_turn(work, now):
        type(work).objects.filter(pk=work.pk, attempt=work.attempt).update(lease_expires_at=lease_until(now))
        return "still_waiting"
    if not lifecycle.may_start_again(work.starts):
        log.error("%s %s: given up after %d starts", type(work).__name__, work.pk, work.starts)
        give_up()
        return "given_up"
    log.warning("%s %s: attempt %d lost, enqueued again", type(work).__name__, work.pk, work.attempt)
    retry()
    return "retried"


def _waits_its_turn(work: AnyWork, now: datetime) -> bool:
    """Whether workers of its queue are busy, none with work that came after: queues keep their order."""
    alive = ~Q(step="") & Q(lease_expires_at__gt=now, queue=work.queue)
    later = alive & Q(enqueued_at__gt=work.enqueued_at)
    return _any(alive) and not _any(later)


def _any(condition: Q) -> bool:
    return any(work.filter(condition).exists() for work in _all_work())


def _all_work() -> tuple[QuerySet[Any], ...]:
    return checking(), batching(), building()


def expire_leases(*, now: datetime) -> int:
    """Where no worker runs for certain: what one had begun is lost at once."""
    begun = ~Q(step="") & Q(lease_expires_at__gt=now)
    return sum(work.filter(begun).update(lease_expires_at=now) for work in _all_work())


def _sweep_releases(now: datetime) -> int:
    """Ask again for signatures whose request was lost on the way."""
    since = now - timedelta(seconds=LEASE_S)
    waiting = Release.objects.filter(state=Release.State.SIGNING, created_at__lt=since)
    asked = 0
    for release in waiting.select_related("tenant").order_by("created_at")[:BATCH]:
        recent = OutboxMessage.objects.filter(task=TASK_SIGN_RELEASE, payload__release=str(release.pk))
        if not recent.filter(Q(sent_at__isnull=True) | Q(created_at__gte=since)).exists():
            request_signature(release=release)
            asked += 1
    return asked


def _drop_uploads(now: datetime) -> int:
    """Uploads that nobody has completed in a week."""
    uploads = ModelVersion.objects.filter(
        state=ModelVersion.State.UPLOADING, created_at__lt=now - UPLOAD_KEPT
    )
    return sum(_drop_upload(version) for version in uploads.select_related("tenant")[:BATCH])


@transaction.atomic
def _drop_upload(version: ModelVersion) -> int:
    keys = list(UploadPart.objects.filter(file__version=version).values_list("key", flat=True))
    deleted, _ = ModelVersion.objects.filter(pk=version.pk, state=ModelVersion.State.UPLOADING).delete()
    if not deleted:
        return 0
    transaction.on_commit(lambda: drop_staged(keys), robust=True)
    record(
        tenant=version.tenant,
        actor=SYSTEM,
        action="version.abandoned",
        subject_type="version",
        subject=version.pk,
    )
    return 1


def _relay() -> int:
    try:
        return relay()
    except BrokerUnavailable as error:
        log.error("%s Messages stay in the outbox.", error.detail)
        return 0
