"""Telemetry: batches stored once, rollups rebuilt, plots and summaries by merging."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from django.db import connections, router

from device_agent.protocol.messages import DeviceSample, Event, Report
from fleet.devices.models import Device
from fleet.telemetry import selectors, services
from fleet.telemetry.errors import InvalidReport
from fleet.telemetry.models import DeviceRow, InferenceHour, InferenceRow, StaleHour, TelemetryBatch
from fleet.telemetry.tasks import roll_up as roll_up_task
from tenancy.models import Tenant
from tests.factories import inference, install_event, make_devices

pytestmark = pytest.mark.django_db(databases="__all__")

NOW = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
BOOT = str(uuid.uuid4())
BUILD = uuid.uuid4()


@pytest.fixture
def device(tenant: Tenant) -> Device:
    return make_devices(tenant, 1, class_name="entry")[0]


def sample(at: datetime, **changes: Any) -> DeviceSample:
    fields: dict[str, Any] = {"agent_rss_bytes": 50_000_000, "cpu_seconds": 1.5, "storage_free_mb": 900}
    return DeviceSample(at=at.timestamp(), **fields | changes)


def report(*events: Event, first: int = 0, boot: str = BOOT) -> Report:
    return Report(boot=boot, first_sequence=first, events=list(events))


def ingest(device: Device, *events: Event, first: int = 0, boot: str = BOOT, now: datetime = NOW) -> int:
    return services.ingest(device=device, report=report(*events, first=first, boot=boot), received_at=now)[0]


def test_a_batch_is_stored_and_acknowledged(device: Device) -> None:
    assert ingest(device, inference(BUILD, NOW, latency_ms=7), sample(NOW, charging=True), first=10) == 11
    batch = TelemetryBatch.objects.get()
    assert (batch.first_sequence, batch.last_sequence, batch.tenant_id) == (10, 11, device.tenant_id)
    row = InferenceRow.objects.get()
    assert (row.device_id, row.build_id, row.class_name, row.requests) == (device.pk, BUILD, "entry", 10)
    assert DeviceRow.objects.get().charging is True


def test_the_same_batch_again_is_acknowledged_and_not_doubled(device: Device) -> None:
    events = (inference(BUILD, NOW, latency_ms=7), sample(NOW))
    assert [ingest(device, *events) for _ in range(3)] == [1, 1, 1]
    assert (TelemetryBatch.objects.count(), InferenceRow.objects.count(), DeviceRow.objects.count()) == (
        1,
        1,
        1,
    )


def test_install_events_come_back_for_a_repeat_too(device: Device) -> None:
    class Offer:
        rollout, build, model, version = str(uuid.uuid4()), str(BUILD), "minilm", 1

    event = install_event(NOW, Offer, "active")
    for _ in range(2):  # the first time may have died before they were applied
        _, events = services.ingest(device=device, report=report(event, sample(NOW)), received_at=NOW)
        assert events == [event]


def test_an_overlapping_batch_adds_only_what_is_new(device: Device) -> None:
    windows = [inference(BUILD, NOW + timedelta(seconds=i), latency_ms=7) for i in range(6)]
    assert ingest(device, *windows[:4], first=0) == 3
    assert ingest(device, *windows[2:], first=2) == 5
    assert InferenceRow.objects.count() == 6
    assert ingest(device, *windows, first=0) == 5
    assert InferenceRow.objects.count() == 6


def test_boots_and_devices_count_for_themselves(device: Device, tenant: Tenant) -> None:
    (other,) = make_devices(tenant, 1, class_name="entry")
    window = inference(BUILD, NOW, latency_ms=7)
    ingest(device, window)
    ingest(device, window, boot=str(uuid.uuid4()))
    ingest(other, window)
    assert InferenceRow.objects.count() == 3


@pytest.mark.parametrize("at", [0.0, -1e300, 1e300, 4e9])
def test_an_impossible_clock_is_replaced_by_the_receipt(device: Device, at: float) -> None:
    ingest(device, msgspec.structs.replace(sample(NOW), at=at))
    assert DeviceRow.objects.get().at == NOW


def test_a_believable_clock_is_kept(device: Device) -> None:
    at = NOW - timedelta(days=3, seconds=0.5)
    ingest(device, sample(at))
    assert DeviceRow.objects.get().at == at


@pytest.mark.parametrize(
    "change", [{"latency_buckets": [1, 2]}, {"latency_buckets": []}, {"build": "-" * 36}]
)
def test_a_row_that_could_not_be_used_is_refused_whole(device: Device, change: dict[str, Any]) -> None:
    bad = msgspec.structs.replace(inference(BUILD, NOW, latency_ms=7), **change)
    with pytest.raises(InvalidReport) as caught:
        ingest(device, sample(NOW), bad)
    assert caught.value.as_problem()["event"] == 1
    assert TelemetryBatch.objects.count() == DeviceRow.objects.count() == 0


@pytest.mark.parametrize("text", ["a sentence of a user", "CPUExecutionProvider\n", "", "x" * 65])
def test_a_provider_is_a_name_and_no_text(text: str) -> None:
    event = {**msgspec.to_builtins(inference(BUILD, NOW, latency_ms=7)), "provider": text}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(event, Event)


@pytest.mark.parametrize("boot", [f"{BUILD}\n", f"{str(BUILD).upper()}"])
def test_an_identifier_ends_where_it_ends(boot: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"boot": boot, "first_sequence": 0, "events": []}, Report)


def test_a_boot_that_is_no_uuid_is_refused(device: Device) -> None:
    with pytest.raises(InvalidReport):
        ingest(device, sample(NOW), boot="-" * 36)


def test_rollups_are_rebuilt_not_counted_up(device: Device, tenant: Tenant) -> None:
    (other,) = make_devices(tenant, 1, class_name="entry")
    ingest(device, inference(BUILD, NOW, latency_ms=7), inference(BUILD, NOW, latency_ms=100))
    ingest(other, inference(BUILD, NOW, latency_ms=7))
    assert services.roll_up(now=NOW) == 1
    hour = InferenceHour.objects.get()
    assert (hour.devices, hour.requests, hour.errors, sum(hour.latency_buckets)) == (2, 30, 3, 30)
    assert services.roll_up(now=NOW) == 0
    ingest(device, inference(BUILD, NOW, latency_ms=7), first=2)
    services.roll_up(now=NOW)
    StaleHour.objects.create(tenant_id=tenant.pk, hour=hour.hour)
    services.roll_up(now=NOW)  # once more, with nothing new
    again = InferenceHour.objects.get()
    assert (again.pk, again.requests, again.devices) == (hour.pk, 40, 2)


def test_absurd_counts_do_not_hold_up_the_rollup(device: Device) -> None:
    most = msgspec.structs.replace(inference(BUILD, NOW, latency_ms=7), requests=2**53)
    ingest(device, *[most] * 500)
    ingest(device, *[most] * 500, first=500)
    ingest(device, *[most] * 100, first=1000)
    assert services.roll_up(now=NOW) == 1
    assert InferenceHour.objects.get().requests == 2**63 - 1


def test_rows_that_come_late_reach_their_hour(device: Device) -> None:
    services.roll_up(now=NOW)
    ingest(device, inference(BUILD, NOW - timedelta(days=40), latency_ms=7))
    assert services.roll_up(now=NOW) == 1
    assert InferenceHour.objects.get().hour == NOW.replace(minute=0) - timedelta(days=40)


def test_the_periodic_task_rolls_up(device: Device) -> None:
    ingest(device, inference(BUILD, NOW, latency_ms=7))
    roll_up_task()
    assert InferenceHour.objects.get().requests == 10


def test_hours_classes_and_builds_are_apart(device: Device, tenant: Tenant) -> None:
    (flagship,) = make_devices(tenant, 1, class_name="flagship")
    ingest(
        device,
        inference(BUILD, NOW, latency_ms=7),
        inference(BUILD, NOW - timedelta(hours=1), latency_ms=7),
        inference(uuid.uuid4(), NOW, latency_ms=7),
    )
    ingest(flagship, inference(BUILD, NOW, latency_ms=7))
    assert services.roll_up(now=NOW) == 2
    assert InferenceHour.objects.count() == 4


def test_the_series_merges_devices_and_windows(device: Device, tenant: Tenant) -> None:
    (other,) = make_devices(tenant, 1, class_name="entry")
    start = NOW.replace(second=0)
    for who, latency in ((device, 7.0), (other, 100.0)):
        ingest(
            who,
            *[inference(BUILD, start + timedelta(seconds=10 * i), latency_ms=latency) for i in range(6)],
        )
    first, *rest = selectors.build_latency_series(tenant, BUILD, bucket_s=60)
    assert rest == []
    assert (first.at, first.requests, first.errors, first.devices) == (start, 120, 12, 2)
    assert first.p50_ms == pytest.approx(8.0)
    assert first.p95_ms is not None
    assert 64 < first.p95_ms <= 129
    assert len(selectors.build_latency_series(tenant, BUILD)) == 6  # 10 s wide, by the span
    late = start + timedelta(seconds=30)
    assert len(selectors.build_latency_series(tenant, BUILD, since=late)) == 3


def test_a_long_series_stays_plottable(device: Device, tenant: Tenant) -> None:
    windows = [inference(BUILD, NOW - timedelta(hours=hours), latency_ms=7) for hours in range(100)]
    ingest(device, *windows)
    assert 80 <= len(selectors.build_latency_series(tenant, BUILD)) <= 121


def test_a_summary_per_build(device: Device, tenant: Tenant, django_assert_num_queries: Any) -> None:
    slow, silent = uuid.uuid4(), uuid.uuid4()
    now = datetime.now(tz=UTC)
    ingest(
        device,
        inference(BUILD, now, latency_ms=7),
        msgspec.structs.replace(inference(slow, now, latency_ms=900), emulated=True),
        inference(BUILD, now - timedelta(days=30), latency_ms=7),  # before the window
        now=now,
    )
    with django_assert_num_queries(1, using=router.db_for_read(InferenceRow)):
        summaries = selectors.build_summary(tenant, [BUILD, slow, silent])
    fast = summaries[BUILD]
    assert (fast.requests, fast.errors, fast.devices, fast.emulated) == (10, 1, 1, False)
    assert summaries[slow].emulated
    assert fast.p50_ms is not None
    assert fast.p50_ms < 8.01
    assert (summaries[slow].p50_ms or 0) > 512
    assert summaries[silent] == selectors.BuildSummary()
    assert summaries[silent].p50_ms is None


def test_another_tenant_sees_nothing(device: Device, other_tenant: Tenant) -> None:
    now = datetime.now(tz=UTC)
    ingest(device, inference(BUILD, now, latency_ms=7), sample(now), now=now)
    assert selectors.build_latency_series(other_tenant, BUILD) == []
    assert selectors.build_summary(other_tenant, [BUILD])[BUILD].requests == 0
    assert selectors.device_samples(other_tenant, device.pk) == []
    assert selectors.device_inference(other_tenant, device.pk) == []


def test_samples_of_a_device_are_the_latest_in_order(device: Device, tenant: Tenant) -> None:
    ingest(device, *[sample(NOW - timedelta(minutes=i), storage_free_mb=i) for i in range(5)])
    rows = selectors.device_samples(tenant, device.pk, limit=3)
    assert [row.storage_free_mb for row in rows] == [2, 1, 0]
    assert len(selectors.device_samples(tenant, device.pk, since=NOW - timedelta(minutes=1))) == 2


def test_telemetry_has_a_database_of_its_own_where_there_is_one(device: Device) -> None:
    ingest(device, sample(NOW))
    alias = "telemetry" if "telemetry" in connections else "default"
    assert DeviceRow.objects.db == alias
    assert Device.objects.db == "default"
    assert DeviceRow.objects.using(alias).count() == 1
    if alias == "telemetry":
        control = connections["default"].introspection.table_names()
        assert "telemetry_devicerow" not in control
        assert "devices_device" in control
        assert "devices_device" not in connections["telemetry"].introspection.table_names()
