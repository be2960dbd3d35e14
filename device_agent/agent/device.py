"""The parts of one agent, made from its configuration."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from device_agent import capabilities
from device_agent.config import DATABASE_NAME, KEY_NAME, AgentConfig, require_server
from device_agent.errors import AgentRunning
from device_agent.install import Installer, Recovery
from device_agent.protocol.messages import Accelerator, CapabilityReport
from device_agent.runtime import Runtime, detect_accelerators, engine_version, measure
from device_agent.store import Database, IdentityStore, InstallStore, TelemetryQueue, VersionFloors
from device_agent.telemetry import Telemetry
from device_agent.transport import DeviceApi, DeviceKey, HttpClient

log = logging.getLogger(__name__)

LOCK_NAME = "agent.lock"
MAX_THREADS = 4


@contextmanager
def lock_state(state_dir: Path) -> Iterator[None]:
    """Hold the state folder for this process alone.

    Raises:
        AgentRunning: if another one holds it.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AgentRunning(f"another agent works in {state_dir}; stop it first") from error
        yield
    finally:
        os.close(descriptor)


def is_locked(state_dir: Path) -> bool:
    """Whether an agent works in the state folder."""
    if not (state_dir / LOCK_NAME).exists():
        return False
    try:
        with lock_state(state_dir):
            return False
    except AgentRunning:
        return True


class Device:
    """Everything that one agent consists of; the caller holds the state folder's lock.

    Args:
        state_dir: keys, database, models.
        config: settings.
        stop: set when the agent is to end; running transfers give up then.
        clock: Unix seconds.

    Raises:
        ConfigError: if the configuration or the state cannot be used.
    """

    def __init__(
        self,
        state_dir: Path,
        config: AgentConfig,
        *,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.state_dir = state_dir
        self.config = config
        self.clock = clock
        self.stop = stop or threading.Event()
        self.profile = capabilities.load_profile(config.profile)
        self.http = HttpClient(
            require_server(config),
            timeout_s=config.request_timeout_s,
            minimum_rate_bytes_per_s=config.minimum_rate_bytes_per_s,
            wait=self.stop.wait,
        )
        self.api = DeviceApi(self.http, DeviceKey.load_or_create(state_dir / KEY_NAME))
        self.database = Database(state_dir / DATABASE_NAME)
        self.identity = IdentityStore(self.database)
        self.installs = InstallStore(self.database)
        self.floors = VersionFloors(self.database)
        self.telemetry = Telemetry(TelemetryQueue(self.database), folder=state_dir, clock=clock)
        self.threads = config.threads or min(os.cpu_count() or 1, MAX_THREADS)
        self.accelerators = self._accelerators()
        self.runtime = Runtime(
            self.accelerators, ram_bytes=capabilities.ram_bytes(self.profile), threads=self.threads
        )
        self.installer = Installer(
            state_dir,
            store=self.installs,
            source=self.api,
            runtime=self.runtime,
            report=self.telemetry.record,
            clock=clock,
            retry_base_s=config.retry_base_s,
        )

    def recover(self) -> None:
        """Put half-done installations right and serve what is active. Call once, first."""
        Recovery(
            self.state_dir,
            installer=self.installer,
            store=self.installs,
            runtime=self.runtime,
            report=self.telemetry.record,
            clock=self.clock,
        ).run()

    def capability_report(self) -> CapabilityReport:
        """What the device is now."""
        return capabilities.build_report(
            self.profile,
            self.accelerators,
            folder=self.state_dir,
            runtime_version=engine_version(),
            tags=self.config.tags,
        )

    def close(self) -> None:
        self.runtime.close()
        self.http.close()
        self.database.close()

    def _accelerators(self) -> list[Accelerator]:
        detected = detect_accelerators()
        return capabilities.accelerators_of(self.profile, detected, self._figures(detected))

    def _figures(self, detected: list[Accelerator]) -> dict[str, dict[str, float]]:
        """Micro-benchmarks per execution provider: measured once for this hardware and runtime."""
        key = capabilities.hardware_key(engine_version(), self.threads)
        if self.identity.value("figures_key") == key:
            return msgspec.json.decode(self.identity.value("figures"), type=dict[str, dict[str, float]])
        log.info("measuring this device")
        figures = {
            one.execution_provider: msgspec.structs.asdict(
                measure(one.execution_provider, threads=self.threads)
            )
            for one in detected
        }
        self.identity.set_value("figures", msgspec.json.encode(figures).decode())
        self.identity.set_value("figures_key", key)
        return figures
