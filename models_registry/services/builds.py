"""Writes of builds: ask for them, take over what the worker made, cancel, try again."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime

import msgspec
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from device_agent.protocol.canonical import sha256_hex
from models_registry import lifecycle, planning
from models_registry.blobs import blobs
from models_registry.errors import WrongState
from models_registry.manifests import manifest_of
from models_registry.models import Artifact, Build, ModelVersion, Tailoring
from models_registry.selectors import as_id
from models_registry.services.leases import apply_progress, count_start
from models_registry.services.tailorings import (
    ask_to_stop,
    claim_blobs,
    left_out,
    lock_builds,
    seek_build,
    settle,
    start_all,
    start_build,
    verdict_for,
)
from quantize_worker.contract import BuildResult, ModelFacts, TailorPlan, Target, cancel_key
from tenancy.actor import Actor
from tenancy.audit import record

__all__ = ["apply_build_result", "apply_progress", "cancel_build", "request_builds", "retry_build"]

_State = Build.State


Latencies = Mapping[str, Mapping[str, float]]  # ms that devices reported, by class and build id


@transaction.atomic
def request_builds(
    *,
    version: ModelVersion,
    targets: list[Target],
    actor: Actor,
    replan: bool = False,
    learned: bool | None = None,
    latencies: Latencies | None = None,
    now: datetime | None = None,
) -> list[Tailoring]:
    """Tailor a version to device classes.

    Asking again for an unchanged class changes nothing; a changed class is planned anew. That
    more devices have reported their speed is no change; ``replan`` asks for their figures.

    Args:
        targets: snapshots of the classes.
        replan: plan unchanged classes anew too, with what devices and builds have measured.
        learned: have the rounding of INT4 weights learned; None: as it was asked for before.
        latencies: what devices have reported; only plans that are made now take them.

    Raises:
        WrongState: if the version is not ready.
    """
    now = now or timezone.now()
    version = lock_builds(version.pk)
    if version.state != ModelVersion.State.READY:
        raise WrongState(
            f"{version} is {version.state}; builds need a version that is ready.", state=version.state
        )
    facts = planning.facts_of(version)
    reported = latencies or {}
    planned = [
        _tailoring(version, facts, target, dict(reported.get(target.name, {})), replan, learned, now)
        for target in targets
    ]
    start_all(builds=[build for _, build in planned], now=now)
    record(
        tenant=version.tenant,
        actor=actor,
        action="build.request",
        subject_type="version",
        subject=version.pk,
        after={"classes": [target.name for target in targets], "replan": replan, "learned": learned},
    )
    return [tailoring for tailoring, _ in planned]


def _tailoring(
    version: ModelVersion,
    facts: ModelFacts,
    target: Target,
    latencies: dict[str, float],
    replan: bool,
    learned: bool | None,
    now: datetime,
) -> tuple[Tailoring, Build | None]:
    """The class's tailoring, and a build that is to be started for it."""
    target_digest = planning.digest_of(target)
    known = Tailoring.objects.select_for_update().filter(version=version, class_name=target.name).first()
    before = known.learned if known is not None else False
    learned = before if learned is None else learned
    if known is not None and known.target_digest == target_digest and learned == before and not replan:
        return known, None
    measured = planning.measured_builds(version, latencies)
    planned = planning.plan(facts, target, measured, learned=learned)
    outcome = planned.outcome
    values = {
        "target": msgspec.to_builtins(target),
        "target_digest": target_digest,
        "candidates": msgspec.to_builtins(outcome.candidates),
        "reason": outcome.impossible,
        "nearest": msgspec.to_builtins(outcome.nearest),
        "position": 0,
        "replans": 0,
        "learned": learned,
        "latencies": latencies,
        "history": [left_out(rejection, now) for rejection in outcome.rejections],
        "build": None,
        "state": Tailoring.State.BUILDING,
        "planned_at": now,
        "planned_ms": planned.took_ms,
        "front": None,
    }
    if known is not None:
        lifecycle.next_state("tailoring", known.state, "replan")
    tailoring, _ = Tailoring.objects.update_or_create(
        version=version, class_name=target.name, defaults={**values, "tenant_id": version.tenant_id}
    )
    tailoring.version = version
    return tailoring, seek_build(tailoring=tailoring, now=now)


@transaction.atomic
def apply_build_result(*, result: BuildResult, now: datetime | None = None) -> bool:
    """Take over what the worker made, and decide for each class that waits for it.

    Returns:
        False if the attempt is stale or the build has ended: the result is ignored.
    """
    now = now or timezone.now()
    build = _current(result)
    if build is None:
        marker = cancel_key(result.build, result.attempt)
        transaction.on_commit(lambda: blobs().delete(marker), robust=True)
        return False
    if result.status == "built" and result.artifact is not None and result.quality is not None:
        _take_over(build, result, now)
    elif result.fault != "model" and lifecycle.may_start_again(count_start(build)):
        return start_build(build=build, event="retry", now=now)
    else:
        fail_build(
            build=build,
            code=result.code or "worker_failed",
            message=result.message or "The worker ended without a result.",
            fault=result.fault or "system",
            now=now,
        )
    return True


def _current(result: BuildResult) -> Build | None:
    """The build that the result is for, locked; None if the attempt is stale or the build has ended."""
    known = Build.objects.filter(pk=as_id(result.build)).only("version_id").first()
    if known is None:
        return None
    current = _locked(known.version_id).filter(state=_State.BUILDING, attempt=result.attempt)
    return current.filter(pk=known.pk).first()


