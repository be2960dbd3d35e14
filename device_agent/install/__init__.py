"""Installing builds: chunks, A/B slots, self-test, commit or roll back."""

from device_agent.install.chunks import ChunkCache, decompress
from device_agent.install.installer import Installer
from device_agent.install.ports import BlobSource, InstallRuntime
from device_agent.install.recovery import Recovery
from device_agent.install.slots import Slots

__all__ = ["BlobSource", "ChunkCache", "InstallRuntime", "Installer", "Recovery", "Slots", "decompress"]
