"""What to do with a track, given the policy and the evidence. Pure: the caller carries it out.

Missing evidence never reads as healthy. A group is complete when each of its devices has ended
(active, failed, rolled back) or has run out of time. Of those out of time, the *silent* ones took
the offer and were not heard of again: they count against success. The *absent* ones never came
for it, or said what they wait for (charging, Wi-Fi): they say nothing about the build, neither
good nor bad, and a group in which nobody became active does not advance.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

import msgspec

from fleet.rollouts.errors import InvalidPolicy

Action = Literal["open", "advance", "soak", "hold", "pause", "finish"]
MAX_GROUPS = 20
YEAR_S = 366 * 86400.0


class Policy(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How a rollout proceeds; the same for each class, judged per class.

    Args:
        groups: shares of a class's devices, rising, the last one 1.0.
        minimum_per_group: devices that a group has at least, where there are so many.
        success_ratio: share of the group that must be active to advance.
        failure_ratio: share of the ended installations that may fail; above it the track pauses.
        soak_s: seconds to watch a complete group before the next one.
        device_timeout_s: seconds after which a device that did not end is not waited for.
    """

    groups: tuple[float, ...] = (0.01, 0.1, 0.5, 1.0)
    minimum_per_group: int = 1
    success_ratio: float = 0.95
    failure_ratio: float = 0.2
    soak_s: float = 0.0
    device_timeout_s: float = 86400.0


def parse_policy(document: dict[str, Any] | None) -> Policy:
    """A policy from plain JSON types; what is left out has the default.

    Raises:
        InvalidPolicy: ``invalid_policy`` naming the ``field``.
    """
    try:
        policy = msgspec.convert({} if document is None else document, Policy, strict=True)
    except msgspec.ValidationError as error:
        raise InvalidPolicy(
            f"{error}. A policy has these fields: {', '.join(Policy.__struct_fields__)}.",
            field=_field_of(document, error),
        ) from None
    _check_groups(policy.groups)
    _check_range("minimum_per_group", policy.minimum_per_group, 1, 1_000_000)
    _check_range("success_ratio", policy.success_ratio, 0.0, 1.0)
    _check_range("failure_ratio", policy.failure_ratio, 0.0, 1.0)
    _check_range("soak_s", policy.soak_s, 0.0, YEAR_S)
    _check_range("device_timeout_s", policy.device_timeout_s, 1.0, YEAR_S)
    return policy


def _field_of(document: Any, error: msgspec.ValidationError) -> str:
    """The field msgspec complains about: it ends its message with the path ``$.field``."""
    _, _, path = str(error).rpartition("`$.")
    if path and path != str(error):
        return path.rstrip("`").split("[")[0].split(".")[0]
    names = document if isinstance(document, dict) else ()
    return next((str(name) for name in names if name not in Policy.__struct_fields__), "policy")


def _check_groups(groups: tuple[float, ...]) -> None:
    if not 1 <= len(groups) <= MAX_GROUPS:
        raise InvalidPolicy(f"There are 1 to {MAX_GROUPS} groups.", field="groups")
    rising = all(before < after for before, after in pairwise(groups))
    if not (rising and all(math.isfinite(share) for share in groups) and groups[0] > 0):
        raise InvalidPolicy("The groups' shares rise from above 0, e.g. [0.01, 0.1, 1.0].", field="groups")
    if groups[-1] != 1.0:
        raise InvalidPolicy(
            f"The last group's share is {groups[-1]}; it must be 1.0, or devices would be left out.",
            field="groups",
        )


def _check_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # false for NaN as well
        raise InvalidPolicy(f"{field} is {value}; it must be between {low:g} and {high:g}.", field=field)


class SelfTests(msgspec.Struct, kw_only=True, frozen=True):
    """Self-tests on the track's devices. None: nothing was measured."""

    passed: int = 0
    min_cosine: float | None = None
    latency_p50_ms: float | None = None  # median over the devices
    emulated: int = 0


class TrackEvidence(msgspec.Struct, kw_only=True, frozen=True):
    """What is known of a track.

    ``eligible`` counts the class's accepted devices that match the rollout and are in no newer
    rollout of the model; ``admitted`` those of them below the threshold; ``active`` is counted
    among these. ``pending`` are those admitted that neither ended nor ran out of time, less the
    ``late`` ones, which enrolled after the group opened and are not waited for. ``failed``,
    ``rolled_back`` and their codes in ``failures`` count every device of the class that tried:
    taking a broken device out of service does not improve a build.
    """

    class_name: str
    state: str
    group_index: int
    eligible: int
    admitted: int
    active: int = 0
    failed: int = 0
    rolled_back: int = 0
    pending: int = 0
    late: int = 0
    silent: int = 0
    absent: int = 0
    failures: dict[str, int] = {}
    self_tests: SelfTests = SelfTests()
    soaking_since: datetime | None = None

    @property
    def bad(self) -> int:
        """Installations that ended badly."""
        return self.failed + self.rolled_back

    @property
    def ended(self) -> int:
        return self.active + self.bad


