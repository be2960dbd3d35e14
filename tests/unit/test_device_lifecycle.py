"""Every (state, event) pair of a device, the illegal ones too."""

from __future__ import annotations

import itertools

import pytest

from fleet.devices import lifecycle
from fleet.devices.models import Device

LEGAL = {
    ("pending", "accept"): "accepted",
    ("pending", "reject"): "rejected",
    ("pending", "decommission"): "decommissioned",
    ("accepted", "decommission"): "decommissioned",
    ("rejected", "accept"): "accepted",
    ("rejected", "decommission"): "decommissioned",
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(lifecycle.STATES, lifecycle.EVENTS)))
def test_every_pair(state: str, event: str) -> None:
    assert lifecycle.following(state, event) == LEGAL.get((state, event))


def test_states_are_those_of_the_rows() -> None:
    assert set(lifecycle.STATES) == set(Device.State.values)


def test_possible_events() -> None:
    assert lifecycle.possible_events("pending") == ["accept", "reject", "decommission"]
    assert lifecycle.possible_events("decommissioned") == []
