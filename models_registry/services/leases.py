"""Leases of work that a worker has: how long they last, and progress that extends them."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Avg, F, QuerySet, Subquery
from django.utils import timezone

from models_registry.models import Build, CandidateBatch, ModelVersion
from models_registry.selectors import as_id
from quantize_worker.contract import LEASE_S, Progress

LONGEST_LEASE_S = 3600.0

AnyWork = ModelVersion | CandidateBatch | Build


def lease_until(now: datetime) -> datetime:
    """When work that a worker has just been heard of counts as lost."""
    return now + timedelta(seconds=LEASE_S)


def lease_of_attempt(work: AnyWork, *, now: datetime) -> datetime:
    """When an attempt that is enqueued now counts as lost.

    Each attempt that no worker began doubles the lease, up to an hour: no worker is there, and
    one more message would not bring it.
    """
    waited_s = 0.0
    if work.enqueued_at is not None and work.step == "" and work.lease_expires_at is not None:
        waited_s = (now - work.enqueued_at).total_seconds()
    return now + timedelta(seconds=max(LEASE_S, min(2 * waited_s, LONGEST_LEASE_S)))


def new_attempt(work: AnyWork, *, queue: str, now: datetime) -> dict[str, Any]:
    """The columns of work that is handed to a worker anew."""
    return {
        "attempt": work.attempt + 1,
        "step": "",
        "step_began_at": None,
        "share": 0.0,
        "worker": "",
        "enqueued_at": now,
        "queue": queue,
        "lease_expires_at": lease_of_attempt(work, now=now),
    }


def checking() -> QuerySet[ModelVersion]:
    """Versions that a worker inspects; while its batches are under way a version is not among them."""
    return ModelVersion.objects.filter(state=ModelVersion.State.CHECKING, lease_expires_at__isnull=False)


def batching() -> QuerySet[CandidateBatch]:
    return CandidateBatch.objects.filter(state=CandidateBatch.State.BUILDING)


def building() -> QuerySet[Build]:
    return Build.objects.filter(state=Build.State.BUILDING)


def apply_progress(*, progress: Progress, now: datetime | None = None) -> bool:
    """Note how far a worker is, and extend its lease.

    Returns:
        False if the attempt is stale or the work has ended: the message is ignored.
    """
    now = now or timezone.now()
    subject = as_id(progress.subject)
    work: QuerySet[Any] = {"version": checking, "batch": batching, "build": building}[progress.subject_kind]()
    current = work.filter(pk=subject, attempt=progress.attempt)
    step = progress.step[:40] or "working"
    begun: dict[str, Any] = {"started_at": now} if progress.subject_kind == "build" else {}
    current.filter(step="").update(starts=F("starts") + 1, **begun)
    current.exclude(step=step).update(step_began_at=now)
    noted = current.update(
        step=step,
        share=min(max(progress.share, 0.0), 1.0),
        worker=progress.worker[:100],
        lease_expires_at=lease_until(now),
    )
    if noted and progress.subject_kind == "batch":
        for version_id in CandidateBatch.objects.filter(pk=subject).values_list("version_id", flat=True):
            note_share(version_id)
    return bool(noted)


def note_share(version_id: uuid.UUID) -> None:
    """A version's share is the mean of its batches' shares, each time taken from all of them."""
    batches = CandidateBatch.objects.filter(version=version_id).order_by().values("version")
    mean = batches.annotate(mean=Avg("share")).values("mean")
    waiting = ModelVersion.objects.filter(
        pk=version_id, state=ModelVersion.State.CHECKING, lease_expires_at__isnull=True
    )
    waiting.update(share=Subquery(mean))


def count_start(work: AnyWork) -> int:
    """How often work has begun, an attempt that has a result included: its progress may be lost."""
    if work.step == "":
        type(work).objects.filter(pk=work.pk, attempt=work.attempt, step="").update(starts=F("starts") + 1)
        work.starts += 1
    return work.starts
