"""The step: gather evidence, decide, carry out. Safe to run anywhere, twice, and at once.

Each action is a conditional UPDATE on the state it was decided for; whoever comes second changes
nothing and records nothing.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet

from fleet.rollouts import lifecycle
from fleet.rollouts.decision import Decision, Policy, decide, parse_policy
from fleet.rollouts.membership import EVERYBODY, threshold_for
from fleet.rollouts.models import Assignment, AssignmentEvent, Rollout, RolloutDecision, RolloutTrack
from fleet.rollouts.selectors import Standing, standing_of
from fleet.rollouts.services.generation import bump_generation

log = logging.getLogger(__name__)

ALL_FINISHED = "Every class is finished."
NOBODY_YET = "No device matched yet; devices that join later get it."
EXPIRE_CHUNK = 500  # assignments per UPDATE


def step_rollouts(*, now: datetime) -> int:
    """Step every running rollout of every tenant; returns how many tracks moved.

    One rollout that cannot be stepped does not hold up the others.
    """
    moved = 0
    for rollout in Rollout.objects.filter(state=Rollout.State.RUNNING).select_related("tenant"):
        try:
            moved += step_rollout(rollout=rollout, now=now)
        except Exception:  # logged with its trace; the next step tries again
            log.exception("rollout %s could not be stepped", rollout.pk)
    return moved


def step_rollout(*, rollout: Rollout, now: datetime) -> int:
    """Step one rollout: time out silent devices, then each unfinished track, then the rollout.

    Returns:
        how many times a track changed its state or group.
    """
    policy = parse_policy(rollout.policy)
    _expire(rollout, policy, now)
    tracks = rollout.tracks.exclude(state__in=("paused", "rolled_back", "finished")).order_by("class_name")
    moved = sum(_step_track(rollout, track, policy, now) for track in tracks)
    _settle(rollout, now)
    return moved


def _step_track(rollout: Rollout, track: RolloutTrack, policy: Policy, now: datetime) -> int:
    """Open groups until there is something to wait for."""
    moved = 0
    for _ in range(len(policy.groups) + 2):
        standing = standing_of(rollout, track, policy, now=now)
        decision = decide(policy, standing.evidence, now)
        changed = _carry_out(rollout, track, policy, standing, decision, now)
        moved += changed
        if not changed or decision.action not in ("open", "advance"):
            break
        track.refresh_from_db()
    return moved


def _carry_out(
    rollout: Rollout,
    track: RolloutTrack,
    policy: Policy,
    standing: Standing,
    decision: Decision,
    now: datetime,
) -> int:
    """Change the track as decided; 1 if its state, group or threshold changed."""
    changes = _changes(track, policy, standing, decision, now)
    unchanged = all(getattr(track, name) == value for name, value in changes.items())
    if unchanged:
        return 0
    moves = any(
        name in changes and getattr(track, name) != changes[name]
        for name in ("state", "group_index", "threshold")
    )
    with transaction.atomic():
        if not _lock_running(rollout) or not _unchanged(track).update(**changes):
            return 0
        if moves:
            record_decision(rollout, track.class_name, decision, evidence=standing)
            bump_generation(rollout.tenant)
    return int(moves)


def _lock_running(rollout: Rollout) -> bool:
    """Hold the rollout's row until commit; False where it does not run any more."""
    rows = Rollout.objects.select_for_update().filter(pk=rollout.pk, state=Rollout.State.RUNNING)
    return rows.first() is not None


def _unchanged(track: RolloutTrack) -> QuerySet[RolloutTrack]:
    """The track, if it is still as it was when decided on.

    On columns of its own alone: PostgreSQL checks these again after waiting for another writer,
    but not a join, which becomes a subquery of the UPDATE.
    """
    return RolloutTrack.objects.filter(
        pk=track.pk, state=track.state, group_index=track.group_index, threshold=track.threshold
    )


def _changes(
    track: RolloutTrack, policy: Policy, standing: Standing, decision: Decision, now: datetime
) -> dict[str, Any]:
    """Columns of the track after the decision.

    Raises:
        ValueError: if the lifecycle has no such transition.
    """
    state = lifecycle.following(lifecycle.TRACK, track.state, decision.action)
    if state is None:
        raise ValueError(f"a track that is {track.state} cannot {decision.action}")
    changes: dict[str, Any] = {"state": state, "reason": decision.reason, "soaking_since": None}
    if decision.action == "soak":
        changes["soaking_since"] = track.soaking_since or now
    elif decision.action in ("open", "advance"):
        index = max(track.group_index, 0) + (decision.action == "advance")
        changes |= {"group_index": index, "group_opened_at": now}
        changes["threshold"] = threshold_for(
            share=policy.groups[index],
            minimum=policy.minimum_per_group,
            cohorts=standing.cohorts,
            current=track.threshold,
        )
    elif decision.action == "finish":
        changes |= {"group_index": len(policy.groups) - 1, "threshold": EVERYBODY}
    return changes


