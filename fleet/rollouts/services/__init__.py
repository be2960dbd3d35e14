"""The only writers of rollouts: an operator's actions, the periodic step, and devices' events."""

from fleet.rollouts.services.assignments import (
    Applied,
    apply_install_events,
    desired_for,
    signed_assignment_for,
)
from fleet.rollouts.services.generation import bump_generation
from fleet.rollouts.services.operations import (
    cancel_rollout,
    create_rollout,
    delete_rollout,
    pause_rollout,
    resume_rollout,
    resume_track,
    roll_back_rollout,
    start_rollout,
)
from fleet.rollouts.services.stepping import step_rollout, step_rollouts, step_touched

__all__ = [
    "Applied",
    "apply_install_events",
    "bump_generation",
    "cancel_rollout",
    "create_rollout",
    "delete_rollout",
    "desired_for",
    "pause_rollout",
    "resume_rollout",
    "resume_track",
    "roll_back_rollout",
    "signed_assignment_for",
    "start_rollout",
    "step_rollout",
    "step_rollouts",
    "step_touched",
]
