"""How far rollouts have got, for console and API."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from django.db.models import QuerySet
from django.utils import timezone

from fleet.devices.models import Device
from fleet.devices.selectors import class_counts, classes_since, uuid_of
from fleet.errors import Missing
from fleet.rollouts.decision import parse_policy
from fleet.rollouts.models import Assignment, Rollout, RolloutDecision, RolloutTrack
from fleet.rollouts.selectors.evidence import Standing, standing_of
from models_registry.models import Build, Release, ReleaseEntry
from tenancy.models import Tenant


def rollouts_of(tenant: Tenant, *, state: str | None = None) -> QuerySet[Rollout]:
    """A tenant's rollouts, the newest first."""
    rollouts = Rollout.objects.filter(tenant=tenant).select_related("release__version__model")
    rollouts = rollouts.prefetch_related("tracks").order_by("-created_at", "-id")
    return rollouts.filter(state=state) if state else rollouts


def rollout(tenant: Tenant, rollout_id: uuid.UUID | str) -> Rollout:
    """One rollout.

    Raises:
        Missing: ``rollout_not_found``, also when it is another tenant's.
    """
    found = rollouts_of(tenant).filter(pk=uuid_of(rollout_id)).first()
    if found is None:
        raise Missing("There is no such rollout in this tenant. List them first.", code="rollout_not_found")
    return found


@dataclass(frozen=True, slots=True)
class TrackProgress:
    """One class's part in a rollout.

    ``track`` and ``build`` are None for a class that the release has nothing for; ``state`` is
    then ``excluded`` and ``reason`` says why. ``counts`` are assignments by state.
    """

    class_name: str
    state: str
    reason: str
    eligible: int
    admitted: int = 0
    active: int = 0
    failed: int = 0
    pending: int = 0
    group_index: int = -1
    groups: int = 0
    share: float = 0.0
    counts: dict[str, int] | None = None
    standing: Standing | None = None
    track: RolloutTrack | None = None
    build: Build | None = None


def progress(rollout: Rollout, *, now: datetime | None = None) -> list[TrackProgress]:
    """Per class: state, group, counts, eligible devices and the reason in words.

    Classes without a build, and devices in no class, are listed too: nobody is dropped silently.
    """
    policy = parse_policy(rollout.policy)
    moment = now or timezone.now()
    tracks = rollout.tracks.select_related("build").order_by("class_name")
    rows = [
        _of_track(rollout, track, policy.groups, standing_of(rollout, track, policy, now=moment))
        for track in tracks
    ]
    return rows + _excluded(rollout, {row.class_name for row in rows})


def _of_track(
    rollout: Rollout, track: RolloutTrack, groups: tuple[float, ...], standing: Standing
) -> TrackProgress:
    evidence = standing.evidence
    return TrackProgress(
        class_name=track.class_name,
        state=track.state,
        reason=track.reason,
        eligible=evidence.eligible,
        admitted=evidence.admitted,
        active=evidence.active,
        failed=evidence.bad,
        pending=evidence.pending + evidence.late,
        group_index=track.group_index,
        groups=len(groups),
        share=groups[track.group_index] if track.group_index >= 0 else 0.0,
        counts=dict.fromkeys(Assignment.State.values, 0) | standing.states,
        standing=standing,
        track=track,
        build=track.build,
    )


def _excluded(rollout: Rollout, on_track: set[str]) -> list[TrackProgress]:
    reasons = dict(
        ReleaseEntry.objects.filter(release_id=rollout.release_id).values_list("class_name", "reason")
    )
    counts = class_counts(rollout.tenant)
    first_saved = classes_since(rollout.tenant)
    rows = []
    for name in sorted({*reasons, *counts} - on_track):
        if name == "":
            reason = "These devices are in no class: no class's filter matches them."
        elif name in reasons:
            reason = reasons[name] or "The release has no build for this class."
        else:
            reason = _why_not_listed(rollout.release, first_saved.get(name))
        rows.append(
            TrackProgress(class_name=name, state="excluded", reason=reason, eligible=counts.get(name, 0))
        )
    return rows


def _why_not_listed(release: Release, class_since: datetime | None) -> str:
    """Why a release says nothing at all of a class."""
    if class_since is not None and class_since > release.created_at:
        return "The class is newer than the release. Request a build for it, then make a new release."
    return (
        f"No build of {release.version.model.name} v{release.version.number} was requested for this class: "
        "request one, then make a new release."
    )


def decisions_of(rollout: Rollout) -> QuerySet[RolloutDecision]:
    """What was decided, the newest first."""
    return RolloutDecision.objects.filter(rollout=rollout, tenant_id=rollout.tenant_id).order_by("-at", "-id")


def assignments_of(
    rollout: Rollout, *, class_name: str | None = None, state: str | None = None
) -> QuerySet[Assignment]:
    """Devices that have acted, in the order in which they were offered."""
    rows = Assignment.objects.filter(rollout=rollout, tenant_id=rollout.tenant_id)
    rows = rows.select_related("device", "build").order_by("offered_at", "id")
    if class_name is not None:
        rows = rows.filter(class_name=class_name)
    return rows.filter(state=state) if state else rows


def assignments_of_device(device: Device) -> QuerySet[Assignment]:
    """A device's part in every rollout it acted in, the newest first, each with its events."""
    rows = Assignment.objects.filter(device=device, tenant_id=device.tenant_id)
    rows = rows.select_related("rollout", "version", "build").prefetch_related("events")
    return rows.order_by("-offered_at", "-id")


def tracks_of(tenant: Tenant, *, state: str | None = None) -> QuerySet[RolloutTrack]:
    """Tracks of all rollouts, the newest rollout first."""
    rows = (
        RolloutTrack.objects.filter(tenant=tenant).select_related("rollout").order_by("-rollout__order", "id")
    )
    return rows.filter(state=state) if state else rows
