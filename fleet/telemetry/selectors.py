"""Reads of telemetry. Rows name ids only; every read is within one tenant."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from django.db.models import Max, Min, QuerySet
from django.utils import timezone

from fleet.telemetry import health
from fleet.telemetry.models import DeviceRow, InferenceRow
from models_registry.models import Build, ModelVersion
from tenancy.models import Tenant

SUMMARY_WINDOW = timedelta(days=7)
SERIES_POINTS = 120  # about as many as a plot can show
BUCKET_WIDTHS_S = (10, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600)


@dataclass(frozen=True, slots=True)
class LatencyPoint:
    """Inference of a build from ``at`` on, for one bucket of time. Latencies in ms.

    ``emulated``: at least one of the devices only stood in for its accelerator.
    """

    at: datetime
    p50_ms: float | None
    p95_ms: float | None
    requests: int
    errors: int
    devices: int
    emulated: bool


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """Inference of a build over the window asked for. None: nothing was measured."""

    p50_ms: float | None = None
    p95_ms: float | None = None
    requests: int = 0
    errors: int = 0
    devices: int = 0
    emulated: bool = False


@dataclass(slots=True)
class _Total:
    buckets: list[int] = field(default_factory=lambda: health.merge([]))
    requests: int = 0
    errors: int = 0
    devices: set[uuid.UUID] = field(default_factory=set)
    emulated: bool = False

    def add(self, row: tuple) -> None:
        device, requests, errors, buckets, emulated = row
        self.buckets = health.merge([self.buckets, buckets])
        self.requests += requests
        self.errors += errors
        self.devices.add(device)
        self.emulated = self.emulated or emulated


_COLUMNS = ("device_id", "requests", "errors", "latency_buckets", "emulated")


def build_latency_series(
    tenant: Tenant,
    build: Build | uuid.UUID,
    *,
    since: datetime | None = None,
    bucket_s: int | None = None,
) -> list[LatencyPoint]:
    """Latency of a build over time, by merging histograms per bucket of time, for a plot.

    Args:
        since: by default all that is stored.
        bucket_s: width in seconds; by default the narrowest of :data:`BUCKET_WIDTHS_S` that
            keeps the series under about 120 points.
    """
    rows = _rows(tenant, [build], since=since)
    width = bucket_s or _width(rows)
    totals: dict[int, _Total] = defaultdict(_Total)
    for at, *row in rows.values_list("at", *_COLUMNS).iterator():
        totals[int(at.timestamp()) // width * width].add(tuple(row))
    return [
        LatencyPoint(
            at=datetime.fromtimestamp(start, tz=UTC),
            p50_ms=health.quantile(total.buckets, 0.5),
            p95_ms=health.quantile(total.buckets, 0.95),
            requests=total.requests,
            errors=total.errors,
            devices=len(total.devices),
            emulated=total.emulated,
        )
        for start, total in sorted(totals.items())
    ]


def _width(rows: QuerySet[InferenceRow]) -> int:
    span = rows.aggregate(first=Min("at"), last=Max("at"))
    if span["first"] is None:
        return BUCKET_WIDTHS_S[0]
    seconds = (span["last"] - span["first"]).total_seconds()
    fitting = (width for width in BUCKET_WIDTHS_S if seconds / width <= SERIES_POINTS)
    return next(fitting, BUCKET_WIDTHS_S[-1])


def build_summary(
    tenant: Tenant, builds: Iterable[Build | uuid.UUID], *, since: datetime | None = None
) -> dict[uuid.UUID, BuildSummary]:
    """Latency, requests, errors and devices per build, in one query; every build asked for is there.

    Args:
        since: by default the last seven days.
    """
    wanted = [_id(build) for build in builds]
    rows = _rows(tenant, wanted, since=since or timezone.now() - SUMMARY_WINDOW)
    totals: dict[uuid.UUID, _Total] = defaultdict(_Total)
    for build_id, *row in rows.values_list("build_id", *_COLUMNS).iterator():
        totals[build_id].add(tuple(row))
    return {build: _summary(totals[build]) if build in totals else BuildSummary() for build in wanted}


def _summary(total: _Total) -> BuildSummary:
    return BuildSummary(
        p50_ms=health.quantile(total.buckets, 0.5),
        p95_ms=health.quantile(total.buckets, 0.95),
        requests=total.requests,
        errors=total.errors,
        devices=len(total.devices),
        emulated=total.emulated,
    )


def class_latencies(
    version: ModelVersion, emulated: Mapping[str, bool], *, since: datetime | None = None
) -> dict[tuple[str, str], float]:
    """p50 in ms of served requests by class and build id, for builds of one version.

    Args:
        emulated: the classes asked for, and whether their accelerators are emulated.
        since: by default the last seven days.
    """
    builds = Build.objects.filter(version=version).values_list("pk", flat=True)
    rows = _rows(version.tenant, list(builds), since=since or timezone.now() - SUMMARY_WINDOW)
    buckets: dict[tuple[str, str], list[int]] = {}
    columns = rows.values_list("class_name", "build_id", "emulated", "latency_buckets")
    for name, build, is_emulated, counts in columns.iterator():
        if emulated.get(name) == is_emulated:
            key = (name, str(build))
            buckets[key] = health.merge([buckets[key], counts] if key in buckets else [counts])
    found = {key: health.quantile(merged, 0.5) for key, merged in buckets.items()}
    return {key: p50 for key, p50 in found.items() if p50 is not None}


def device_samples(
    tenant: Tenant, device_id: uuid.UUID, *, since: datetime | None = None, limit: int = 500
) -> list[DeviceRow]:
    """The latest samples of a device, the oldest of them first."""
    rows = DeviceRow.objects.filter(tenant_id=tenant.pk, device_id=device_id)
    if since is not None:
        rows = rows.filter(at__gte=since)
    return list(rows.order_by("-at", "-pk")[:limit])[::-1]


def device_inference(tenant: Tenant, device_id: uuid.UUID, *, limit: int = 500) -> list[InferenceRow]:
    """The latest inference windows of a device, the oldest of them first."""
    rows = InferenceRow.objects.filter(tenant_id=tenant.pk, device_id=device_id)
    return list(rows.order_by("-at", "-pk")[:limit])[::-1]


def _rows(
    tenant: Tenant, builds: Iterable[Build | uuid.UUID], *, since: datetime | None
) -> QuerySet[InferenceRow]:
    rows = InferenceRow.objects.filter(tenant_id=tenant.pk, build_id__in=[_id(build) for build in builds])
    return rows.filter(at__gte=since) if since is not None else rows


def _id(build: Build | uuid.UUID) -> uuid.UUID:
    return build.pk if isinstance(build, Build) else build
