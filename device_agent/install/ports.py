"""What an installation needs of the rest of the agent; handed in, so that tests hand in others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from device_agent.protocol.manifest import Manifest
from device_agent.protocol.messages import SelfTest


class BlobSource(Protocol):
    """Where stored chunks come from: :class:`device_agent.transport.DeviceApi`."""

    def blob(self, sha256: str, *, size_bytes: int) -> Iterator[bytes]: ...


class ProofLike(Protocol):
    """A build that passed, ready to serve."""

    @property
    def served(self) -> Any: ...
    @property
    def self_test(self) -> SelfTest: ...


class InstallRuntime(Protocol):
    """What proves and serves builds: :class:`device_agent.runtime.Runtime`."""

    def check_requirements(self, manifest: Manifest) -> None: ...
    def prove(self, folder: Path, manifest: Manifest) -> ProofLike: ...
    def load(self, folder: Path, manifest: Manifest) -> Any: ...
    def serve(self, served: Any) -> None: ...
    def withdraw(self, model: str) -> None: ...
