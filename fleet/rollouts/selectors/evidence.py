"""What is known of a track: evidence gathered from devices and their assignments."""

from __future__ import annotations

import statistics
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from fleet.devices import filters
from fleet.devices.models import Device
from fleet.rollouts.decision import Policy, SelfTests, TrackEvidence
from fleet.rollouts.lifecycle import ENDED_BADLY, STAGES
from fleet.rollouts.models import Assignment, Rollout, RolloutTrack
from fleet.rollouts.selectors.offers import OFFERING, Part, TrackRule, offering_tracks, rules_for


@dataclass(frozen=True, slots=True)
class Standing:
    """A track's evidence, and the cohort values of its eligible devices."""

    evidence: TrackEvidence
    cohorts: list[float]
    states: dict[str, int]  # assignments of the class by state


@dataclass(slots=True)
class _Tally:
    cohorts: list[float] = field(default_factory=list)
    admitted: int = 0
    counts: Counter[str] = field(default_factory=Counter)


def standing_of(rollout: Rollout, track: RolloutTrack, policy: Policy, *, now: datetime) -> Standing:
    """Gather the evidence of one track: one pass over the class's devices, four queries.

    Args:
        now: against which silence is measured.
    """
    rule, newer = _rules(rollout, track)
    tally = _Tally()
    columns = ("pk", "enrolled_at", "seen__last_seen_at", *filters.COLUMNS)
    devices = Device.objects.filter(
        tenant_id=rollout.tenant_id, state=Device.State.ACCEPTED, class_name=track.class_name
    )
    for row in devices.values(*columns).iterator():
        _count(tally, row, rule, newer, policy, now)
    states, failures = _ended(rollout, track)
    counts = tally.counts
    evidence = TrackEvidence(
        class_name=track.class_name,
        state=track.state,
        group_index=track.group_index,
        eligible=len(tally.cohorts),
        admitted=tally.admitted,
        active=counts["active"],
        failed=states.get("failed", 0),
        rolled_back=states.get("rolled_back", 0),
        pending=counts["pending"],
        late=counts["late"],
        silent=counts["silent"],
        absent=counts["absent"],
        failures=failures,
        self_tests=_self_tests(rollout, track),
        soaking_since=track.soaking_since,
    )
    return Standing(evidence=evidence, cohorts=tally.cohorts, states=states)


def _rules(rollout: Rollout, track: RolloutTrack) -> tuple[TrackRule, list[TrackRule]]:
    """The track's own rule, and those of newer rollouts of the same model for the same class."""
    track.rollout = rollout
    tracks = [track]
    if rollout.state in OFFERING:
        newer = offering_tracks(rollout.tenant_id).filter(
            class_name=track.class_name,
            rollout__model_name=rollout.model_name,
            rollout__order__gt=rollout.order,
        )
        tracks += newer.select_related("rollout")
    rows = Assignment.objects.filter(
        rollout_id__in=[each.rollout_id for each in tracks], tenant_id=rollout.tenant_id
    ).values_list("rollout_id", "device_id", "state", "build_id", "waiting", "changed_at")
    parts: dict[uuid.UUID, dict[uuid.UUID, Part]] = {}
    for rollout_id, device_id, state, build_id, waiting, changed_at in rows.iterator():
        parts.setdefault(rollout_id, {})[device_id] = Part(state, build_id, waiting, changed_at)
    own, *others = rules_for(tracks, parts)
    return own, others


def _count(
    tally: _Tally,
    row: dict[str, Any],
    rule: TrackRule,
    newer: list[TrackRule],
    policy: Policy,
    now: datetime,
) -> None:
    attributes = filters.attributes_of(row)
    if not rule.matches(row["pk"], attributes) or any(other.offers(row["pk"], attributes) for other in newer):
        return
    value = rule.cohort(row["pk"])
    tally.cohorts.append(value)
    part = rule.part(row["pk"])
    if part is not None and part.state == Assignment.State.ACTIVE:
        tally.counts["active"] += 1
        tally.admitted += 1
    elif value < rule.track.threshold:
        tally.admitted += 1
        tally.counts[_kind(row, rule.track, part, policy, now)] += 1


def _kind(row: dict[str, Any], track: RolloutTrack, part: Part | None, policy: Policy, now: datetime) -> str:
    """What an admitted device that is not active counts as."""
    timeout = timedelta(seconds=policy.device_timeout_s)
    opened_at = track.group_opened_at or now
    if part is not None and part.state in ENDED_BADLY:
        return "ended"
    late = row["enrolled_at"] > opened_at
    if part is None:
        if late:
            return "late"
        if now - opened_at <= timeout:
            return "pending"
        last_seen = row["seen__last_seen_at"]
        return "silent" if last_seen is not None and last_seen > opened_at else "absent"
    overdue = part.changed_at is not None and now - max(part.changed_at, opened_at) > timeout
    if part.state in STAGES and not overdue:
        return "late" if late else "pending"
    return "absent" if part.waiting else "silent"


def _ended(rollout: Rollout, track: RolloutTrack) -> tuple[dict[str, int], dict[str, int]]:
    """Assignments of the class by state, and failure codes of those that ended badly."""
    states: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    rows = Assignment.objects.filter(rollout=rollout, class_name=track.class_name, build_id=track.build_id)
    for state, failure in rows.values_list("state", "failure").iterator():
        states[state] += 1
        if state in ENDED_BADLY:
            failures[failure or "unknown"] += 1
    return dict(states), dict(failures)


def _self_tests(rollout: Rollout, track: RolloutTrack) -> SelfTests:
    results: list[Any] = list(
        Assignment.objects.filter(
            rollout=rollout, class_name=track.class_name, build_id=track.build_id, self_test__isnull=False
        ).values_list("self_test", flat=True)
    )
    if not results:
        return SelfTests()
    return SelfTests(
        passed=sum(bool(result["passed"]) for result in results),
        min_cosine=min(result["min_cosine"] for result in results),
        latency_p50_ms=statistics.median(result["latency_p50_ms"] for result in results),
        emulated=sum(bool(result["emulated"]) for result in results),
    )
