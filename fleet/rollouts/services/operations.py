"""What an operator does with a rollout. Each action is audited and takes effect at once."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

import msgspec
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from fleet.devices import filters
from fleet.rollouts import lifecycle
from fleet.rollouts.decision import parse_policy
from fleet.rollouts.errors import InvalidRollout, RolloutConflict
from fleet.rollouts.models import (
    Assignment,
    AssignmentEvent,
    Rollout,
    RolloutDecision,
    RolloutGroup,
    RolloutTrack,
)
from fleet.rollouts.services.generation import bump_generation
from fleet.rollouts.services.stepping import step_rollout
from models_registry.models import Release
from tenancy.actor import Actor
from tenancy.audit import record


@transaction.atomic
def create_rollout(
    *,
    release: Release,
    name: str,
    filter: str = "",
    policy: dict[str, Any] | None = None,
    actor: Actor,
) -> Rollout:
    """A draft: nothing happens on devices until it is started.

    Args:
        filter: text of the filter language; "" means every accepted device.
        policy: fields of :class:`~fleet.rollouts.decision.Policy`; the rest has defaults.

    Raises:
        InvalidPolicy: ``invalid_policy`` naming the field.
        FilterError: ``invalid_filter`` with the column.
        InvalidRollout: field ``name``.
        RolloutConflict: ``release_has_no_build``.
    """
    if not 0 < len(name) <= 100:
        raise InvalidRollout("A rollout's name has 1 to 100 characters.", field="name")
    checked = parse_policy(policy)
    filters.parse(filter)
    entries = list(release.entries.filter(build__isnull=False))
    if not entries:
        raise RolloutConflict(
            "The release has a build for no class. Look at its reasons and build again.",
            code="release_has_no_build",
        )
    rollout = Rollout.objects.create(
        tenant=release.tenant,
        name=name,
        release=release,
        model_name=release.version.model.name,
        filter=filter.strip(),
        policy=msgspec.to_builtins(checked),
        salt=secrets.token_hex(16),
        created_by=str(actor)[:100],
    )
    RolloutGroup.objects.bulk_create(
        RolloutGroup(tenant=release.tenant, rollout=rollout, index=index, share=share)
        for index, share in enumerate(checked.groups)
    )
    RolloutTrack.objects.bulk_create(
        RolloutTrack(tenant=release.tenant, rollout=rollout, class_name=entry.class_name, build=entry.build)
        for entry in entries
    )
    _audit(rollout, actor, "create", after={"name": name, "release": str(release.pk), "filter": filter})
    return rollout


def start_rollout(*, rollout: Rollout, actor: Actor, now: datetime | None = None) -> Rollout:
    """Start a draft: it becomes the newest of its model and opens the first group of each class.

    Raises:
        RolloutConflict: ``rollout_state``, or ``release_not_published``.
    """
    moment = now or timezone.now()
    _start(rollout, actor, moment)
    step_rollout(rollout=rollout, now=moment)
    return rollout


@transaction.atomic
def _start(rollout: Rollout, actor: Actor, now: datetime) -> None:
    release = Release.objects.get(pk=rollout.release_id)
    if release.state != Release.State.PUBLISHED:
        raise RolloutConflict(
            f"The release is {release.state}. Start the rollout when it is published.",
            code="release_not_published",
        )
    bump_generation(rollout.tenant)  # first, for it locks: orders are given one at a time
    latest = Rollout.objects.filter(tenant_id=rollout.tenant_id).aggregate(latest=Max("order"))["latest"]
    order = (latest or 0) + 1
    _change(rollout, "start", actor, reason="", started_at=now, order=order)


@transaction.atomic
def pause_rollout(*, rollout: Rollout, actor: Actor) -> Rollout:
    """Let nobody new in. Devices that run the build keep it. Raises RolloutConflict."""
    return _change(rollout, "pause", actor, reason=f"Paused by {actor.shown}.")


def resume_rollout(*, rollout: Rollout, actor: Actor, now: datetime | None = None) -> Rollout:
    """Go on. Where every unfinished class is paused, these are resumed as well.

    Raises:
        RolloutConflict: ``rollout_state``.
    """
    moment = now or timezone.now()
    with transaction.atomic():
        _change(rollout, "resume", actor, reason="")
        unfinished = list(rollout.tracks.filter(state__in=lifecycle.UNFINISHED_TRACKS))
        if all(track.state == RolloutTrack.State.PAUSED for track in unfinished):
            for track in unfinished:
                _resume_track(rollout, track, actor, moment)
    step_rollout(rollout=rollout, now=moment)
    return rollout


def resume_track(*, track: RolloutTrack, actor: Actor, now: datetime | None = None) -> RolloutTrack:
    """Go on with one class. Installations that failed in it are offered again.

    A rollout that is paused because all its unfinished classes are goes on as well.

    Raises:
        RolloutConflict: ``track_state``, or ``rollout_state`` when an operator paused the rollout.
    """
    moment = now or timezone.now()
    rollout = Rollout.objects.select_related("tenant").get(pk=track.rollout_id)
    with transaction.atomic():
        unfinished = rollout.tracks.filter(state__in=lifecycle.UNFINISHED_TRACKS)
        others = unfinished.exclude(state=RolloutTrack.State.PAUSED).exists()
        if rollout.state == Rollout.State.PAUSED and not others:
            _change(rollout, "resume", actor, reason="")
        if rollout.state != Rollout.State.RUNNING:
            raise RolloutConflict(f"The rollout is {rollout.state}. Resume the rollout first.")
        _resume_track(rollout, track, actor, moment)
    step_rollout(rollout=rollout, now=moment)
    track.refresh_from_db()
    return track


def _resume_track(rollout: Rollout, track: RolloutTrack, actor: Actor, now: datetime) -> None:
    reason = f"Resumed by {actor.shown}."
    changed = RolloutTrack.objects.filter(pk=track.pk, state=RolloutTrack.State.PAUSED).update(
        state=lifecycle.TRACK["paused", "resume"], reason=reason, group_opened_at=now, soaking_since=None
    )
    if not changed:
        track.refresh_from_db()
        raise RolloutConflict(
            f"Class {track.class_name} is {track.state}; only a paused one is resumed.", code="track_state"
        )
    retried = _offer_again(rollout, track.class_name, now)
    _decided(rollout, track.class_name, "resume", f"{reason} {retried} failed installations offered again.")
    _audit(rollout, actor, "resume_track", after={"class": track.class_name, "retried": retried})
    bump_generation(rollout.tenant)


def _offer_again(rollout: Rollout, class_name: str, now: datetime) -> int:
    failed = Assignment.objects.filter(
        rollout=rollout, class_name=class_name, state__in=sorted(lifecycle.ENDED_BADLY)
    )
    ids = list(failed.values_list("pk", flat=True))
    AssignmentEvent.objects.bulk_create(
        AssignmentEvent(tenant_id=rollout.tenant_id, assignment_id=pk, state="offered", at=now) for pk in ids
    )
    return Assignment.objects.filter(pk__in=ids, state__in=sorted(lifecycle.ENDED_BADLY)).update(
        state=Assignment.State.OFFERED, failure="", waiting="", self_test=None, changed_at=now
    )


@transaction.atomic
def cancel_rollout(*, rollout: Rollout, actor: Actor) -> Rollout:
    """End it where it is: nobody new gets it, who runs it keeps it. Raises RolloutConflict."""
    return _change(
        rollout, "cancel", actor, reason=f"Cancelled by {actor.shown}.", finished_at=timezone.now()
    )


@transaction.atomic
def roll_back_rollout(*, rollout: Rollout, actor: Actor) -> Rollout:
    """Take it back: devices return to the newest older rollout of the model that they are in.

    Raises:
        RolloutConflict: ``rollout_state``.
    """
    reason = f"Rolled back by {actor.shown}."
    _change(rollout, "roll_back", actor, reason=reason, finished_at=timezone.now())
    rollout.tracks.update(state=RolloutTrack.State.ROLLED_BACK, reason=reason)
    return rollout


@transaction.atomic
def delete_rollout(*, rollout: Rollout, actor: Actor) -> None:
    """Delete a draft. What has been started stays for the record. Raises RolloutConflict."""
    row = Rollout.objects.select_for_update().get(pk=rollout.pk)  # held: nobody starts it meanwhile
    if lifecycle.following(lifecycle.ROLLOUT, row.state, "delete") is None:
        raise _not_possible(row, "delete")
    _audit(row, actor, "delete", before={"name": row.name})
    row.delete()


def _change(rollout: Rollout, event: str, actor: Actor, **columns: Any) -> Rollout:
    """The one place where an operator's event changes a rollout's state."""
    rollout.refresh_from_db(fields=["state"])
    before = rollout.state
    after = lifecycle.following(lifecycle.ROLLOUT, before, event)
    changed = after is not None and Rollout.objects.filter(pk=rollout.pk, state=before).update(
        state=after, **columns
    )
    rollout.refresh_from_db()
    if not changed:
        raise _not_possible(rollout, event)
    _audit(rollout, actor, event, before={"state": before}, after={"state": after})
    _decided(rollout, "", event, f"{event.replace('_', ' ').capitalize()}: {actor.shown}.")
    bump_generation(rollout.tenant)
    return rollout


def _not_possible(rollout: Rollout, event: str) -> RolloutConflict:
    possible = " or ".join(lifecycle.possible_events(lifecycle.ROLLOUT, rollout.state)) or "nothing"
    return RolloutConflict(f"The rollout is {rollout.state}: {event} is not possible, {possible} is.")


def _decided(rollout: Rollout, class_name: str, action: str, reason: str) -> None:
    RolloutDecision.objects.create(
        tenant_id=rollout.tenant_id,
        rollout=rollout,
        class_name=class_name,
        action=action,
        reason=reason,
        evidence={},
    )


def _audit(
    rollout: Rollout,
    actor: Actor,
    event: str,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    record(
        tenant=rollout.tenant,
        actor=actor,
        action=f"rollout.{event}",
        subject_type="rollout",
        subject=rollout.pk,
        before=before,
        after=after,
    )
