"""Errors of rollouts.

::

    FleetError
    ├── InvalidPolicy     400  invalid_policy     with ``field``
    ├── InvalidRollout    400  invalid_rollout    with ``field``
    └── RolloutConflict   409  rollout_state, release_not_published, track_state
"""

from __future__ import annotations

from fleet.errors import Refused, StateConflict


class InvalidPolicy(Refused):
    """A policy that could not be followed. It is refused when it is stored, never ignored later.

    Args:
        detail: what is wrong, and what is possible instead.
        field: the policy's field at fault.
    """

    code = "invalid_policy"
    title = "The rollout policy is not valid"

    def __init__(self, detail: str, *, field: str) -> None:
        super().__init__(detail, field=field)
        self.field = field


class InvalidRollout(Refused):
    code = "invalid_rollout"
    title = "The rollout is not valid"


class RolloutConflict(StateConflict):
    code = "rollout_state"
