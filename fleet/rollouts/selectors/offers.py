"""What a device may have: the membership rule applied to stored rollouts."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet

from fleet.devices import filters
from fleet.devices.models import Device
from fleet.devices.selectors import attributes
from fleet.rollouts import lifecycle, membership
from fleet.rollouts.models import Assignment, DesiredGeneration, Rollout, RolloutTrack
from models_registry.models import ReleaseEntry

# Rollouts that can still give a device something. Cancelled ones keep what is active.
OFFERING = (Rollout.State.RUNNING, Rollout.State.PAUSED, Rollout.State.FINISHED, Rollout.State.CANCELLED)


@dataclass(frozen=True, slots=True)
class Part:
    """A device's part in a rollout as stored: what the rule needs of an Assignment."""

    state: str
    build_id: uuid.UUID
    waiting: str = ""
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class TrackRule:
    """A track with its rollout, ready to be asked about devices of its class."""

    rollout: Rollout
    track: RolloutTrack
    condition: filters.Filter
    parts: Mapping[uuid.UUID, Part] = field(default_factory=dict)

    def matches(self, device_id: uuid.UUID, attributes: filters.Attributes) -> bool:
        """Whether the rollout means the device.

        The filter decides who is offered the build. It is not asked again of a device that has
        come for it, or a filter on free storage would take back what has just been stored.
        """
        return self.part(device_id) is not None or self.condition.matches(attributes)

    @property
    def rollout_state(self) -> str:
        """State of the rollout as it concerns this track.

        A rollout that is paused only because nothing of it moves any more (its unfinished classes
        are paused, each for its own reason) still runs for the finished ones: late devices enter.
        """
        if self.rollout.state == Rollout.State.PAUSED and not getattr(self.track, "rollout_moves", True):
            return Rollout.State.RUNNING
        return self.rollout.state

    def cohort(self, device_id: uuid.UUID) -> float:
        return membership.cohort(salt=self.rollout.salt, device_id=str(device_id))

    def part(self, device_id: uuid.UUID) -> Part | None:
        """The device's part with this track's build; another build's does not count."""
        part = self.parts.get(device_id)
        return part if part is not None and part.build_id == self.track.build_id else None

    def offers(self, device_id: uuid.UUID, attributes: filters.Attributes) -> bool:
        """Whether the device may have the track's build now."""
        part = self.part(device_id)
        return self.matches(device_id, attributes) and membership.keeps_offer(
            rollout_state=self.rollout_state,
            track_state=self.track.state,
            admitted=self.cohort(device_id) < self.track.threshold,
            assignment_state=part.state if part else None,
        )


def offering_tracks(tenant_id: Any) -> QuerySet[RolloutTrack]:
    """Tracks of a tenant's rollouts that can still give something, with whether those still move."""
    moving = RolloutTrack.objects.filter(
        rollout_id=OuterRef("rollout_id"), state__in=lifecycle.UNFINISHED_TRACKS - {"paused"}
    )
    tracks = RolloutTrack.objects.filter(tenant_id=tenant_id, rollout__state__in=OFFERING)
    return tracks.annotate(rollout_moves=Exists(moving))


def rules_for(tracks: Iterable[RolloutTrack], parts: Mapping[uuid.UUID, Mapping]) -> Iterator[TrackRule]:
    """Rules of tracks (with their rollouts selected).

    Args:
        parts: per rollout, the parts of devices.
    """
    for track in tracks:
        condition = filters.parse(track.rollout.filter)
        yield TrackRule(track.rollout, track, condition, parts.get(track.rollout_id, {}))


@dataclass(frozen=True, slots=True)
class Offer:
    """A build that a device may have now. ``assignment_state`` is None where it has not acted."""

    rollout: Rollout
    track: RolloutTrack
    entry: ReleaseEntry
    assignment_state: str | None


def offers_for(device: Device) -> list[Offer]:
    """What the device may have: per model the newest rollout that it is in, by model name."""
    if device.state != Device.State.ACCEPTED:
        return []
    seen = attributes(device)
    chosen: dict[str, TrackRule] = {}
    for rule in _rules_of(device):
        name = rule.rollout.model_name
        if name not in chosen and rule.offers(device.pk, seen):
            chosen[name] = rule
    entries = _entries(device, list(chosen.values()))
    offers = []
    for _, rule in sorted(chosen.items()):
        part = rule.part(device.pk)
        entry = entries[rule.rollout.release_id, rule.track.class_name]
        offers.append(Offer(rule.rollout, rule.track, entry, part.state if part else None))
    return offers