def record_decision(
    rollout: Rollout, class_name: str, decision: Decision, *, evidence: Standing | None = None
) -> None:
    """Store what was decided with the evidence it rests on; an operator's word needs none."""
    RolloutDecision.objects.create(
        tenant_id=rollout.tenant_id,
        rollout=rollout,
        class_name=class_name,
        action=decision.action,
        reason=decision.reason,
        evidence=msgspec.to_builtins(evidence.evidence) if evidence else {},
    )


def _expire(rollout: Rollout, policy: Policy, now: datetime) -> None:
    """Assignments under way that have not moved within the time-out become expired."""
    before = now - timedelta(seconds=policy.device_timeout_s)
    overdue = Assignment.objects.filter(rollout=rollout, state__in=lifecycle.STAGES, changed_at__lt=before)
    ids = list(overdue.values_list("pk", flat=True))
    for start in range(0, len(ids), EXPIRE_CHUNK):
        _expire_chunk(overdue.filter(pk__in=ids[start : start + EXPIRE_CHUNK]), now)


@transaction.atomic
def _expire_chunk(overdue: QuerySet[Assignment], now: datetime) -> None:
    rows = list(overdue.select_for_update().values_list("pk", "tenant_id", "waiting"))
    Assignment.objects.filter(pk__in=[row[0] for row in rows]).update(
        state=Assignment.State.EXPIRED, changed_at=now
    )
    AssignmentEvent.objects.bulk_create(
        AssignmentEvent(assignment_id=pk, tenant_id=tenant, state="expired", waiting=waiting, at=now)
        for pk, tenant, waiting in rows
    )


@transaction.atomic
def _settle(rollout: Rollout, now: datetime) -> None:
    """Finish the rollout with its last track; pause it when only paused tracks are left."""
    if not _lock_running(rollout):
        rollout.refresh_from_db()
        return
    tracks = list(rollout.tracks.order_by("class_name"))
    unfinished = [track for track in tracks if track.state in lifecycle.UNFINISHED_TRACKS]
    running = Rollout.objects.filter(pk=rollout.pk, state=Rollout.State.RUNNING)
    if not unfinished:
        active = Assignment.objects.filter(rollout=rollout, state=Assignment.State.ACTIVE)
        reason = ALL_FINISHED if active.exists() else NOBODY_YET
        running.update(state=Rollout.State.FINISHED, reason=reason, finished_at=now)
    elif all(track.state == RolloutTrack.State.PAUSED for track in unfinished):
        reason = " ".join(track.reason for track in unfinished)
        if running.update(state=Rollout.State.PAUSED, reason=reason):
            bump_generation(rollout.tenant)
    rollout.refresh_from_db()


class Pace:
    """Lets work run at once, but spends no more than a share of the time on it.

    A step scans a class's devices. On a small fleet it may follow every report; on a large one
    the reports of thousands of devices must not each cause a scan, and the periodic step is enough.

    Args:
        clock: monotonic seconds.
        share: of wall time that the work of one key may take.
    """

    def __init__(self, clock: Callable[[], float], *, share: float = 0.05) -> None:
        self._clock = clock
        self._share = share
        self._ready_at: dict[uuid.UUID, float] = {}

    def run(self, key: uuid.UUID, work: Callable[[], object]) -> bool:
        """Do the work unless the key has had its share; whether it was done."""
        start = self._clock()
        if start < self._ready_at.get(key, start):
            return False
        try:
            work()
        finally:
            end = self._clock()
            self._ready_at[key] = end + (end - start) / self._share
        return True


_pace = Pace(time.monotonic)


def _note_first_device(rollouts: QuerySet[Rollout]) -> None:
    """A rollout that had finished without devices has got its first one."""
    active = Assignment.objects.filter(rollout=OuterRef("pk"), state=Assignment.State.ACTIVE)
    waiting = rollouts.filter(state=Rollout.State.FINISHED, reason=NOBODY_YET)
    waiting.filter(Exists(active)).update(reason=ALL_FINISHED)


def step_touched(*, rollout_ids: Iterable[uuid.UUID], now: datetime) -> None:
    """Step rollouts right after events were stored. Never fails: the periodic step comes anyway."""
    touched = Rollout.objects.filter(pk__in=list(rollout_ids))
    try:
        _note_first_device(touched)
    except Exception:
        log.exception("the reason of a finished rollout could not be changed")
    running = touched.filter(state=Rollout.State.RUNNING)
    for rollout in running.select_related("tenant"):
        try:
            _pace.run(rollout.pk, lambda rollout=rollout: step_rollout(rollout=rollout, now=now))  # type: ignore[misc]
        except Exception:
            log.exception("rollout %s could not be stepped", rollout.pk)
