"""Leases of work that a worker has: how long they last, and progress that extends them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db.models import F
from django.utils import timezone

from models_registry.models import Build, ModelVersion
from models_registry.selectors import as_id
from quantize_worker.contract import LEASE_S, Progress

LONGEST_LEASE_S = 3600.0


def lease_until(now: datetime) -> datetime:
    """When work that a worker has just been heard of counts as lost."""
    return now + timedelta(seconds=LEASE_S)


def lease_of_attempt(work: ModelVersion | Build, *, now: datetime) -> datetime:
    """When an attempt that is enqueued now counts as lost.

    Each attempt that no worker began doubles the lease, up to an hour: no worker is there, and
    one more message would not bring it.
    """
    waited_s = 0.0
    if work.enqueued_at is not None and work.step == "" and work.lease_expires_at is not None:
        waited_s = (now - work.enqueued_at).total_seconds()
    return now + timedelta(seconds=max(LEASE_S, min(2 * waited_s, LONGEST_LEASE_S)))


def apply_progress(*, progress: Progress, now: datetime | None = None) -> bool:
    """Note how far a worker is, and extend its lease.

    Returns:
        False if the attempt is stale or the work has ended: the message is ignored.
    """
    now = now or timezone.now()
    subject = as_id(progress.subject)
    changes: dict[str, Any] = {
        "step": progress.step[:40] or "working",
        "share": min(max(progress.share, 0.0), 1.0),
        "lease_expires_at": lease_until(now),
    }
    if progress.subject_kind == "version":
        checking = ModelVersion.objects.filter(
            pk=subject, state=ModelVersion.State.CHECKING, attempt=progress.attempt
        )
        checking.filter(step="").update(starts=F("starts") + 1)
        return bool(checking.update(**changes))
    building = Build.objects.filter(pk=subject, state=Build.State.BUILDING, attempt=progress.attempt)
    building.filter(step="").update(starts=F("starts") + 1, started_at=now)
    return bool(building.update(worker=progress.worker[:100], **changes))


def count_start(work: ModelVersion | Build) -> int:
    """How often work has begun, an attempt that has a result included: its progress may be lost."""
    if work.step == "":
        type(work).objects.filter(pk=work.pk, attempt=work.attempt, step="").update(starts=F("starts") + 1)
        work.starts += 1
    return work.starts
