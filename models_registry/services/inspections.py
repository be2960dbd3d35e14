"""The inspection of a version: asked for, answered, asked for again, cancelled."""

from __future__ import annotations

from datetime import datetime

import msgspec
from django.db import transaction
from django.utils import timezone

from models_registry import lifecycle
from models_registry.blobs import blobs
from models_registry.errors import WrongState
from models_registry.models import ModelVersion
from models_registry.selectors import as_id
from models_registry.services.batches import cancel_batches, plan_batches, start_batches
from models_registry.services.checks import (
    CANCELLED,
    CHECKED_AGAIN,
    lineage_of,
    refuse,
    refuse_for_our_fault,
    settle_check,
    source_of,
)
from models_registry.services.leases import count_start, new_attempt
from quantize_worker.contract import (
    TASK_INSPECT,
    InspectRequest,
    InspectResult,
    ModelFacts,
    cancel_key,
    queue_for,
    to_wire,
)
from tenancy.actor import Actor
from tenancy.audit import record
from tenancy.outbox import enqueue

_State = ModelVersion.State


@transaction.atomic
def restart_check(*, version: ModelVersion, event: str, now: datetime) -> bool:
    """Hand the version to a worker as a new attempt.

    A version whose batches had begun goes on with those that are not ready.

    Args:
        event: of :data:`models_registry.lifecycle.VERSION`: complete, retry or recheck.

    Returns:
        False if another process was faster.
    """
    source = source_of(version)
    changes = new_attempt(version, queue=queue_for(source), now=now)
    moved = ModelVersion.objects.filter(
        pk=version.pk, attempt=version.attempt, state__in=lifecycle.sources("version", event)
    ).update(state=lifecycle.result("version", event), refusal_code="", refusal_message="", **changes)
    if not moved:
        return False
    if event == "retry":  # the message of the lost attempt may still be queued
        _ask_to_stop(version)
    if version.batches.exists():
        start_batches(version=version, now=now)
        return True
    request = InspectRequest(version=str(version.pk), attempt=changes["attempt"], source=source)
    enqueue(tenant=version.tenant, task=TASK_INSPECT, queue=changes["queue"], payload=to_wire(request))
    return True


def _ask_to_stop(version: ModelVersion) -> None:
    key = cancel_key(str(version.pk), version.attempt)
    transaction.on_commit(lambda: blobs().put_bytes(b"", key=key), robust=True)


@transaction.atomic
def recheck_version(*, version: ModelVersion, actor: Actor, now: datetime | None = None) -> ModelVersion:
    """Check a version again whose check failed on our side, or was cancelled.

    Raises:
        WrongState: if it was refused for a fault of its own, or not at all.
    """
    version.refresh_from_db()
    if version.refusal_code not in CHECKED_AGAIN:
        raise WrongState(
            f"{version} is {version.state}; only a check that failed on our side or was cancelled can be "
            "repeated. Upload a corrected model as a new version.",
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
def cancel_inspection(*, version: ModelVersion, actor: Actor, now: datetime | None = None) -> ModelVersion:
    """Stop checking a version; it can be checked again.

    Raises:
        WrongState: if it is not being checked.
    """
    locked = ModelVersion.objects.select_for_update(of=("self",)).select_related("model", "tenant")
    version = locked.get(pk=version.pk)
    reason = f"The check was cancelled by {actor}; check the version again to go on."
    if not settle_check(version, "cancel", refusal_code=CANCELLED, refusal_message=reason):
        raise WrongState(f"{version} is {version.state}: there is no check to cancel.", state=version.state)
    cancel_batches(version=version, now=now or timezone.now())
    _ask_to_stop(version)
    record(
        tenant=version.tenant,
        actor=actor,
        action="version.cancel",
        subject_type="version",
        subject=version.pk,
        before={"state": _State.CHECKING.value},
        after={"state": _State.REFUSED.value},
    )
    version.refresh_from_db()
    return version


@transaction.atomic
def apply_inspect_result(*, result: InspectResult, now: datetime | None = None) -> bool:
    """Take over what the worker found.

    Returns:
        False if the attempt is stale or the version is not being inspected: the result is ignored.
    """
    now = now or timezone.now()
    version = _current(result)
    if version is None:
        marker = cancel_key(result.version, result.attempt)
        transaction.on_commit(lambda: blobs().delete(marker), robust=True)
        return False
    if result.status == "ready" and result.facts is not None:
        return _take_over(version, result.facts, result.batches, now)
    if result.status == "refused":
        return refuse(version, code=result.code, message=result.message)
    if lifecycle.may_start_again(count_start(version)):
        return restart_check(version=version, event="retry", now=now)
    return refuse_for_our_fault(version=version, message=result.message)


def _current(result: InspectResult) -> ModelVersion | None:
    """The version, locked, if it waits for just this answer: one whose batches began has had it."""
    locked = ModelVersion.objects.select_for_update().filter(pk=as_id(result.version))
    waiting = locked.filter(state=_State.CHECKING, attempt=result.attempt, lease_expires_at__isnull=False)
    return waiting.first()


def _take_over(version: ModelVersion, facts: ModelFacts, batches: list[list[str]], now: datetime) -> bool:
    found = {"facts": msgspec.to_builtins(facts), "lineage": lineage_of(version, facts)}
    if not batches:
        return settle_check(version, "pass", **found)
    ModelVersion.objects.filter(pk=version.pk).update(**found)
    plan_batches(version=version, batches=batches, now=now)
    return True
