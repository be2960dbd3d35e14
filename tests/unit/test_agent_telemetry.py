"""What is reported: sums over windows, numbered batches, and what happens when nobody listens."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest

from device_agent.errors import Refused, ServerUnreachable
from device_agent.protocol.messages import (
    LATENCY_BUCKET_BOUNDS_MS,
    DeviceSample,
    InferenceAggregate,
    InstallEvent,
    Report,
    ReportAck,
)
from device_agent.store import Database, TelemetryQueue
from device_agent.telemetry import BATCH_EVENTS, Telemetry

BUILD = "00000000-0000-0000-0000-000000000001"
BOOT = "00000000-0000-0000-0000-00000000000b"


class Server:
    """Takes batches as the control plane does."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.error: Exception | None = None

    def post(self, payload: bytes) -> ReportAck:
        if self.error is not None:
            raise self.error
        report = msgspec.json.decode(payload, type=Report)
        self.reports.append(report)
        return ReportAck(acknowledged=report.first_sequence + len(report.events) - 1)

    @property
    def events(self) -> list[Any]:
        return [event for report in self.reports for event in report.events]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path) -> TelemetryQueue:
    return TelemetryQueue(Database(tmp_path / "state.db"))


@pytest.fixture
def telemetry(queue: TelemetryQueue, clock: Clock, tmp_path: Path) -> Telemetry:
    return Telemetry(queue, folder=tmp_path, clock=clock, boot=BOOT, window_s=30.0, sample_interval_s=60.0)


@pytest.fixture
def server() -> Server:
    return Server()


def install(number: int) -> InstallEvent:
    return InstallEvent(at=1.0, rollout=BUILD, model="m", version=number, build=BUILD, state="offered")


def count(telemetry: Telemetry, latency_ms: float, *, build: str = BUILD, failed: bool = False) -> None:
    telemetry.count_inference(
        build=build, provider="CPU", emulated=True, latency_ms=latency_ms, failed=failed
    )


def test_requests_are_summed_per_build_and_window(telemetry: Telemetry, clock: Clock, server: Server) -> None:
    for latency_ms in (0.1, 0.25, 1.0, 1e9):
        count(telemetry, latency_ms)
    count(telemetry, 5.0, failed=True)
    count(telemetry, 1.0, build=BOOT)
    telemetry.collect()
    assert telemetry.send(server.post) == 1  # a device sample, no sums yet
    assert not [event for event in server.events if isinstance(event, InferenceAggregate)]
    clock.now += 30.0
    telemetry.collect()
    telemetry.send(server.post)
    first, second = (event for event in server.events if isinstance(event, InferenceAggregate))
    assert (first.requests, first.errors, first.window_s, first.at) == (5, 1, 30.0, 1030.0)
    assert (first.provider, first.emulated) == ("CPU", True)
    assert len(first.latency_buckets) == len(LATENCY_BUCKET_BOUNDS_MS) + 1
    assert (first.latency_buckets[0], first.latency_buckets[-1], sum(first.latency_buckets)) == (2, 1, 4)
    assert (second.build, second.requests) == (BOOT, 1)


def test_device_samples_keep_their_interval(telemetry: Telemetry, clock: Clock, server: Server) -> None:
    for _ in range(5):
        telemetry.collect()
        clock.now += 20.0
    telemetry.send(server.post)
    samples = [event for event in server.events if isinstance(event, DeviceSample)]
    assert [sample.at for sample in samples] == [1000.0, 1060.0]
    assert samples[0].agent_rss_bytes > 0
    assert samples[0].storage_free_mb > 0


def test_batches_are_numbered_without_gaps(telemetry: Telemetry, server: Server) -> None:
    for number in range(BATCH_EVENTS + 5):
        telemetry.record(install(number))
    assert telemetry.send(server.post) == 2
    assert [report.first_sequence for report in server.reports] == [0, BATCH_EVENTS]
    assert [event.version for event in server.events] == list(range(BATCH_EVENTS + 5))
    assert telemetry.waiting() == 0


def test_a_batch_not_acknowledged_is_sent_again_unchanged(
    telemetry: Telemetry, queue: TelemetryQueue, server: Server
) -> None:
    telemetry.record(install(1))
    server.error = ServerUnreachable("gone")
    with pytest.raises(ServerUnreachable):
        telemetry.send(server.post)
    waiting = queue.oldest()
    telemetry.record(install(2))
    with pytest.raises(ServerUnreachable):
        telemetry.send(server.post)
    assert queue.oldest() == waiting
    server.error = None
    assert telemetry.send(server.post) == 2


def test_a_later_start_sends_what_an_earlier_one_left(
    telemetry: Telemetry, queue: TelemetryQueue, clock: Clock, server: Server, tmp_path: Path
) -> None:
    telemetry.record(install(1))
    server.error = ServerUnreachable("gone")
    with pytest.raises(ServerUnreachable):
        telemetry.send(server.post)
    server.error = None
    later = Telemetry(queue, folder=tmp_path, clock=clock)
    later.record(install(2))
    later.send(server.post)
    assert [(report.boot == BOOT, report.first_sequence) for report in server.reports] == [
        (True, 0),
        (False, 0),
    ]


def test_a_poisoned_batch_does_not_dam_up_the_rest(telemetry: Telemetry) -> None:
    answers = itertools.chain([Refused(code="bad", status=400, detail="")], itertools.repeat(None))
    server = Server()

    def post(payload: bytes) -> ReportAck:
        server.error = next(answers)
        return server.post(payload)

    for number in range(BATCH_EVENTS + 1):
        telemetry.record(install(number))
    telemetry.send(post)
    assert [event.version for event in server.events] == [BATCH_EVENTS]


def test_a_device_that_is_refused_keeps_its_reports(telemetry: Telemetry, server: Server) -> None:
    telemetry.record(install(1))
    server.error = Refused(code="token", status=401, detail="")
    with pytest.raises(Refused):
        telemetry.send(server.post)
    assert telemetry.waiting() == 1


def test_an_acknowledgement_of_less_ends_the_sending(telemetry: Telemetry) -> None:
    telemetry.record(install(1))
    assert telemetry.send(lambda payload: ReportAck(acknowledged=-1)) == 0
    assert telemetry.waiting() == 1
