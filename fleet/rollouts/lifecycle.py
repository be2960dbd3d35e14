"""What may become of rollouts, tracks and assignments: one table of (state, event) → state each.

An absent pair is illegal. ``rolled_back`` and ``cancelled`` are final: a second thought is a new
rollout, so that the record says what happened. A finished rollout can still be rolled back.

Assignments take the states that devices report as events. Reports may come late, twice or not at
all, so any later stage may follow an earlier one; an earlier stage never does.
"""

from __future__ import annotations

ROLLOUT_STATES = ("draft", "running", "paused", "finished", "rolled_back", "cancelled")
ROLLOUT_EVENTS = ("start", "pause", "resume", "finish", "roll_back", "cancel", "delete")
ROLLOUT: dict[tuple[str, str], str] = {
    ("draft", "start"): "running",
    ("draft", "delete"): "deleted",
    ("running", "pause"): "paused",
    ("running", "finish"): "finished",
    ("running", "cancel"): "cancelled",
    ("running", "roll_back"): "rolled_back",
    ("paused", "resume"): "running",
    ("paused", "cancel"): "cancelled",
    ("paused", "roll_back"): "rolled_back",
    ("finished", "roll_back"): "rolled_back",
}

TRACK_STATES = ("waiting", "running", "soaking", "paused", "rolled_back", "finished")
TRACK_EVENTS = ("open", "advance", "soak", "hold", "pause", "resume", "finish", "roll_back")
TRACK: dict[tuple[str, str], str] = {
    ("waiting", "open"): "running",
    ("waiting", "finish"): "finished",  # nobody to wait for
    ("running", "open"): "running",  # the group lost its devices
    ("running", "advance"): "running",
    ("running", "soak"): "soaking",
    ("running", "hold"): "running",
    ("running", "pause"): "paused",
    ("running", "finish"): "finished",
    ("soaking", "open"): "running",
    ("soaking", "advance"): "running",
    ("soaking", "soak"): "soaking",
    ("soaking", "hold"): "running",  # what was complete is so no longer
    ("soaking", "pause"): "paused",
    ("soaking", "finish"): "finished",
    ("paused", "resume"): "running",
    ("waiting", "roll_back"): "rolled_back",
    ("running", "roll_back"): "rolled_back",
    ("soaking", "roll_back"): "rolled_back",
    ("paused", "roll_back"): "rolled_back",
    ("finished", "roll_back"): "rolled_back",
}
UNFINISHED_TRACKS = frozenset({"waiting", "running", "soaking", "paused"})

STAGES = ("offered", "downloading", "verifying", "staged", "testing")  # in this order
ASSIGNMENT_STATES = (*STAGES, "active", "failed", "rolled_back", "expired")
ENDED_BADLY = frozenset({"failed", "rolled_back"})
# What ``offer`` starts over from: another build for the device, or an operator's retry.
ASSIGNMENT_EVENTS = (*ASSIGNMENT_STATES, "offer")


def _assignment_table() -> dict[tuple[str, str], str]:
    table: dict[tuple[str, str], str] = {}
    for rank, stage in enumerate(STAGES):
        later = (*STAGES[rank + 1 :], "active", "failed", "rolled_back", "expired")
        table.update({(stage, event): event for event in later})
    # A device that was given up for silent may come back at any stage.
    table.update({("expired", event): event for event in (*STAGES[1:], "active", "failed", "rolled_back")})
    # What ran may stop: the slot no longer loads.
    table.update({("active", event): event for event in ("failed", "rolled_back")})
    table.update({(state, "offer"): "offered" for state in ASSIGNMENT_STATES if state != "offered"})
    return table


ASSIGNMENT: dict[tuple[str, str], str] = _assignment_table()


def following(table: dict[tuple[str, str], str], state: str, event: str) -> str | None:
    """The state after ``event``, or None where the event is not possible in ``state``."""
    return table.get((state, event))


def possible_events(table: dict[tuple[str, str], str], state: str) -> list[str]:
    """Events that are possible in ``state``, for buttons and messages."""
    return [event for (source, event) in table if source == state]
