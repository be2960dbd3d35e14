"""What the agent remembers: SQLite with ``synchronous=FULL``, and durable files.

Tables: identity and small values, TUF version floors, assignment floors, models with their A/B
slots, installations, and the telemetry queue.
"""

from device_agent.store.database import Database
from device_agent.store.durable import sync_folder, write_durably
from device_agent.store.identity import Identity, IdentityStore
from device_agent.store.installs import Install, InstallStore, Slot
from device_agent.store.queue import TelemetryQueue
from device_agent.store.versions import VersionFloors

__all__ = [
    "Database",
    "Identity",
    "IdentityStore",
    "Install",
    "InstallStore",
    "Slot",
    "TelemetryQueue",
    "VersionFloors",
    "sync_folder",
    "write_durably",
]
