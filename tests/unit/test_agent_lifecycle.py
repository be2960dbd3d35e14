"""Every (state, event) pair of an installation, and the rules around failures."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from device_agent.lifecycle import (
    MAX_ATTEMPTS,
    PENDING,
    RETRY_CEILING_S,
    Event,
    IllegalTransition,
    State,
    after_failure,
    final_event,
    next_state,
    retry_delay_s,
)
from device_agent.protocol.messages import FailureCode, InstallState

ALLOWED = {
    ("offered", "start"): "downloading",
    ("offered", "postpone"): "offered",
    ("offered", "fail"): "failed",
    ("offered", "expire"): "expired",
    ("offered", "offer"): "offered",
    ("downloading", "downloaded"): "verifying",
    ("downloading", "postpone"): "offered",
    ("downloading", "fail"): "failed",
    ("downloading", "expire"): "expired",
    ("downloading", "recover"): "offered",
    ("downloading", "offer"): "offered",
    ("verifying", "verified"): "staged",
    ("verifying", "postpone"): "offered",
    ("verifying", "fail"): "failed",
    ("verifying", "expire"): "expired",
    ("verifying", "recover"): "offered",
    ("verifying", "offer"): "offered",
    ("staged", "test"): "testing",
    ("staged", "postpone"): "offered",
    ("staged", "fail"): "failed",
    ("staged", "expire"): "expired",
    ("staged", "offer"): "offered",
    ("testing", "passed"): "active",
    ("testing", "postpone"): "offered",
    ("testing", "fail"): "failed",
    ("testing", "roll_back"): "rolled_back",
    ("testing", "expire"): "expired",
    ("testing", "offer"): "offered",
    ("active", "fail"): "failed",
    ("active", "roll_back"): "rolled_back",
    ("active", "offer"): "offered",
    ("failed", "offer"): "offered",
    ("rolled_back", "offer"): "offered",
    ("expired", "offer"): "offered",
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair(state: State, event: Event) -> None:
    expected = ALLOWED.get((state.value, event.value))
    if expected is None:
        with pytest.raises(IllegalTransition, match=state.value):
            next_state(state, event)
    else:
        assert next_state(state, event) == expected


def test_states_are_those_of_the_protocol() -> None:
    assert {state.value for state in State} == set(get_args(InstallState))


def test_no_way_to_active_leaves_out_the_self_test() -> None:
    assert [pair for pair, state in ALLOWED.items() if state == "active"] == [("testing", "passed")]


def test_pending_states_are_those_with_work_left() -> None:
    assert {state for state in State if state not in PENDING} == {
        "active",
        "failed",
        "rolled_back",
        "expired",
    }


@pytest.mark.parametrize("failure", get_args(FailureCode))
def test_failures_are_final_in_the_end(failure: FailureCode) -> None:
    assert after_failure(failure, attempts=MAX_ATTEMPTS) is Event.FAIL


@pytest.mark.parametrize(
    "failure", ["output_mismatch", "provider_fallback", "runtime_too_old", "untrusted_assignment"]
)
def test_a_failure_of_the_build_itself_is_not_tried_again(failure: FailureCode) -> None:
    assert after_failure(failure, attempts=1) is Event.FAIL


def test_a_transient_failure_is_tried_again() -> None:
    assert after_failure("download_failed", attempts=1) is Event.POSTPONE


@pytest.mark.parametrize(
    ("state", "has_previous", "event"),
    [
        (State.TESTING, True, Event.ROLL_BACK),
        (State.TESTING, False, Event.FAIL),
        (State.ACTIVE, True, Event.ROLL_BACK),
        (State.DOWNLOADING, True, Event.FAIL),  # nothing was switched, so nothing is rolled back
    ],
)
def test_rolled_back_only_where_an_earlier_build_takes_over(
    state: State, has_previous: bool, event: Event
) -> None:
    assert final_event(state, has_previous=has_previous) is event


def test_waits_double_up_to_a_ceiling() -> None:
    assert [retry_delay_s(n, base_s=1.0) for n in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert retry_delay_s(60) == RETRY_CEILING_S
