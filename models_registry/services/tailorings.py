"""A version for one device class: take the planner's candidates one after the other.

A candidate is a build, shared by every class whose plan is the same. The first that is measured
and not good enough has the class planned once more, with all that was measured; then the most
careful plan is tried. What became of each is kept with its figures in ``history``.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from django.db import transaction

from device_agent.protocol.manifest import decode_manifest
from models_registry import lifecycle, planning
from models_registry.acceptance import Verdict, judge
from models_registry.blobs import blobs
from models_registry.manifests import stored_blobs
from models_registry.models import Build, ModelVersion, Tailoring, TenantBlob
from models_registry.services.checks import source_of
from models_registry.services.leases import new_attempt
from quantize_worker.contract import (
    TASK_BUILD,
    BuildRequest,
    QualityReport,
    Source,
    TailorPlan,
    Target,
    cancel_key,
    queue_for,
    to_wire,
)
from quantize_worker.plan import Nearest, Rejection, describe, recipe_digest
from tenancy.outbox import enqueue

_State = Build.State
MAX_REPLANS = 1  # what a second look at measured figures could add is not worth a third build


def lock_builds(version_id: uuid.UUID) -> ModelVersion:
    """Let one transaction at a time change a version's builds and classes.

    Taken before any of their rows is locked, so that no two transactions wait for each other.
    """
    versions = ModelVersion.objects.select_for_update(of=("self",)).select_related("model", "tenant")
    return versions.get(pk=version_id)


def seek_build(*, tailoring: Tailoring, now: datetime) -> Build | None:
    """Settle the tailoring on its next candidate that is good enough, or have it built.

    Runs in the caller's transaction; ``tailoring`` must be locked or new.

    Returns:
        a build that the caller has to start (:func:`start_all`), once all classes that wait for
        it are known; None if there is none to start.
    """
    while tailoring.state == Tailoring.State.BUILDING:
        candidates = msgspec.convert(tailoring.candidates, list[TailorPlan])
        if tailoring.position >= len(candidates):
            nearest = tailoring.nearest or _nearest_measured(tailoring)
            _move(tailoring, "exhaust", build=None, reason=_why_none(tailoring), nearest=nearest)
            return None
        build = _shared_build(tailoring, candidates[tailoring.position])
        idle = build.state == _State.PLANNED or _worth_another_try(build)
        if idle or build.state == _State.BUILDING:
            _move(tailoring, "next", build=build)
            return build if idle else None
        settle(tailoring=tailoring, build=build, now=now)
    return None


def start_all(*, builds: Iterable[Build | None], now: datetime) -> None:
    """Start what :func:`seek_build` has left to start, each build once."""
    for build in {build.pk: build for build in builds if build is not None}.values():
        start_build(build=build, event="start", now=now)


def _worth_another_try(build: Build) -> bool:
    """Cancelled, or failed through no fault of the model: a new request is a new chance."""
    return build.state == _State.CANCELLED or (build.state == _State.FAILED and build.fault != "model")


def _shared_build(tailoring: Tailoring, plan: TailorPlan) -> Build:
    digest = recipe_digest(tailoring.version.source_digest, plan.recipe)
    known = Build.objects.filter(version=tailoring.version, recipe_digest=digest)
    if not known.exists():
        Build.objects.create(
            tenant_id=tailoring.tenant_id,
            version=tailoring.version,
            recipe_digest=digest,
            plan=msgspec.to_builtins(plan),
            precision=plan.recipe.precision,
            description=describe(plan.recipe, planning.facts_of(tailoring.version)),
        )
    return known.select_for_update(of=("self",)).select_related("version__model", "tenant").get()


def settle(*, tailoring: Tailoring, build: Build, now: datetime) -> None:
    """Hold a build that has ended against the class: accept it, or step to the next candidate."""
    verdict = verdict_for(tailoring=tailoring, build=build)
    history = [*tailoring.history, _entry(build, verdict, now)]
    if verdict.accepted:
        if build.state == _State.REJECTED:
            accept_rejected(build)
        _move(tailoring, "accept", build=build, history=history, reason=verdict.reason)
        return
    _move(tailoring, "next", build=build, history=history, position=tailoring.position + 1)
    if _is_news(tailoring, build) and tailoring.replans < MAX_REPLANS:
        correct(tailoring=tailoring, now=now)


def _is_news(tailoring: Tailoring, build: Build) -> bool:
    """Whether the build was measured after the class was planned."""
    if not _was_measured(build) or build.finished_at is None:
        return False
    return tailoring.planned_at is None or build.finished_at >= tailoring.planned_at


def correct(*, tailoring: Tailoring, now: datetime) -> None:
    """Plan the class once more, with all that was measured on this version's builds.

    What was tried stays at the front of the candidates. After it come the best of the new plan
    and the most careful one; where the new plan has nothing to add, the old one's careful one.
    """
    tried, rest = tailoring.candidates[: tailoring.position], tailoring.candidates[tailoring.position :]
    measured = planning.measured_builds(tailoring.version, tailoring.latencies)
    target = msgspec.convert(tailoring.target, Target)
    facts = planning.facts_of(tailoring.version)
    outcome = planning.plan(facts, target, measured, learned=tailoring.learned).outcome
    fresh = without(msgspec.to_builtins(outcome.candidates), tried)
    careful = fresh[1:] or without(rest, fresh)
    after = [*fresh[:1], *careful[-1:]]
    _move(
        tailoring,
        "correct",
        candidates=[*tried, *after],
        replans=tailoring.replans + 1,
        nearest=msgspec.to_builtins(outcome.nearest),
        history=[*tailoring.history, _replanned(after, len(measured), now)],
    )


def without(plans: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The plans whose recipe none of the others has."""
    recipes = [plan["recipe"] for plan in others]
    return [plan for plan in plans if plan["recipe"] not in recipes]


