"""Batches of candidates: the part of checking a large model that many workers share.

The inspection names the layers of each batch. When all batches are ready, the version's facts
take what they found, in the order of their numbers, so that who was first makes no difference.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from django.db import transaction
from django.utils import timezone

from models_registry import lifecycle
from models_registry.blobs import blobs
from models_registry.models import CandidateBatch, ModelVersion
from models_registry.selectors import as_id
from models_registry.services.checks import (
    MODELS_FAULT,
    refuse,
    refuse_for_our_fault,
    settle_check,
    source_of,
)
from models_registry.services.leases import count_start, new_attempt, note_share
from quantize_worker.contract import (
    TASK_CANDIDATES,
    Blob,
    CandidatesRequest,
    CandidatesResult,
    LayerFacts,
    ModelFacts,
    Source,
    cancel_key,
    queue_for,
    to_wire,
)
from tenancy.outbox import enqueue

_State = CandidateBatch.State
STEP = "candidates"  # of a version whose batches are under way


class Found(msgspec.Struct, kw_only=True, frozen=True):
    """What a worker answered for a batch."""

    layers: list[LayerFacts]
    analysis: Blob | None = None


def plan_batches(*, version: ModelVersion, batches: list[list[str]], now: datetime) -> None:
    """Give each batch of layers to a worker. The version's facts must be stored."""
    CandidateBatch.objects.bulk_create(
        CandidateBatch(tenant_id=version.tenant_id, version=version, number=number, layers=layers)
        for number, layers in enumerate(batches, start=1)
    )
    start_batches(version=version, now=now)


def start_batches(*, version: ModelVersion, now: datetime) -> None:
    """Hand out what is not ready yet; the version waits without a lease of its own."""
    ModelVersion.objects.filter(pk=version.pk).update(
        lease_expires_at=None, step=STEP, step_began_at=now, worker=""
    )
    for batch in version.batches.exclude(state=_State.READY).order_by("number"):
        start_batch(batch=batch, event="start", now=now)
    note_share(version.pk)


@transaction.atomic
def start_batch(*, batch: CandidateBatch, event: str, now: datetime) -> bool:
    """Hand a batch to a worker as a new attempt.

    Args:
        event: of :data:`models_registry.lifecycle.BATCH`: start or retry.

    Returns:
        False if another process was faster.
    """
    source = source_of(batch.version)
    changes = new_attempt(batch, queue=queue_for(source), now=now) | {
        "state": lifecycle.result("batch", event),
        "starts": batch.starts if event == "retry" else 0,
        "error_code": "",
        "error_message": "",
        "finished_at": None,
    }
    moved = CandidateBatch.objects.filter(
        pk=batch.pk, attempt=batch.attempt, state__in=lifecycle.sources("batch", event)
    ).update(**changes)
    if not moved:
        return False
    if event == "retry":  # the message of the lost attempt may still be queued
        _ask_to_stop(batch)
    for name, value in changes.items():
        setattr(batch, name, value)
    _request(batch, source)
    return True


def _request(batch: CandidateBatch, source: Source) -> None:
    version = ModelVersion.objects.select_related("tenant").get(pk=batch.version_id)
    request = CandidatesRequest(
        version=str(version.pk),
        batch=str(batch.pk),
        attempt=batch.attempt,
        source=source,
        facts=msgspec.convert(version.facts, ModelFacts),
        layers=batch.layers,
    )
    enqueue(tenant=version.tenant, task=TASK_CANDIDATES, queue=batch.queue, payload=to_wire(request))


def _ask_to_stop(batch: CandidateBatch) -> None:
    key = cancel_key(str(batch.pk), batch.attempt)
    transaction.on_commit(lambda: blobs().put_bytes(b"", key=key), robust=True)


@transaction.atomic
def apply_candidates_result(*, result: CandidatesResult, now: datetime | None = None) -> bool:
    """Take over what a worker made of a batch; with the last one the version is ready.

    Returns:
        False if the attempt is stale or the batch has ended: the result is ignored.
    """
    now = now or timezone.now()
    batch = _current(result)
    if batch is None:
        marker = cancel_key(result.batch, result.attempt)
        transaction.on_commit(lambda: blobs().delete(marker), robust=True)
        return False
    if result.status == "ready":
        found = msgspec.to_builtins(Found(layers=result.layers, analysis=result.analysis))
        _end(batch, "pass", now, found=found, share=1.0)
        _complete(batch.version)
    elif result.status == "failed" and result.code in MODELS_FAULT:
        _end(batch, "fail", now, error_code=result.code, error_message=result.message)
        cancel_batches(version=batch.version, now=now)
        refuse(batch.version, code=result.code, message=result.message)
    elif lifecycle.may_start_again(count_start(batch)):
        start_batch(batch=batch, event="retry", now=now)
    else:
        give_up(batch=batch, code=result.code or "worker_failed", message=result.message, now=now)
    return True


def _current(result: CandidatesResult) -> CandidateBatch | None:
    """The batch that the result is for, its version locked before it."""
    known = CandidateBatch.objects.filter(pk=as_id(result.batch)).only("version_id").first()
    if known is None:
        return None
    ModelVersion.objects.select_for_update().get(pk=known.version_id)
    current = CandidateBatch.objects.select_for_update(of=("self",)).select_related("version__tenant")
    return current.filter(pk=known.pk, state=_State.BUILDING, attempt=result.attempt).first()


def _complete(version: ModelVersion) -> None:
    """Let the version pass if no batch is missing."""
    batches = list(version.batches.order_by("number"))
    if any(batch.state != _State.READY for batch in batches):
        note_share(version.pk)
        return
    facts = msgspec.convert(version.facts, ModelFacts)
    found = [msgspec.convert(batch.found, Found) for batch in batches]
    settle_check(version, "pass", facts=msgspec.to_builtins(merged(facts, found)))
    version.batches.update(found=None)


def merged(facts: ModelFacts, found: list[Found]) -> ModelFacts:
    """The facts with what the batches found: layers by name, one more analysis each. Pure."""
    layers = {layer.name: layer for each in found for layer in each.layers}
    return msgspec.structs.replace(
        facts,
        layers=[layers.get(layer.name, layer) for layer in facts.layers],
        analysis=[*facts.analysis, *(each.analysis for each in found if each.analysis is not None)],
    )


def give_up(*, batch: CandidateBatch, code: str, message: str, now: datetime) -> None:
    """A batch that cannot be made ends the check: our side is at fault. Its version is locked."""
    _end(batch, "fail", now, error_code=code[:40], error_message=message)
    cancel_batches(version=batch.version, now=now)
    refuse_for_our_fault(version=batch.version, message=f"{batch.number}. batch of layers: {message or code}")


def cancel_batches(*, version: ModelVersion, now: datetime) -> None:
    """Stop what is under way; what is ready stays for the next check."""
    open_states = lifecycle.sources("batch", "cancel")
    for batch in version.batches.filter(state__in=open_states):
        _end(batch, "cancel", now)
        _ask_to_stop(batch)


def _end(batch: CandidateBatch, event: str, now: datetime, **changes: Any) -> None:
    changes |= {"state": lifecycle.next_state("batch", batch.state, event), "finished_at": now}
    changes |= {"lease_expires_at": None}
    ended = CandidateBatch.objects.filter(pk=batch.pk, attempt=batch.attempt, state=batch.state)
    if not ended.update(**changes):
        raise RuntimeError(f"{batch.pk}: a batch changed although its version was locked")
    for name, value in changes.items():
        setattr(batch, name, value)
