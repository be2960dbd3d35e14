"""What the agent believes: TUF metadata, and the signed assignment that must agree with it."""

from device_agent.trust.assignment import agree, verify_assignment
from device_agent.trust.metadata import Floors, Repository, TrustedTarget, verify_root
from device_agent.trust.models import TrustedModel, assignment_keys, trusted_model

__all__ = [
    "Floors",
    "Repository",
    "TrustedModel",
    "TrustedTarget",
    "agree",
    "assignment_keys",
    "trusted_model",
    "verify_assignment",
    "verify_root",
]