class Decision(msgspec.Struct, kw_only=True, frozen=True):
    """What to do with the track, and why, in words with figures."""

    action: Action
    reason: str


def decide(policy: Policy, evidence: TrackEvidence, now: datetime) -> Decision:
    """The next step of an unfinished track that is not paused.

    Args:
        now: against which the soak time is measured.

    Returns:
        ``open`` the first group (or the present one anew), ``advance`` to the next one, ``soak``,
        ``hold``, ``pause``, or ``finish``.
    """
    if evidence.ended and evidence.bad / evidence.ended > policy.failure_ratio:
        return Decision(action="pause", reason=_failing(policy, evidence))
    if evidence.eligible == 0 and evidence.ended == 0:
        return Decision(
            action="finish",
            reason=f"No device of class {evidence.class_name} matches; those that join later get it.",
        )
    if evidence.group_index < 0:
        return Decision(action="open", reason=f"First group: {_share(policy, 0)} of the class's devices.")
    if evidence.eligible and not evidence.admitted:
        return Decision(
            action="open", reason=f"{_group(policy, evidence)} has lost its devices: others follow."
        )
    shortfall = _shortfall(policy, evidence)
    if shortfall:
        return Decision(action="hold", reason=shortfall)
    return _soak_or_go_on(policy, evidence, now)


def _shortfall(policy: Policy, evidence: TrackEvidence) -> str:
    """Why the group is not good enough yet, "" where it is."""
    if evidence.pending:
        reported = evidence.admitted - evidence.pending - evidence.late
        return (
            f"{_group(policy, evidence)}: {reported} of {reported + evidence.pending} devices have "
            f"reported, {evidence.pending} pending."
        )
    if evidence.admitted and not evidence.active:
        return (
            f"{_group(policy, evidence)}: no device has become active ({_out_of_time(evidence)}), so "
            "nothing is known of this build."
        )
    counted = evidence.ended + evidence.silent
    if counted and evidence.active / counted < policy.success_ratio:
        return (
            f"{_group(policy, evidence)}: {evidence.active} of {counted} devices are active "
            f"({_percent(evidence.active / counted)}), {_percent(policy.success_ratio)} are needed: "
            f"{evidence.bad} failed, {_out_of_time(evidence)}."
        )
    return ""


def _soak_or_go_on(policy: Policy, evidence: TrackEvidence, now: datetime) -> Decision:
    if policy.soak_s > 0:
        since = evidence.soaking_since or now
        remaining = timedelta(seconds=policy.soak_s) - (now - since)
        if remaining > timedelta(0):
            seconds = math.ceil(remaining.total_seconds())
            return Decision(
                action="soak",
                reason=f"{_group(policy, evidence)} is complete; watched for another {seconds} s.",
            )
    if evidence.group_index >= len(policy.groups) - 1:
        return Decision(action="finish", reason=_summary(evidence))
    following = evidence.group_index + 1
    return Decision(
        action="advance",
        reason=f"{_summary(evidence)} Next group: {_share(policy, following)} of the class's devices.",
    )


def _failing(policy: Policy, evidence: TrackEvidence) -> str:
    kinds = ", ".join(code if n == evidence.bad else f"{n} {code}" for code, n in _ranked(evidence))
    tested = {"output_mismatch", "provider_fallback", "session_failed"}
    what = "their self-test" if set(evidence.failures) <= tested and evidence.failures else "to install"
    return (
        f"{evidence.bad} of {evidence.ended} devices of class {evidence.class_name} failed {what}"
        f"{f' ({kinds})' if kinds else ''}; threshold {_percent(policy.failure_ratio)}."
    )


def _ranked(evidence: TrackEvidence) -> list[tuple[str, int]]:
    return sorted(evidence.failures.items(), key=lambda item: (-item[1], item[0]))


def _summary(evidence: TrackEvidence) -> str:
    parts = [f"{evidence.active} of {evidence.admitted} devices are active"]
    parts += [f"{evidence.bad} failed"] if evidence.bad else []
    parts += [_out_of_time(evidence)] if evidence.silent or evidence.absent else []
    parts += [f"{evidence.late} joined since"] if evidence.late else []
    return ", ".join(parts) + "."


def _out_of_time(evidence: TrackEvidence) -> str:
    return f"{evidence.silent} silent, {evidence.absent} absent"


def _group(policy: Policy, evidence: TrackEvidence) -> str:
    index = evidence.group_index
    return f"Group {index + 1} of {len(policy.groups)} ({_share(policy, index)})"


def _share(policy: Policy, index: int) -> str:
    return _percent(policy.groups[index])


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.3g} %"
