"""The only writers of telemetry: batches of devices, and rollups rebuilt from them."""

from __future__ import annotations

import logging
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from django.db import IntegrityError, router, transaction

from device_agent.protocol.messages import DeviceSample, Event, InferenceAggregate, InstallEvent, Report
from fleet.devices.models import Device
from fleet.telemetry import health
from fleet.telemetry.errors import InvalidReport
from fleet.telemetry.models import DeviceRow, InferenceHour, InferenceRow, StaleHour, TelemetryBatch

log = logging.getLogger(__name__)

HOUR = timedelta(hours=1)
MAX_COUNT = 2**63 - 1  # of a column; devices may report what they like
# A device's clock is believed within these bounds around the receipt; else the receipt's time counts.
CLOCK_BEHIND = timedelta(days=180)
CLOCK_AHEAD = timedelta(minutes=10)


def ingest(*, device: Device, report: Report, received_at: datetime) -> tuple[int, list[InstallEvent]]:
    """Store a batch, in one transaction of the telemetry database.

    A batch is named by (device, boot, first sequence number) and stored once; what an earlier
    batch of the same boot already covers is not stored again.

    Returns:
        the sequence number up to which this batch is stored, and its install events. Those are
        returned for a repeated batch as well: they may not have been applied the first time.

    Raises:
        InvalidReport: ``invalid_report`` with the index of the ``event``.
    """
    boot = _uuid(report.boot, event=None)
    for index, event in enumerate(report.events):
        _check(event, index)
    last = report.first_sequence + len(report.events) - 1
    try:
        _store(device, boot, report, last, received_at)
    except IntegrityError:  # the same batch, twice at once: the other one stored it
        _store(device, boot, report, last, received_at)
    return last, [event for event in report.events if isinstance(event, InstallEvent)]


def clock(at: float, *, received_at: datetime) -> datetime:
    """The device's time of an event (Unix seconds), or the receipt's where it cannot be true."""
    earliest, latest = received_at - CLOCK_BEHIND, received_at + CLOCK_AHEAD
    if not earliest.timestamp() <= at <= latest.timestamp():
        return received_at
    return datetime.fromtimestamp(at, tz=UTC)


def _store(device: Device, boot: uuid.UUID, report: Report, last: int, received_at: datetime) -> None:
    with transaction.atomic(using=router.db_for_write(TelemetryBatch)):
        fresh = _not_covered(device, boot, report, last)
        if not fresh:
            return
        TelemetryBatch.objects.create(
            tenant_id=device.tenant_id,
            device_id=device.pk,
            boot=boot,
            first_sequence=fresh[0],
            last_sequence=last,
            received_at=received_at,
        )
        events = [report.events[sequence - report.first_sequence] for sequence in fresh]
        _store_inference(device, [e for e in events if isinstance(e, InferenceAggregate)], received_at)
        _store_samples(device, [e for e in events if isinstance(e, DeviceSample)], received_at)


def _not_covered(device: Device, boot: uuid.UUID, report: Report, last: int) -> list[int]:
    """Sequence numbers of the report that no stored batch of this boot has."""
    stored = list(
        TelemetryBatch.objects.filter(
            device_id=device.pk,
            boot=boot,
            first_sequence__lte=last,
            last_sequence__gte=report.first_sequence,
        ).values_list("first_sequence", "last_sequence")
    )
    numbers = range(report.first_sequence, last + 1)
    return [n for n in numbers if not any(first <= n <= final for first, final in stored)]


def _store_inference(device: Device, events: list[InferenceAggregate], received_at: datetime) -> None:
    rows = [
        InferenceRow(
            tenant_id=device.tenant_id,
            device_id=device.pk,
            build_id=uuid.UUID(event.build),
            class_name=device.class_name,
            at=clock(event.at, received_at=received_at),
            window_s=event.window_s,
            provider=event.provider[:64],
            emulated=event.emulated,
            requests=event.requests,
            errors=event.errors,
            latency_buckets=event.latency_buckets,
            latency_sum_ms=event.latency_sum_ms,
        )
        for event in events
    ]
    InferenceRow.objects.bulk_create(rows)
    hours = sorted({_hour(row.at) for row in rows})
    StaleHour.objects.bulk_create(
        [StaleHour(tenant_id=device.tenant_id, hour=hour) for hour in hours], ignore_conflicts=True
    )