def _rules_of(device: Device) -> list[TrackRule]:
    """Rules that concern the device, the newest rollout first; two queries.

    Per rollout it is the track of the device's class. Where that class has none, a device that
    runs the build of the class it was in before keeps it: a change of classes deletes no model.
    """
    assignments = list(Assignment.objects.filter(tenant_id=device.tenant_id, device=device))
    runs = {row.rollout_id: row.class_name for row in assignments if row.state == Assignment.State.ACTIVE}
    tracks = (
        offering_tracks(device.tenant_id)
        .filter(Q(class_name=device.class_name) | Q(rollout_id__in=runs))
        .select_related("rollout__release__version")
        .order_by("-rollout__order")
    )
    chosen: dict[uuid.UUID, RolloutTrack] = {}
    for track in tracks:
        if track.class_name == device.class_name:
            chosen[track.rollout_id] = track
        elif runs.get(track.rollout_id) == track.class_name:
            chosen.setdefault(track.rollout_id, track)
    parts = {
        row.rollout_id: {device.pk: Part(row.state, row.build_id, row.waiting, row.changed_at)}
        for row in assignments
    }
    return list(rules_for(chosen.values(), parts))


def _entries(device: Device, rules: list[TrackRule]) -> dict[tuple[uuid.UUID, str], ReleaseEntry]:
    if not rules:
        return {}
    entries = ReleaseEntry.objects.filter(
        tenant_id=device.tenant_id,
        release_id__in=[rule.rollout.release_id for rule in rules],
        class_name__in={rule.track.class_name for rule in rules},
    )
    return {(entry.release_id, entry.class_name): entry for entry in entries}


def generation_of(tenant_id: Any) -> int:
    """The number that rises with every change of what a tenant's devices should run."""
    row = DesiredGeneration.objects.filter(tenant_id=tenant_id).first()
    return row.generation if row else 1


@dataclass(frozen=True, slots=True)
class Standpoint:
    """Where a device stands in a rollout, and why it has not got it yet ("" where it has)."""

    rollout: Rollout
    state: str  # of its assignment; "" where it has not acted
    reason: str


def why_not_yet(device: Device) -> list[Standpoint]:
    """Per rollout of the tenant that could concern the device, the newest first: its state and why."""
    if device.state != Device.State.ACCEPTED:
        return []
    offered = {offer.rollout.pk for offer in offers_for(device)}
    rules = {rule.rollout.pk: rule for rule in _rules_of(device)}
    rollouts = Rollout.objects.filter(tenant_id=device.tenant_id, state__in=OFFERING).order_by("-order")
    standpoints = []
    for rollout in rollouts.select_related("release__version"):
        rule = rules.get(rollout.pk)
        part = rule.part(device.pk) if rule else None
        reason = _reason(device, rule, part, offered=rollout.pk in offered)
        standpoints.append(Standpoint(rollout, part.state if part else "", reason))
    return standpoints


def _reason(device: Device, rule: TrackRule | None, part: Part | None, *, offered: bool) -> str:
    if rule is None:
        if not device.class_name:
            return "The device is in no class: no class's filter matches it."
        return f"The release has no build for class {device.class_name}."
    if not rule.matches(device.pk, attributes(device)):
        return "The rollout's filter does not match the device."
    if part is not None and part.state == Assignment.State.ACTIVE:
        return ""
    if part is not None and part.state in (Assignment.State.FAILED, Assignment.State.ROLLED_BACK):
        return "The installation failed; resuming the class offers it again."
    if rule.rollout_state in (Rollout.State.PAUSED, Rollout.State.CANCELLED):
        return f"The rollout is {rule.rollout.state}."
    if rule.track.state == RolloutTrack.State.PAUSED:
        return f"Class {device.class_name} is paused: {rule.track.reason}"
    if rule.cohort(device.pk) >= rule.track.threshold:
        return f"Not its group yet: {rule.track.threshold:.0%} of class {device.class_name} are in."
    if not offered:
        return "A newer rollout of the same model comes first."
    if part is None:
        return "Offered; the device has not come for it yet."
    return f"It waits for: {part.waiting}." if part.waiting else f"Under way: {part.state}."
