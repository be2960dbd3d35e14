"""What the agent reports: numbers and enumerations of the protocol's schema, never content.

Inference is summed up per build and window; events and sums wait in SQLite until the server has
acknowledged the numbered batch that carries them.
"""

from __future__ import annotations

import bisect
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from device_agent.errors import Refused
from device_agent.protocol.messages import (
    LATENCY_BUCKET_BOUNDS_MS,
    DeviceSample,
    Event,
    InferenceAggregate,
    InstallEvent,
    ReportAck,
)
from device_agent.store import TelemetryQueue

BATCH_EVENTS = 200
WINDOW_S = 30.0
SAMPLE_INTERVAL_S = 60.0
LONGEST_LATENCY_MS = 3_600_000.0  # keeps a sum within the schema whatever the clock does


class Telemetry:
    """Collects, sums up, numbers and sends.

    Args:
        queue: where everything waits.
        folder: state folder, whose free storage is reported.
        clock: Unix seconds.
        boot: identifies this start of the agent; sequence numbers count within it.
        window_s: how long one inference aggregate lasts.
        sample_interval_s: time between device samples.
    """

    def __init__(
        self,
        queue: TelemetryQueue,
        *,
        folder: Path,
        clock: Callable[[], float],
        boot: str | None = None,
        window_s: float = WINDOW_S,
        sample_interval_s: float = SAMPLE_INTERVAL_S,
    ) -> None:
        self.boot = boot or str(uuid.uuid4())
        self.drained_at = 0.0  # Unix seconds; the server has every report from before
        self._queue = queue
        self._folder = folder
        self._clock = clock
        self._window_s = window_s
        self._sample_interval_s = sample_interval_s
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, str, bool], InferenceAggregate] = {}
        self._window_start = clock()
        self._next_sample = 0.0
        self._next_sequence = 0

    def record(self, event: Event) -> None:
        """Queue an event durably. Install events outlive the others in a full queue."""
        self._queue.append(msgspec.json.encode(event), important=isinstance(event, InstallEvent))

    def count_inference(
        self, *, build: str, provider: str, emulated: bool, latency_ms: float, failed: bool
    ) -> None:
        """Add one request to its build's sums. A failed one adds no latency."""
        with self._lock:
            key = (build, provider, emulated)
            total = self._sums.get(key) or self._empty(*key)
            if failed:
                total.errors += 1
            else:
                total.latency_buckets[bisect.bisect_left(LATENCY_BUCKET_BOUNDS_MS, latency_ms)] += 1
                total.latency_sum_ms += min(latency_ms, LONGEST_LATENCY_MS)
            total.requests += 1
            self._sums[key] = total

    def collect(self, *, flush: bool = False) -> None:
        """Queue what has become due: the window's sums and a device sample.

        Args:
            flush: end the window now (the agent stops, or checks in once).
        """
        now = self._clock()
        with self._lock:
            due = flush or now - self._window_start >= self._window_s
            sums, window_s = (list(self._sums.values()), now - self._window_start) if due else ([], 0.0)
            if due:
                self._sums, self._window_start = {}, now
        for total in sums:
            total.at, total.window_s = now, max(window_s, 0.0)
            self.record(total)
        if now >= self._next_sample:
            self._next_sample = now + self._sample_interval_s
            self.record(device_sample(self._folder, at=now))

    def send(self, post: Callable[[bytes], ReportAck]) -> int:
        """Send everything that waits, oldest first; returns the batches acknowledged.

        Args:
            post: sends one batch (:meth:`device_agent.transport.DeviceApi.report`).

        Raises:
            TransportError: if the server cannot take it now; it waits on.
        """
        sent, asked_at = 0, self._clock()
        while (batch := self._queue.oldest()) or self._cut():
            if batch is None:
                continue
            try:
                acknowledged = post(batch.payload).acknowledged
            except Refused as error:
                if error.status not in (400, 413, 422):
                    raise
                # the server will never take it: a poisoned batch must not dam up the rest
                self._queue.discard(boot=batch.boot, first_sequence=batch.first_sequence)
                continue
            if not self._queue.acknowledge(boot=batch.boot, up_to=acknowledged):
                return sent
            sent += 1
        self.drained_at = asked_at
        return sent

    def waiting(self) -> int:
        """Events and batches not yet acknowledged."""
        return self._queue.waiting()

    def _cut(self) -> bool:
        count = self._queue.cut(
            boot=self.boot, next_sequence=self._next_sequence, limit=BATCH_EVENTS, render=self._render
        )
        self._next_sequence += count
        return count > 0

    def _render(self, first_sequence: int, payloads: list[bytes]) -> bytes:
        """A :class:`~device_agent.protocol.messages.Report` around events that are encoded already."""
        events = [msgspec.Raw(payload) for payload in payloads]
        return msgspec.json.encode({"boot": self.boot, "first_sequence": first_sequence, "events": events})

    @staticmethod
    def _empty(build: str, provider: str, emulated: bool) -> InferenceAggregate:
        return InferenceAggregate(
            at=0.0,
            window_s=0.0,
            build=build,
            provider=provider,
            emulated=emulated,
            requests=0,
            errors=0,
            latency_buckets=[0] * (len(LATENCY_BUCKET_BOUNDS_MS) + 1),
            latency_sum_ms=0.0,
        )


def device_sample(folder: Path, *, at: float) -> DeviceSample:
    """How the device is doing now; battery and temperature only where it tells."""
    process = psutil.Process()
    times = process.cpu_times()
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return DeviceSample(
        at=at,
        agent_rss_bytes=process.memory_info().rss,
        cpu_seconds=times.user + times.system,
        storage_free_mb=shutil.disk_usage(folder).free // 2**20,
        battery_percent=min(max(round(battery.percent), 0), 100) if battery else None,
        charging=bool(battery.power_plugged) if battery else None,
    )
