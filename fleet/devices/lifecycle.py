"""What may become of a device: one table of (state, event) → state.

An absent pair is illegal. ``decommissioned`` has no way out: a phone that comes back makes a new
key, because the old one may have left the house with it.
"""

from __future__ import annotations

STATES = ("pending", "accepted", "rejected", "decommissioned")
EVENTS = ("accept", "reject", "decommission")

TRANSITIONS: dict[tuple[str, str], str] = {
    ("pending", "accept"): "accepted",
    ("pending", "reject"): "rejected",
    ("rejected", "accept"): "accepted",  # an operator may change their mind
    ("pending", "decommission"): "decommissioned",
    ("accepted", "decommission"): "decommissioned",
    ("rejected", "decommission"): "decommissioned",
}


def following(state: str, event: str) -> str | None:
    """The state after ``event``, or None where the event is not possible in ``state``."""
    return TRANSITIONS.get((state, event))


def possible_events(state: str) -> list[str]:
    """What may be done to a device in ``state``, for buttons and messages."""
    return [event for event in EVENTS if (state, event) in TRANSITIONS]
