"""A version for one device class: take the planner's candidates one after the other.

A candidate is a build, shared by every class whose plan is the same. What became of each is
kept with its figures in ``history``.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import msgspec
from django.db import transaction

from device_agent.protocol.manifest import decode_manifest
from models_registry import lifecycle
from models_registry.acceptance import Verdict, judge
from models_registry.blobs import blobs
from models_registry.manifests import stored_blobs
from models_registry.models import Build, ModelVersion, Tailoring, TenantBlob
from models_registry.services.leases import lease_of_attempt
from models_registry.services.versions import source_of
from quantize_worker.contract import (
    QUEUE_TAILOR,
    TASK_BUILD,
    BuildRequest,
    ModelFacts,
    QualityReport,
    TailorPlan,
    Target,
    cancel_key,
    to_wire,
)
from quantize_worker.plan import Rejection, recipe_digest
from tenancy.outbox import enqueue

_State = Build.State


def lock_builds(version_id: uuid.UUID) -> ModelVersion:
    """Let one transaction at a time change a version's builds and classes.

    Taken before any of their rows is locked, so that no two transactions wait for each other.
    """
    versions = ModelVersion.objects.select_for_update(of=("self",)).select_related("model", "tenant")
    return versions.get(pk=version_id)


def seek_build(*, tailoring: Tailoring, now: datetime) -> None:
    """Settle the tailoring on its next candidate that is good enough, or have it built.

    Runs in the caller's transaction; ``tailoring`` must be locked or new.
    """
    while tailoring.state == Tailoring.State.BUILDING:
        candidates = msgspec.convert(tailoring.candidates, list[TailorPlan])
        if tailoring.position >= len(candidates):
            _move(tailoring, "exhaust", build=None, reason=_why_none(tailoring))
            return
        build = _shared_build(tailoring, candidates[tailoring.position])
        if build.state == _State.PLANNED or _worth_another_try(build):
            start_build(build=build, event="start", now=now)
        if build.state == _State.BUILDING:
            _move(tailoring, "next", build=build)
            return
        settle(tailoring=tailoring, build=build, now=now)


def _worth_another_try(build: Build) -> bool:
    """Cancelled, or failed through no fault of the model: a new request is a new chance."""
    return build.state == _State.CANCELLED or (build.state == _State.FAILED and build.fault != "model")


def _shared_build(tailoring: Tailoring, plan: TailorPlan) -> Build:
    digest = recipe_digest(tailoring.version.source_digest, plan.recipe)
    build, _ = Build.objects.get_or_create(
        version=tailoring.version,
        recipe_digest=digest,
        defaults={
            "tenant_id": tailoring.tenant_id,
            "plan": msgspec.to_builtins(plan),
            "precision": plan.recipe.precision,
        },
    )
    return (
        Build.objects.select_for_update(of=("self",))
        .select_related("version__model", "tenant")
        .get(pk=build.pk)
    )


def settle(*, tailoring: Tailoring, build: Build, now: datetime) -> None:
    """Hold a build that has ended against the class: accept it, or step to the next candidate."""
    verdict = verdict_for(tailoring=tailoring, build=build)
    entry = _entry(build, verdict, now)
    history = [*tailoring.history, entry]
    if verdict.accepted:
        if build.state == _State.REJECTED:
            accept_rejected(build)
        _move(tailoring, "accept", build=build, history=history, reason=verdict.reason)
    else:
        _move(tailoring, "next", build=build, history=history, position=tailoring.position + 1)


def verdict_for(*, tailoring: Tailoring, build: Build) -> Verdict:
    """Whether a build that has ended is good enough for the class."""
    if build.quality is None or build.state in (_State.FAILED, _State.CANCELLED):
        return Verdict(accepted=False, reason=build.error_message or f"the build is {build.state}")
    facts = msgspec.convert(tailoring.version.facts, ModelFacts)
    return judge(
        quality=msgspec.convert(build.quality, QualityReport),
        size_bytes=build.artifact.size_bytes,
        target=msgspec.convert(tailoring.target, Target),
        available=facts.samples,
        generated=facts.synthetic_samples,
    )


def _entry(build: Build, verdict: Verdict, now: datetime) -> dict[str, Any]:
    measured = build.quality is not None and build.state not in (_State.FAILED, _State.CANCELLED)
    outcome = "accepted" if verdict.accepted else "rejected" if measured else str(build.state)
    entry: dict[str, Any] = {
        "build": str(build.pk),
        "precision": build.precision,
        "recipe_digest": build.recipe_digest,
        "outcome": outcome,
        "reason": verdict.reason,
        "code": build.error_code,
        "fault": build.fault,
        "at": now.isoformat(),
    }
    if measured and build.quality is not None:
        entry |= {"quality": build.quality, "size_bytes": build.artifact.size_bytes}
        entry |= {"latency_p50_ms": build.artifact.latency_p50_ms}
    return entry


def left_out(rejection: Rejection, now: datetime) -> dict[str, Any]:
    """A precision that the class accepts but the planner did not consider, for the history."""
    return {
        "build": None,
        "precision": rejection.precision,
        "recipe_digest": "",
        "outcome": "left_out",
        "reason": rejection.reason,
        "code": rejection.code,
        "fault": "",
        "at": now.isoformat(),
    }


def _why_none(tailoring: Tailoring) -> str:
    if all(entry["outcome"] == "left_out" for entry in tailoring.history):
        return tailoring.reason
    fates = [f"{entry['precision']}: {entry['reason']}" for entry in tailoring.history]
    return f"No candidate is good enough. {'; '.join(fates)}"


def _move(tailoring: Tailoring, event: str, **changes: Any) -> None:
    """Carry an event out; the row is locked, the state is checked all the same."""
    moved = Tailoring.objects.filter(
        pk=tailoring.pk, state__in=lifecycle.sources("tailoring", event), position=tailoring.position
    ).update(state=lifecycle.next_state("tailoring", tailoring.state, event), **changes)
    if not moved:
        raise RuntimeError(f"tailoring {tailoring.pk} changed although it was locked")
    tailoring.state = lifecycle.next_state("tailoring", tailoring.state, event)
    for name, value in changes.items():
        setattr(tailoring, name, value)


@transaction.atomic
def start_build(*, build: Build, event: str, now: datetime) -> bool:
    """Hand a build to a worker as a new attempt.

    Args:
        event: of :data:`models_registry.lifecycle.BUILD`: start or retry.

    Returns:
        False if another process was faster.
    """
    attempt = build.attempt + 1
    changes: dict[str, Any] = {
        "state": lifecycle.result("build", event),
        "attempt": attempt,
        "starts": build.starts if event == "retry" else 0,
        "step": "",
        "share": 0.0,
        "worker": "",
        "error_code": "",
        "error_message": "",
        "fault": "",
        "finished_at": None,
        "enqueued_at": now,
        "lease_expires_at": lease_of_attempt(build, now=now),
    }
    moved = Build.objects.filter(
        pk=build.pk, attempt=build.attempt, state__in=lifecycle.sources("build", event)
    ).update(**changes)
    if not moved:
        return False
    if event == "retry":  # the message of the lost attempt may still be queued
        ask_to_stop(build)
    for name, value in changes.items():
        setattr(build, name, value)
    _request(build)
    return True


def _request(build: Build) -> None:
    version = build.version
    request = BuildRequest(
        build=str(build.pk),
        attempt=build.attempt,
        source=source_of(version),
        recipe=msgspec.convert(build.plan, TailorPlan).recipe,
        facts=msgspec.convert(version.facts, ModelFacts),
    )
    enqueue(tenant=build.tenant, task=TASK_BUILD, queue=QUEUE_TAILOR, payload=to_wire(request))


def ask_to_stop(build: Build) -> None:
    """After commit, ask the worker to give up this attempt at its next step."""
    key = cancel_key(str(build.pk), build.attempt)
    transaction.on_commit(lambda: blobs().put_bytes(b"", key=key), robust=True)


def accept_rejected(build: Build) -> None:
    """A class with a lower floor takes a build that others refused: nothing is built again."""
    Build.objects.filter(pk=build.pk, state__in=lifecycle.sources("build", "accept")).update(
        state=lifecycle.result("build", "accept")
    )
    build.state = _State.READY
    claim_blobs(build)


def claim_blobs(build: Build) -> None:
    """Let the tenant's devices download what the build is made of."""
    stored = stored_blobs(decode_manifest(bytes(build.artifact.manifest)))
    TenantBlob.objects.bulk_create(
        (
            TenantBlob(tenant_id=build.tenant_id, sha256=sha256, size_bytes=size, build=build)
            for sha256, size in stored.items()
        ),
        ignore_conflicts=True,
    )
