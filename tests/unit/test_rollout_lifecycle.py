"""Every (state, event) pair of rollouts, tracks and assignments, the illegal ones too."""

from __future__ import annotations

import itertools

import pytest

from fleet.rollouts import lifecycle
from fleet.rollouts.models import Assignment, Rollout, RolloutTrack

ROLLOUT = {
    "draft": {"start": "running", "delete": "deleted"},
    "running": {
        "pause": "paused",
        "finish": "finished",
        "cancel": "cancelled",
        "roll_back": "rolled_back",
    },
    "paused": {"resume": "running", "cancel": "cancelled", "roll_back": "rolled_back"},
    "finished": {"roll_back": "rolled_back"},
    "rolled_back": {},
    "cancelled": {},
}
UNDER_WAY = {
    "open": "running",
    "advance": "running",
    "soak": "soaking",
    "hold": "running",
    "pause": "paused",
    "finish": "finished",
    "roll_back": "rolled_back",
}
TRACK = {
    "waiting": {"open": "running", "finish": "finished", "roll_back": "rolled_back"},
    "running": UNDER_WAY,
    "soaking": UNDER_WAY,
    "paused": {"resume": "running", "roll_back": "rolled_back"},
    "finished": {"roll_back": "rolled_back"},
    "rolled_back": {},
}
ENDS = ("active", "failed", "rolled_back")
ASSIGNMENT: dict[str, tuple[str, ...]] = {
    "offered": ("downloading", "verifying", "staged", "testing", *ENDS, "expired"),
    "downloading": ("verifying", "staged", "testing", *ENDS, "expired"),
    "verifying": ("staged", "testing", *ENDS, "expired"),
    "staged": ("testing", *ENDS, "expired"),
    "testing": (*ENDS, "expired"),
    "active": ("failed", "rolled_back"),
    "failed": (),
    "rolled_back": (),
    "expired": ("downloading", "verifying", "staged", "testing", *ENDS),
}


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(lifecycle.ROLLOUT_STATES, lifecycle.ROLLOUT_EVENTS))
)
def test_every_pair_of_a_rollout(state: str, event: str) -> None:
    assert lifecycle.following(lifecycle.ROLLOUT, state, event) == ROLLOUT[state].get(event)


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(lifecycle.TRACK_STATES, lifecycle.TRACK_EVENTS))
)
def test_every_pair_of_a_track(state: str, event: str) -> None:
    assert lifecycle.following(lifecycle.TRACK, state, event) == TRACK[state].get(event)


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(lifecycle.ASSIGNMENT_STATES, lifecycle.ASSIGNMENT_STATES))
)
def test_every_report_of_an_assignment(state: str, event: str) -> None:
    expected = event if event in ASSIGNMENT[state] else None
    assert lifecycle.following(lifecycle.ASSIGNMENT, state, event) == expected


@pytest.mark.parametrize("state", lifecycle.ASSIGNMENT_STATES)
def test_an_offer_starts_over_from_everywhere(state: str) -> None:
    expected = None if state == "offered" else "offered"
    assert lifecycle.following(lifecycle.ASSIGNMENT, state, "offer") == expected


def test_no_way_leads_back_but_an_offer() -> None:
    rank = {state: index for index, state in enumerate((*lifecycle.STAGES, "active"))}
    for (state, event), after in lifecycle.ASSIGNMENT.items():
        if event != "offer" and state in rank and after in rank:
            assert rank[after] > rank[state]


def test_tables_speak_of_known_states_and_events_only() -> None:
    tables = (
        (lifecycle.ROLLOUT, {*lifecycle.ROLLOUT_STATES, "deleted"}, lifecycle.ROLLOUT_EVENTS),
        (lifecycle.TRACK, set(lifecycle.TRACK_STATES), lifecycle.TRACK_EVENTS),
        (lifecycle.ASSIGNMENT, set(lifecycle.ASSIGNMENT_STATES), lifecycle.ASSIGNMENT_EVENTS),
    )
    for table, states, events in tables:
        for (state, event), after in table.items():
            assert {state, after} <= states
            assert event in events


def test_states_are_those_of_the_rows() -> None:
    assert set(lifecycle.ROLLOUT_STATES) == set(Rollout.State.values)
    assert set(lifecycle.TRACK_STATES) == set(RolloutTrack.State.values)
    assert set(lifecycle.ASSIGNMENT_STATES) == set(Assignment.State.values)


def test_possible_events_of_a_rollout() -> None:
    assert lifecycle.possible_events(lifecycle.ROLLOUT, "paused") == ["resume", "cancel", "roll_back"]
    assert lifecycle.possible_events(lifecycle.ROLLOUT, "cancelled") == []
