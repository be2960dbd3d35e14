"""What devices are told, and what they tell back.

``desired`` is the same for all devices of a deployment; the assignment is one device's, signed,
made anew only when its content changes or it is half-way to its expiry. Rows of the Assignment
table appear when a device acts: when it comes for its assignment, or reports an installation.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.conf import settings
from django.db import transaction

from device_agent.protocol import messages
from device_agent.protocol.canonical import canonical_json, sha256_hex
from fleet.devices.models import Device
from fleet.devices.selectors import uuid_of
from fleet.rollouts import lifecycle
from fleet.rollouts.models import Assignment, AssignmentEvent, Rollout, RolloutTrack, SignedAssignment
from fleet.rollouts.selectors import Offer, generation_of, offers_for
from fleet.telemetry.services import clock
from models_registry.services.signing import sign_assignment

ASSIGNMENT_LIFETIME = timedelta(days=7)


def desired_for(*, device: Device, now: datetime) -> tuple[int, messages.Desired]:
    """The desired state of the device's deployment, and its generation.

    The generation is read first, so that a change meanwhile is seen at the next poll.
    """
    generation = generation_of(device.tenant_id)
    models = [
        messages.DesiredModel(
            model=offer.rollout.model_name,
            version=offer.rollout.release.version.number,
            rollout=str(offer.rollout.pk),
            target=offer.entry.target_path,
        )
        for offer in offers_for(device)
    ]
    return generation, messages.Desired(
        generation=generation, poll_interval_s=settings.POLL_INTERVAL_S, models=models
    )


def signed_assignment_for(*, device: Device, now: datetime) -> bytes:
    """The device's signed assignment, as an envelope in JSON.

    Notes as "offered" what the device had not come for before.
    """
    offers = offers_for(device)
    _note_offered(device, offers, now)
    models = msgspec.to_builtins([_assigned(offer) for offer in offers])
    digest = sha256_hex(canonical_json({"device": str(device.pk), "models": models}))
    current = SignedAssignment.objects.filter(pk=device.pk).first()
    if current is not None and _still_good(current, digest, now):
        return bytes(current.envelope)
    return _sign(device, models, digest, current, now)


def _still_good(current: SignedAssignment, digest: str, now: datetime) -> bool:
    return current.content_digest == digest and current.expires_at - now > ASSIGNMENT_LIFETIME / 2


def _assigned(offer: Offer) -> messages.AssignedModel:
    return messages.AssignedModel(
        model=offer.rollout.model_name,
        version=offer.rollout.release.version.number,
        rollout=str(offer.rollout.pk),
        build=str(offer.track.build_id),
        target=offer.entry.target_path,
        sha256=offer.entry.manifest_sha256,
        length=offer.entry.manifest_length,
    )


def _sign(
    device: Device, models: list[Any], digest: str, current: SignedAssignment | None, now: datetime
) -> bytes:
    """Sign with the next sequence number; where another process was faster, its document counts."""
    sequence = current.sequence + 1 if current else 1
    expires_at = now + ASSIGNMENT_LIFETIME
    document = messages.Assignment(
        device=str(device.pk),
        tenant=str(device.tenant_id),
        sequence=sequence,
        issued=int(now.timestamp()),
        expires=int(expires_at.timestamp()),
        models=msgspec.convert(models, list[messages.AssignedModel]),
    )
    envelope = sign_assignment(tenant=device.tenant, assignment=msgspec.to_builtins(document))
    columns = {
        "sequence": sequence,
        "content_digest": digest,
        "envelope": envelope,
        "expires_at": expires_at,
    }
    if current is None:
        row = SignedAssignment(device=device, tenant_id=device.tenant_id, **columns)
        SignedAssignment.objects.bulk_create([row], ignore_conflicts=True)
    else:
        SignedAssignment.objects.filter(pk=device.pk, sequence=current.sequence).update(**columns)
    return bytes(SignedAssignment.objects.get(pk=device.pk).envelope)


def _note_offered(device: Device, offers: list[Offer], now: datetime) -> None:
    new = [offer for offer in offers if offer.assignment_state is None]
    if not new:
        return
    with transaction.atomic():
        for offer in new:
            _offer(device, offer.rollout, offer.track, now)


def _offer(device: Device, rollout: Rollout, track: RolloutTrack, now: datetime) -> Assignment:
    """The device's row for this rollout with this track's build; started over for another build."""
    assignment, created = Assignment.objects.get_or_create(
        device=device,
        rollout=rollout,
        defaults={
            "tenant_id": device.tenant_id,
            "class_name": track.class_name,
            "version_id": rollout.release.version_id,
            "build_id": track.build_id,
            "changed_at": now,
        },
    )
    if not created and assignment.build_id != track.build_id:
        _start_over(assignment, track, now)
    elif created:
        _note(assignment, state=Assignment.State.OFFERED, at=now)
    return assignment


def _start_over(assignment: Assignment, track: RolloutTrack, now: datetime) -> None:
    """Another build for the device, because it changed its class."""
    Assignment.objects.filter(pk=assignment.pk, build_id=assignment.build_id).update(
        class_name=track.class_name,
        build_id=track.build_id,
        state=Assignment.State.OFFERED,
        failure="",
        waiting="",
        self_test=None,
        changed_at=now,
    )
    assignment.refresh_from_db()
    _note(assignment, state=Assignment.State.OFFERED, at=now)


@dataclass(frozen=True, slots=True)
class Applied:
    """Rollouts in which an assignment changed, and those in which one ended (active or badly)."""

    changed: frozenset[uuid.UUID]
    ended: frozenset[uuid.UUID]


def apply_install_events(
    *, device: Device, events: Iterable[messages.InstallEvent], now: datetime
) -> Applied:
    """Carry a device's install events over to its assignments, in their order.

    Repeats, stages that were passed already, and events of unknown rollouts or of builds that the
    device is not meant to have change nothing: a device never gets an error for them.
    """
    changed: set[uuid.UUID] = set()
    ended: set[uuid.UUID] = set()
    with transaction.atomic():
        places = _Places(device, now)
        for event in events:
            assignment = places.assignment_for(event)
            if assignment is None or not _apply(assignment, event, now):
                continue
            changed.add(assignment.rollout_id)
            if event.state == Assignment.State.ACTIVE or event.state in lifecycle.ENDED_BADLY:
                ended.add(assignment.rollout_id)
    return Applied(frozenset(changed), frozenset(ended))


class _Places:
    """Finds, and where need be makes, the row that an event belongs to."""

    def __init__(self, device: Device, now: datetime) -> None:
        self._device = device
        self._now = now
        self._found: dict[tuple[str, str], Assignment | None] = {}

    def assignment_for(self, event: messages.InstallEvent) -> Assignment | None:
        key = (event.rollout, event.build)
        if key not in self._found:
            self._found[key] = self._find(uuid_of(event.rollout), uuid_of(event.build))
        return self._found[key]

    def _find(self, rollout_id: uuid.UUID, build_id: uuid.UUID) -> Assignment | None:
        device = self._device
        rows = Assignment.objects.select_for_update().filter(device=device, rollout_id=rollout_id)
        assignment = rows.first()
        if assignment is not None and assignment.build_id == build_id:
            return assignment
        tracks = RolloutTrack.objects.filter(
            tenant_id=device.tenant_id, rollout_id=rollout_id, build_id=build_id
        ).exclude(rollout__state=Rollout.State.DRAFT)
        track = tracks.filter(class_name=device.class_name).select_related("rollout__release").first()
        if track is None:
            return None
        return _offer(device, track.rollout, track, self._now)


def _apply(assignment: Assignment, event: messages.InstallEvent, now: datetime) -> bool:
    """Change the row as the lifecycle allows, by a conditional UPDATE; whether anything changed."""
    at = clock(event.at, received_at=now)
    before = assignment.state
    after = lifecycle.following(lifecycle.ASSIGNMENT, before, event.state)
    known = AssignmentEvent.objects.filter(assignment=assignment, state=event.state, at=at)
    if after is None:
        return _note_waiting(assignment, event, at)
    if known.exists():
        return False
    columns: dict[str, Any] = {
        "state": after,
        "waiting": event.waiting or "",
        "failure": event.failure or "",
        "downloaded_bytes": max(assignment.downloaded_bytes, event.downloaded_bytes),
        "reused_bytes": max(assignment.reused_bytes, event.reused_bytes),
        "changed_at": now,
    }
    if event.self_test is not None:
        columns["self_test"] = msgspec.to_builtins(event.self_test)
    if not Assignment.objects.filter(pk=assignment.pk, state=before).update(**columns):
        return False
    for name, value in columns.items():
        setattr(assignment, name, value)
    _note(assignment, state=after, at=at, waiting=columns["waiting"], failure=columns["failure"])
    return True


def _note_waiting(assignment: Assignment, event: messages.InstallEvent, at: datetime) -> bool:
    """A stage passed already says nothing new, except what the device waits for."""
    waiting = event.waiting or ""
    under_way = assignment.state in lifecycle.STAGES and event.state in lifecycle.STAGES
    if not under_way or waiting == assignment.waiting:
        return False
    Assignment.objects.filter(pk=assignment.pk, state=assignment.state).update(waiting=waiting)
    assignment.waiting = waiting
    _note(assignment, state=event.state, at=at, waiting=waiting)
    return True


def _note(assignment: Assignment, *, state: str, at: datetime, waiting: str = "", failure: str = "") -> None:
    AssignmentEvent.objects.create(
        tenant_id=assignment.tenant_id,
        assignment=assignment,
        state=state,
        waiting=waiting,
        failure=failure,
        at=at,
    )
