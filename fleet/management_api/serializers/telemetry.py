"""What the fleet measured: numbers only."""

from __future__ import annotations

from rest_framework import serializers


class BuildSummarySerializer(serializers.Serializer):
    """Over the last seven days; latencies are null where nothing was measured."""

    build = serializers.UUIDField()
    precision = serializers.CharField()
    p50_ms = serializers.FloatField(allow_null=True)
    p95_ms = serializers.FloatField(allow_null=True)
    requests = serializers.IntegerField()
    errors = serializers.IntegerField()  # type: ignore[assignment]
    devices = serializers.IntegerField()
    emulated = serializers.BooleanField(help_text="At least one device only stood in for its accelerator.")


class BuildSummariesSerializer(serializers.Serializer):
    builds = BuildSummarySerializer(many=True)


class LatencyPointSerializer(serializers.Serializer):
    at = serializers.DateTimeField()
    p50_ms = serializers.FloatField(allow_null=True)
    p95_ms = serializers.FloatField(allow_null=True)
    requests = serializers.IntegerField()
    errors = serializers.IntegerField()  # type: ignore[assignment]
    devices = serializers.IntegerField()
    emulated = serializers.BooleanField()


class LatencySeriesSerializer(serializers.Serializer):
    build = serializers.UUIDField()
    points = LatencyPointSerializer(many=True)


class DeviceSampleSerializer(serializers.Serializer):
    at = serializers.DateTimeField()
    agent_rss_bytes = serializers.IntegerField()
    cpu_seconds = serializers.FloatField()
    storage_free_mb = serializers.IntegerField()
    battery_percent = serializers.IntegerField(allow_null=True)
    charging = serializers.BooleanField(allow_null=True)
    temperature_c = serializers.FloatField(allow_null=True)


class DeviceSamplesSerializer(serializers.Serializer):
    device = serializers.UUIDField()
    samples = DeviceSampleSerializer(many=True)
