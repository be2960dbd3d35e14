"""Telemetry of builds and devices, aggregated."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from datetime import datetime
from typing import ClassVar

from django.utils import timezone
from django.utils.dateparse import parse_datetime
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.devices.selectors import device
from fleet.management_api.serializers import telemetry as serializers
from fleet.management_api.views.base import ApiView
from fleet.telemetry import selectors
from models_registry import selectors as registry
from tenancy.errors import Invalid

SINCE = OpenApiParameter("since", OpenApiTypes.DATETIME, description="Only what was measured from then on")
MAX_BUILDS = 200


def since_of(request: Request) -> datetime | None:
    """The ``since`` parameter, None if it is not given.

    Raises:
        Invalid: ``invalid_parameter``.
    """
    text = request.query_params.get("since")
    if not text:
        return None
    try:
        since = parse_datetime(text)
    except ValueError:
        since = None
    if since is None:
        raise Invalid("`since` takes a time such as 2026-11-01T00:00:00Z.", code="invalid_parameter")
    return since if timezone.is_aware(since) else timezone.make_aware(since)


class VersionTelemetryView(ApiView):
    scopes: ClassVar = {"GET": "telemetry:read"}

    @extend_schema(
        tags=["telemetry"],
        summary="Summarise a version's builds on devices",
        parameters=[SINCE],
        responses=serializers.BuildSummariesSerializer,
    )
    def get(self, request: Request, version_id: uuid.UUID) -> Response:
        version = registry.version(self.tenant, version_id)
        builds = list(registry.builds_of(self.tenant, version=version)[:MAX_BUILDS])
        summaries = selectors.build_summary(self.tenant, builds, since=since_of(request))
        rows = [
            {"build": build.pk, "precision": build.precision, **asdict(summaries[build.pk])}
            for build in builds
        ]
        return Response(serializers.BuildSummariesSerializer({"builds": rows}).data)


class BuildLatencyView(ApiView):
    scopes: ClassVar = {"GET": "telemetry:read"}

    @extend_schema(
        tags=["telemetry"],
        summary="Read a build's latency over time",
        parameters=[SINCE],
        responses=serializers.LatencySeriesSerializer,
    )
    def get(self, request: Request, build_id: uuid.UUID) -> Response:
        build = registry.build(self.tenant, build_id)
        points = selectors.build_latency_series(self.tenant, build, since=since_of(request))
        return Response(serializers.LatencySeriesSerializer({"build": build.pk, "points": points}).data)


class DeviceTelemetryView(ApiView):
    scopes: ClassVar = {"GET": "telemetry:read"}

    @extend_schema(
        tags=["telemetry"],
        summary="Read a device's latest samples",
        parameters=[SINCE],
        responses=serializers.DeviceSamplesSerializer,
    )
    def get(self, request: Request, device_id: uuid.UUID) -> Response:
        row = device(self.tenant, device_id)
        samples = selectors.device_samples(self.tenant, row.pk, since=since_of(request))
        return Response(serializers.DeviceSamplesSerializer({"device": row.pk, "samples": samples}).data)