def _locked(version_id: uuid.UUID) -> QuerySet[Build]:
    lock_builds(version_id)
    return Build.objects.select_for_update(of=("self",)).select_related("version__model", "tenant")


def _take_over(build: Build, result: BuildResult, now: datetime) -> None:
    assert result.artifact is not None
    assert result.quality is not None
    unverified = bool((build.version.facts or {}).get("synthetic_samples"))
    body = manifest_of(
        build=build,
        plan=msgspec.convert(build.plan, TailorPlan),
        artifact=result.artifact,
        quality=result.quality,
        unverified=unverified,
    ).encode()
    build.artifact = Artifact.objects.update_or_create(
        build=build,
        defaults={
            "tenant_id": build.tenant_id,
            "manifest": body,
            "manifest_sha256": sha256_hex(body),
            "size_bytes": result.artifact.size_bytes,
            "download_bytes": result.artifact.download_bytes,
            "memory_bytes": result.artifact.memory_bytes,
            "latency_p50_ms": result.artifact.latency_p50_ms,
        },
    )[0]
    build.quality = msgspec.to_builtins(result.quality)
    waiting = waiting_for(build)
    accepted = not waiting or any(verdict_for(tailoring=each, build=build).accepted for each in waiting)
    event = "accept" if accepted else "reject"
    _end(build, event, now, quality=build.quality, unverified=unverified, share=1.0)
    if accepted:
        claim_blobs(build)
    _pass_on(build, waiting, now)


def waiting_for(build: Build) -> list[Tailoring]:
    """The classes that wait for this build, locked in a fixed order."""
    waiting = Tailoring.objects.select_for_update(of=("self",)).select_related("version")
    return list(waiting.filter(build=build, state=Tailoring.State.BUILDING).order_by("pk"))


def _pass_on(build: Build, waiting: list[Tailoring], now: datetime) -> None:
    following = []
    for tailoring in waiting:
        settle(tailoring=tailoring, build=build, now=now)
        following.append(seek_build(tailoring=tailoring, now=now))
    start_all(builds=following, now=now)


def _end(build: Build, event: str, now: datetime, **changes: object) -> None:
    changes |= {"state": lifecycle.next_state("build", build.state, event), "finished_at": now}
    changes |= {"lease_expires_at": None}
    moved = Build.objects.filter(pk=build.pk, attempt=build.attempt, state=build.state).update(**changes)
    if not moved:
        raise RuntimeError(f"build {build.pk} changed although it was locked")
    for name, value in changes.items():
        setattr(build, name, value)


@transaction.atomic
def fail_build(*, build: Build, code: str, message: str, fault: str, now: datetime) -> None:
    """End a build that cannot be made; the classes that wait for it take their next candidate."""
    _end(build, "fail", now, error_code=code[:40], error_message=message, fault=fault)
    _pass_on(build, waiting_for(build), now)


@transaction.atomic
def cancel_build(*, build: Build, actor: Actor, now: datetime | None = None) -> Build:
    """Stop a build. Classes that wait for it are left without one until it is tried again.

    Raises:
        WrongState: if it has ended already.
    """
    now = now or timezone.now()
    build = _locked(build.version_id).get(pk=build.pk)
    before = str(build.state)
    if before not in lifecycle.sources("build", "cancel"):
        raise WrongState(f"The build is {before}: there is nothing to cancel.", state=before)
    reason = f"The {build.precision} build was cancelled by {actor}; try it again to go on."
    _end(build, "cancel", now, error_code="cancelled", error_message=reason)
    ask_to_stop(build)
    for tailoring in waiting_for(build):
        Tailoring.objects.filter(pk=tailoring.pk, state=Tailoring.State.BUILDING).update(
            state=lifecycle.next_state("tailoring", tailoring.state, "exhaust"), reason=reason
        )
    record(
        tenant=build.tenant,
        actor=actor,
        action="build.cancel",
        subject_type="build",
        subject=build.pk,
        before={"state": before},
        after={"state": str(build.state)},
    )
    return build


@transaction.atomic
def retry_build(*, build: Build, actor: Actor, now: datetime | None = None) -> Build:
    """Try a failed or cancelled build again, for the classes that have no other.

    Raises:
        WrongState: if it neither failed nor was cancelled.
    """
    now = now or timezone.now()
    build = _locked(build.version_id).get(pk=build.pk)
    before = str(build.state)
    if before not in lifecycle.sources("build", "start"):
        raise WrongState(
            f"The build is {before}; only a failed or cancelled one can be tried again.", state=before
        )
    for tailoring in _stranded(build):
        Tailoring.objects.filter(pk=tailoring.pk, state=Tailoring.State.IMPOSSIBLE).update(
            state=lifecycle.next_state("tailoring", tailoring.state, "resume"),
            build=build,
            reason="",
            position=_position_of(tailoring, build),
        )
    start_build(build=build, event="start", now=now)
    record(
        tenant=build.tenant,
        actor=actor,
        action="build.retry",
        subject_type="build",
        subject=build.pk,
        before={"state": before},
        after={"state": str(build.state)},
    )
    return build


def _stranded(build: Build) -> list[Tailoring]:
    """Classes without a build that had this one among their candidates."""
    impossible = Tailoring.objects.select_for_update().filter(
        version=build.version, state=Tailoring.State.IMPOSSIBLE
    )
    return [each for each in impossible.order_by("pk") if _position_of(each, build) is not None]


def _position_of(tailoring: Tailoring, build: Build) -> int | None:
    recipe = build.plan["recipe"]
    places = [i for i, candidate in enumerate(tailoring.candidates) if candidate["recipe"] == recipe]
    return places[0] if places else None
