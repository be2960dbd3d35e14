"""The agent: its parts put together, the check-in, the loop, and its status."""

from device_agent.agent.check_in import CheckIn, Outcome
from device_agent.agent.device import Device, lock_state
from device_agent.agent.loop import run_agent
from device_agent.agent.status import status_of, summary

__all__ = ["CheckIn", "Device", "Outcome", "lock_state", "run_agent", "status_of", "summary"]