def verdict_for(*, tailoring: Tailoring, build: Build) -> Verdict:
    """Whether a build that has ended is good enough for the class."""
    if build.quality is None or build.state in (_State.FAILED, _State.CANCELLED):
        return Verdict(accepted=False, reason=build.error_message or f"the build is {build.state}")
    facts = tailoring.version.facts or {}
    return judge(
        quality=msgspec.convert(build.quality, QualityReport),
        size_bytes=build.artifact.size_bytes,
        memory_bytes=build.artifact.memory_bytes,
        target=msgspec.convert(tailoring.target, Target),
        available=facts.get("samples", 0),
        generated=facts.get("synthetic_samples", False),
    )


def _entry(build: Build, verdict: Verdict, now: datetime) -> dict[str, Any]:
    outcome = "accepted" if verdict.accepted else "rejected" if _was_measured(build) else str(build.state)
    entry: dict[str, Any] = {
        "build": str(build.pk),
        "precision": build.precision,
        "description": build.description,
        "recipe_digest": build.recipe_digest,
        "outcome": outcome,
        "reason": verdict.reason,
        "code": build.error_code,
        "fault": build.fault,
        "at": now.isoformat(),
    }
    if build.quality is not None and _was_measured(build):
        entry |= {"quality": build.quality, "size_bytes": build.artifact.size_bytes}
        entry |= {"latency_p50_ms": build.artifact.latency_p50_ms}
    return entry


def _was_measured(build: Build) -> bool:
    return build.quality is not None and build.state not in (_State.FAILED, _State.CANCELLED)


def _replanned(after: list[dict[str, Any]], measured: int, now: datetime) -> dict[str, Any]:
    """That the class was planned once more, for the history."""
    builds = f"{measured} measured build{'' if measured == 1 else 's'}"
    result = "another plan follows" if after else "no other plan is left"
    return {
        "build": None,
        "precision": after[0]["recipe"]["precision"] if after else "",
        "recipe_digest": "",
        "outcome": "replanned",
        "reason": f"Planned once more with the figures of {builds}: {result}.",
        "code": "",
        "fault": "",
        "at": now.isoformat(),
    }


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
    tried = [entry for entry in tailoring.history if entry["outcome"] not in ("left_out", "replanned")]
    fates = [f"{entry.get('description') or entry['precision']}: {entry['reason']}" for entry in tried]
    return f"No candidate is good enough. {'; '.join(fates)}."


def _nearest_measured(tailoring: Tailoring) -> dict[str, Any] | None:
    """The floor at which a build that was tried would do: what is nearest by measurement."""
    target = tailoring.target
    fitting = [
        entry
        for entry in tailoring.history
        if entry["outcome"] == "rejected" and entry["size_bytes"] <= target["storage_bytes"]
    ]
    best = max(fitting, key=lambda entry: entry["quality"]["value"], default=None)
    if best is None:
        return None
    needed = math.floor(best["quality"]["value"] * 1000) / 1000
    allowed = target["quality_floor"]
    name = best["description"] or best["precision"]
    reason = f"At quality {needed:g} instead of {allowed:g} the class could have what was built: {name}."
    return msgspec.to_builtins(Nearest(budget="floor", needed=needed, allowed=allowed, reason=reason))


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
    source = source_of(build.version)
    changes = new_attempt(build, queue=queue_for(source), now=now) | {
        "state": lifecycle.result("build", event),
        "starts": build.starts if event == "retry" else 0,
        "error_code": "",
        "error_message": "",
        "fault": "",
        "finished_at": None,
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
    _request(build, source)
    return True


def _request(build: Build, source: Source) -> None:
    version = build.version
    request = BuildRequest(
        build=str(build.pk),
        attempt=build.attempt,
        source=source,
        recipe=msgspec.convert(build.plan, TailorPlan).recipe,
        facts=planning.facts_of(version),
        floors=_floors_of(build),
    )
    enqueue(tenant=build.tenant, task=TASK_BUILD, queue=build.queue, payload=to_wire(request))


def _floors_of(build: Build) -> list[float]:
    """The quality floors of the classes that wait: where the gate may stop early."""
    waiting = Tailoring.objects.filter(build=build, state=Tailoring.State.BUILDING)
    return sorted({float(target["quality_floor"]) for target in waiting.values_list("target", flat=True)})


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
