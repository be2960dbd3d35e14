"""What the device serves: proves builds, keeps sessions, runs inference on lanes."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from device_agent.errors import InferenceError, InstallError
from device_agent.protocol.manifest import Manifest
from device_agent.protocol.messages import Accelerator, SelfTest
from device_agent.runtime.lanes import Lanes
from device_agent.runtime.providers import engine_version, older_than
from device_agent.runtime.self_test import self_test
from device_agent.runtime.session import Session, Tensor, open_session
from device_agent.scheduler import Priority

DEFAULT_THREADS = 4


@dataclass(frozen=True)
class Served:
    """A build that answers requests."""

    manifest: Manifest
    session: Session
    lanes: tuple[str, ...]
    emulated: bool


@dataclass(frozen=True)
class Proof:
    """A build that has passed its self-test, with the session that did."""

    served: Served
    self_test: SelfTest


class Runtime:
    """Sessions of this device.

    Args:
        accelerators: as reported; one lane each.
        ram_bytes: the device's memory (that of the emulated device, where one is given).
        threads: intra-op threads per session; 0 for one per core, at most 4.
    """

    def __init__(self, accelerators: Sequence[Accelerator], *, ram_bytes: int, threads: int = 0) -> None:
        self._accelerators = tuple(accelerators)
        self._ram_bytes = ram_bytes
        self._threads = threads or min(os.cpu_count() or 1, DEFAULT_THREADS)
        self._lanes = Lanes([accelerator.name for accelerator in accelerators])
        self._served: dict[str, Served] = {}
        self._lock = threading.Lock()

    def check_requirements(self, manifest: Manifest) -> None:
        """Refuse a build that cannot run here, before anything is downloaded.

        Raises:
            InstallError: ``runtime_too_old``, ``insufficient_memory`` or ``provider_fallback``.
        """
        needed = manifest.runtime
        if needed.engine != "onnxruntime" or older_than(engine_version(), needed.minimum_version):
            raise InstallError(
                "runtime_too_old",
                f"needs {needed.engine} {needed.minimum_version}, here is onnxruntime {engine_version()}",
            )
        if manifest.predicted_memory_bytes > self._ram_bytes:
            raise InstallError(
                "insufficient_memory",
                f"needs {manifest.predicted_memory_bytes} bytes of {self._ram_bytes}",
            )
        self._placing(manifest)

    def load(self, folder: Path, manifest: Manifest) -> Served:
        """Open a build that was proven before.

        Raises:
            InstallError: if it does not load on its provider.
        """
        accelerators = self._placing(manifest)
        session = open_session(
            folder / manifest.entry, provider=manifest.runtime.execution_provider, threads=self._threads
        )
        emulated = manifest.runtime.emulated or any(one.emulated for one in accelerators)
        return Served(manifest, session, tuple(one.name for one in accelerators), emulated)

    def prove(self, folder: Path, manifest: Manifest) -> Proof:
        """Open a build and run its self-test.

        Raises:
            InstallError: with the failure, and the self-test where it ran.
        """
        served = self.load(folder, manifest)
        return Proof(served, self_test(served.session, folder, manifest, emulated=served.emulated))

    def serve(self, served: Served) -> None:
        """Answer requests with this build from now on; running ones finish on the old."""
        with self._lock:
            self._served[served.manifest.model] = served

    def withdraw(self, model: str) -> None:
        """Stop serving a model."""
        with self._lock:
            self._served.pop(model, None)

    def models(self) -> list[Served]:
        """Everything served, by name."""
        with self._lock:
            return [self._served[name] for name in sorted(self._served)]

    def model(self, name: str, version: str = "") -> Served:
        """The served build of a model.

        Raises:
            InferenceError: 404 if the device does not serve it, or not that version.
        """
        with self._lock:
            served = self._served.get(name)
        if served is None:
            raise InferenceError(f"no model {name!r} on this device", status=404, code="unknown_model")
        if version and version != str(served.manifest.version):
            raise InferenceError(
                f"this device serves version {served.manifest.version} of {name!r}, not {version}",
                status=404,
                code="unknown_version",
            )
        return served

    def infer(
        self,
        served: Served,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str] = (),
        *,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Future[dict[str, Tensor]]:
        """Check the inputs and queue the request on a lane.

        Raises:
            InferenceError: at once if inputs or outputs do not fit the model.
        """
        served.session.check(inputs, outputs)
        return self._lanes.submit(
            lambda options: served.session.run(inputs, outputs, options=options),
            lanes=served.lanes,
            priority=priority,
        )

    def close(self) -> None:
        """Stop lanes and drop sessions."""
        self._lanes.close()
        with self._lock:
            self._served.clear()

    def _placing(self, manifest: Manifest) -> list[Accelerator]:
        """Accelerators that run the build: those of its kind, else those with its provider."""
        provider = manifest.runtime.execution_provider
        able = [one for one in self._accelerators if one.execution_provider == provider]
        kind = [one for one in able if one.kind == manifest.runtime.accelerator]
        if not able:
            raise InstallError("provider_fallback", f"no accelerator of this device runs {provider}")
        return kind or able
