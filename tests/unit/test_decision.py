"""Policies, membership and decisions: figures in, a decision with its reason out."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.rollouts.decision import Decision, Policy, TrackEvidence, decide, parse_policy
from fleet.rollouts.errors import InvalidPolicy
from fleet.rollouts.lifecycle import ROLLOUT_STATES, TRACK_STATES
from fleet.rollouts.membership import cohort, keeps_offer, threshold_for

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
POLICY = Policy(groups=(0.1, 0.5, 1.0))


def evidence(**changes: Any) -> TrackEvidence:
    fields: dict[str, Any] = {
        "class_name": "entry",
        "state": "running",
        "group_index": 0,
        "eligible": 100,
        "admitted": 10,
    }
    return TrackEvidence(**fields | changes)


def decided(policy: Policy = POLICY, **changes: Any) -> Decision:
    return decide(policy, evidence(**changes), NOW)


# -- policies


def test_defaults_make_a_policy() -> None:
    assert parse_policy(None) == parse_policy({}) == Policy()
    assert Policy().groups == (0.01, 0.1, 0.5, 1.0)


def test_a_policy_may_be_partial() -> None:
    policy = parse_policy({"groups": [0.25, 1], "soak_s": 30})
    assert policy.groups == (0.25, 1.0)
    assert policy.soak_s == 30
    assert policy.failure_ratio == 0.2


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"gruops": [1.0]}, "gruops"),
        ({"groups": []}, "groups"),
        ({"groups": [0.5]}, "groups"),
        ({"groups": [0.5, 0.1, 1.0]}, "groups"),
        ({"groups": [0.5, 0.5, 1.0]}, "groups"),
        ({"groups": [0.0, 1.0]}, "groups"),
        ({"groups": [-0.1, 1.0]}, "groups"),
        ({"groups": [float("nan"), 1.0]}, "groups"),
        ({"groups": [0.5, 1.0, 2.0]}, "groups"),
        ({"groups": [i / 21 for i in range(1, 22)]}, "groups"),
        ({"groups": "all"}, "groups"),
        ({"groups": [0.1, "x"]}, "groups"),
        ({"groups": None}, "groups"),
        ({"success_ratio": 1.2}, "success_ratio"),
        ({"success_ratio": "high"}, "success_ratio"),
        ({"failure_ratio": -0.1}, "failure_ratio"),
        ({"failure_ratio": float("nan")}, "failure_ratio"),
        ({"minimum_per_group": 0}, "minimum_per_group"),
        ({"minimum_per_group": 1.5}, "minimum_per_group"),
        ({"soak_s": -1}, "soak_s"),
        ({"soak_s": float("inf")}, "soak_s"),
        ({"device_timeout_s": 0}, "device_timeout_s"),
        ({"device_timeout_s": True}, "device_timeout_s"),
        ([], "policy"),
        ([1], "policy"),
    ],
)
def test_an_invalid_policy_is_refused_naming_the_field(document: Any, field: str) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        parse_policy(document)
    assert (caught.value.code, caught.value.status, caught.value.field) == ("invalid_policy", 400, field)
    assert caught.value.as_problem()["field"] == field


# -- membership


def test_cohorts_are_fixed_even_and_differ_per_rollout() -> None:
    devices = [str(uuid.UUID(int=i)) for i in range(4000)]
    values = [cohort(salt="a", device_id=device) for device in devices]
    assert values == [cohort(salt="a", device_id=device) for device in devices]
    assert all(0 <= value < 1 for value in values)
    for share in (0.01, 0.1, 0.5):
        assert sum(value < share for value in values) / len(values) == pytest.approx(share, abs=0.02)
    other = [cohort(salt="b", device_id=device) for device in devices]
    both = sum(a < 0.1 and b < 0.1 for a, b in zip(values, other, strict=True))
    assert both < 120  # 40 expected: the first group is not the same devices each time


def test_cohort_is_the_documented_hash() -> None:
    # printf 'saltdevice' | sha256sum | cut -c1-16
    assert cohort(salt="salt", device_id="device") == int("995008c18f4dd383", 16) / 2**64


def test_a_group_has_at_least_the_minimum() -> None:
    cohorts = [0.9, 0.4, 0.6]
    one = threshold_for(share=0.01, minimum=1, cohorts=cohorts)
    assert [value < one for value in cohorts] == [False, True, False]
    two = threshold_for(share=0.01, minimum=2, cohorts=cohorts)
    assert sum(value < two for value in cohorts) == 2
    assert threshold_for(share=0.01, minimum=9, cohorts=cohorts) > 0.9


def test_the_share_counts_where_it_is_more() -> None:
    assert threshold_for(share=0.5, minimum=1, cohorts=[0.1, 0.2]) == 0.5
    assert threshold_for(share=0.5, minimum=1, cohorts=[]) == 0.5
    assert threshold_for(share=1.0, minimum=3, cohorts=[0.999999]) == 1.0


def test_a_threshold_never_falls() -> None:
    assert threshold_for(share=0.1, minimum=1, cohorts=[0.01], current=0.7) == 0.7


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, exclude_max=True), max_size=30), st.integers(1, 40), st.floats(0.001, 1))
def test_thresholds_admit_enough_and_stay_in_range(cohorts: list[float], minimum: int, share: float) -> None:
    threshold = threshold_for(share=share, minimum=minimum, cohorts=cohorts)
    assert share <= threshold <= 1.0
    assert sum(value < threshold for value in cohorts) >= min(minimum, len(cohorts))


PARTS = [None, "offered", "testing", "expired", "active", "failed", "rolled_back"]


@pytest.mark.parametrize(("rollout", "track"), list(product(ROLLOUT_STATES, TRACK_STATES)))
def test_who_may_have_the_build(rollout: str, track: str) -> None:
    for admitted, part in product([True, False], PARTS):
        assert keeps_offer(
            rollout_state=rollout, track_state=track, admitted=admitted, assignment_state=part
        ) is expected_to_have(rollout, track, admitted, part), (admitted, part)


def expected_to_have(rollout: str, track: str, admitted: bool, part: str | None) -> bool:
    return (
        rollout not in ("draft", "rolled_back")
        and track != "rolled_back"
        and (
            part == "active"
            or (
                part in (None, "offered", "testing", "expired")
                and admitted
                and rollout in ("running", "finished")
                and track in ("running", "soaking", "finished")
            )
        )
    )


# -- decisions


def test_opens_the_first_group() -> None:
    decision = decided(state="waiting", group_index=-1, admitted=0)
    assert decision == Decision(action="open", reason="First group: 10 % of the class's devices.")


def test_a_class_without_devices_finishes_at_once_and_says_so() -> None:
    decision = decided(state="waiting", group_index=-1, eligible=0, admitted=0)
    assert decision.action == "finish"
    assert "No device of class entry matches" in decision.reason


def test_nothing_reported_is_not_healthy() -> None:
    decision = decided(pending=10)
    assert decision.action == "hold"
    assert decision.reason == "Group 1 of 3 (10 %): 0 of 10 devices have reported, 10 pending."


def test_waits_for_the_last_of_the_group() -> None:
    decision = decided(active=9, pending=1)
    assert decision.action == "hold"
    assert "9 of 10 devices have reported" in decision.reason


def test_late_devices_are_not_waited_for() -> None:
    decision = decided(admitted=12, active=10, late=2)
    assert decision.action == "advance"
    assert "2 joined since" in decision.reason


def test_advances_when_all_reported_well() -> None:
    decision = decided(active=10)
    assert decision.action == "advance"
    assert decision.reason == "10 of 10 devices are active. Next group: 50 % of the class's devices."


def test_finishes_after_the_last_group() -> None:
    decision = decided(group_index=2, admitted=100, active=99, failed=1, failures={"internal": 1})
    assert decision.action == "finish"
    assert decision.reason == "99 of 100 devices are active, 1 failed."


def test_pauses_above_the_failure_ratio_with_figures() -> None:
    decision = decided(eligible=3, admitted=3, active=1, failed=2, failures={"output_mismatch": 2})
    assert decision.action == "pause"
    assert decision.reason == (
        "2 of 3 devices of class entry failed their self-test (output_mismatch); threshold 20 %."
    )


def test_pauses_while_others_are_still_pending() -> None:
    decision = decided(
        active=1, failed=1, rolled_back=1, pending=7, failures={"provider_fallback": 1, "output_mismatch": 1}
    )
    assert decision.action == "pause"
    assert "(1 output_mismatch, 1 provider_fallback)" in decision.reason


def test_other_failures_are_not_called_self_tests() -> None:
    decision = decided(active=0, failed=3, failures={"download_failed": 2, "output_mismatch": 1})
    assert "failed to install (2 download_failed, 1 output_mismatch)" in decision.reason
    assert decided(failed=1).reason.startswith("1 of 1 devices of class entry failed to install;")


def test_exactly_the_failure_ratio_does_not_pause() -> None:
    assert decided(active=8, failed=2, failures={"internal": 2}).action == "hold"
    assert decided(active=7, failed=3, failures={"internal": 3}).action == "pause"


def test_failures_pause_even_when_their_devices_are_gone() -> None:
    assert decided(eligible=0, admitted=0, failed=1, failures={"internal": 1}).action == "pause"


def test_holds_below_the_success_ratio() -> None:
    decision = decided(active=9, failed=1, failures={"internal": 1})
    assert decision.action == "hold"
    assert decision.reason == (
        "Group 1 of 3 (10 %): 9 of 10 devices are active (90 %), 95 % are needed: 1 failed, "
        "0 silent, 0 absent."
    )


def test_silence_counts_against_success() -> None:
    decision = decided(active=9, silent=1)
    assert decision.action == "hold"
    assert "1 silent" in decision.reason


def test_absence_says_nothing() -> None:
    decision = decided(active=6, absent=4)
    assert decision.action == "advance"
    assert "0 silent, 4 absent" in decision.reason


@pytest.mark.parametrize("counts", [{"silent": 10}, {"absent": 10}, {"silent": 5, "absent": 5}])
def test_a_group_in_which_nobody_became_active_never_advances(counts: dict[str, int]) -> None:
    decision = decided(Policy(groups=(0.1, 1.0), success_ratio=0.0, failure_ratio=1.0), **counts)
    assert decision.action == "hold"
    assert "nothing is known of this build" in decision.reason


def test_a_group_that_lost_its_devices_opens_anew() -> None:
    decision = decided(eligible=5, admitted=0)
    assert decision.action == "open"
    assert "lost its devices" in decision.reason


def test_a_class_that_lost_all_its_devices_finishes() -> None:
    assert decided(eligible=0, admitted=0).action == "finish"


def test_soaks_before_it_goes_on() -> None:
    policy = Policy(groups=(0.1, 1.0), soak_s=60)
    first = decided(policy, active=10)
    assert first.action == "soak"
    assert "another 60 s" in first.reason
    halfway = decided(policy, active=10, state="soaking", soaking_since=NOW - timedelta(seconds=29.5))
    assert halfway.action == "soak"
    assert "another 31 s" in halfway.reason
    done = decided(policy, active=10, state="soaking", soaking_since=NOW - timedelta(seconds=60))
    assert done.action == "advance"


def test_what_fails_while_soaking_pauses() -> None:
    policy = Policy(groups=(0.1, 1.0), soak_s=60)
    decision = decided(
        policy,
        active=7,
        rolled_back=3,
        failures={"session_failed": 3},
        state="soaking",
        soaking_since=NOW - timedelta(seconds=60),
    )
    assert decision.action == "pause"


COUNTS = st.integers(0, 30)


@settings(deadline=None)
@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.integers(-1, 2))
def test_going_on_always_rests_on_evidence(
    active: int, failed: int, pending: int, late: int, silent: int, absent: int, more: int, group: int
) -> None:
    admitted = active + pending + late + silent + absent + failed
    found = evidence(
        group_index=group,
        eligible=admitted + more,
        admitted=admitted,
        active=active,
        failed=failed,
        pending=pending,
        late=late,
        silent=silent,
        absent=absent,
    )
    decision = decide(POLICY, found, NOW)
    assert decision.reason
    if decision.action in ("advance", "finish") and found.eligible:
        assert active > 0
        assert pending == 0
        assert failed / (active + failed) <= POLICY.failure_ratio
        assert active / (active + failed + silent) >= POLICY.success_ratio
    if failed and failed / (active + failed) > POLICY.failure_ratio:
        assert decision.action == "pause"