def _store_samples(device: Device, events: list[DeviceSample], received_at: datetime) -> None:
    DeviceRow.objects.bulk_create(
        DeviceRow(
            tenant_id=device.tenant_id,
            device_id=device.pk,
            at=clock(event.at, received_at=received_at),
            agent_rss_bytes=event.agent_rss_bytes,
            cpu_seconds=event.cpu_seconds,
            storage_free_mb=event.storage_free_mb,
            battery_percent=event.battery_percent,
            charging=event.charging,
            temperature_c=event.temperature_c,
        )
        for event in events
    )


def _check(event: Event, index: int) -> None:
    """Refuse what the message types let through but a row could not hold or merge."""
    if isinstance(event, InstallEvent):
        _uuid(event.build, event=index)
        _uuid(event.rollout, event=index)
    elif isinstance(event, InferenceAggregate):
        _uuid(event.build, event=index)
        if len(event.latency_buckets) != health.BUCKETS:
            raise InvalidReport(
                f"Event {index} has {len(event.latency_buckets)} latency buckets, {health.BUCKETS} are "
                "expected: one more than there are bounds.",
                event=index,
            )


def _uuid(text: str, *, event: int | None) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        where = "boot" if event is None else f"an id of event {event}"
        raise InvalidReport(f"{where} is not a UUID. Send 32 hexadecimal digits.", event=event) from None


def _hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def roll_up(*, now: datetime, limit: int = 500) -> int:
    """Rebuild the hours that got rows since they were last built. Running it twice changes nothing.

    Args:
        now: hours that begin later than this are left for another time.
        limit: hours of tenants done in one go.

    Returns:
        how many hours of tenants were rebuilt.
    """
    stale = StaleHour.objects.filter(hour__lte=now + CLOCK_AHEAD).order_by("tenant_id", "hour")
    rebuilt = 0
    for marker in stale[:limit]:
        try:
            rebuilt += _rebuild(marker)
        except Exception:  # one hour that cannot be stored must not hold up the others
            log.exception("hour %s of tenant %s could not be rolled up", marker.hour, marker.tenant_id)
    return rebuilt


def _rebuild(marker: StaleHour) -> int:
    """Take the marker away first: a row that arrives meanwhile puts a new one."""
    with transaction.atomic(using=router.db_for_write(InferenceHour)):
        if not StaleHour.objects.filter(pk=marker.pk).delete()[0]:
            return 0
        rows = InferenceRow.objects.filter(
            tenant_id=marker.tenant_id, at__gte=marker.hour, at__lt=marker.hour + HOUR
        ).values_list("build_id", "class_name", "device_id", "requests", "errors", "latency_buckets")
        InferenceHour.objects.bulk_create(
            _hours(marker, rows.iterator()),
            update_conflicts=True,
            unique_fields=["tenant_id", "build_id", "class_name", "hour"],
            update_fields=["devices", "requests", "errors", "latency_buckets"],
        )
    return 1


@dataclass(slots=True)
class _Sum:
    devices: set[uuid.UUID] = field(default_factory=set)
    requests: int = 0
    errors: int = 0
    buckets: list[int] = field(default_factory=lambda: health.merge([]))


def _hours(marker: StaleHour, rows: Iterable[tuple]) -> list[InferenceHour]:
    sums: dict[tuple[uuid.UUID, str], _Sum] = defaultdict(_Sum)
    for build, class_name, device, requests, errors, buckets in rows:
        total = sums[(build, class_name)]
        total.devices.add(device)
        total.requests += requests
        total.errors += errors
        total.buckets = health.merge([total.buckets, buckets])
    return [
        InferenceHour(
            tenant_id=marker.tenant_id,
            build_id=build,
            class_name=class_name,
            hour=marker.hour,
            devices=len(total.devices),
            requests=min(total.requests, MAX_COUNT),
            errors=min(total.errors, MAX_COUNT),
            latency_buckets=total.buckets,
        )
        for (build, class_name), total in sorted(sums.items())
    ]
