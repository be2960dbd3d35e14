"""Telemetry rows: in a database of their own (embedded) or in partitions (PostgreSQL).

They hold ids, never foreign keys, because they may live in another database than control data.
"""

from __future__ import annotations

from django.db import models


class TelemetryBatch(models.Model):
    """A stored batch: immutable, named by (device, boot, first sequence number)."""

    tenant_id = models.UUIDField()
    device_id = models.UUIDField()
    boot = models.UUIDField()
    first_sequence = models.BigIntegerField()
    last_sequence = models.BigIntegerField()
    received_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["device_id", "boot", "first_sequence"], name="batch_name")
        ]


class InferenceRow(models.Model):
    """One window of one build on one device. ``latency_buckets`` can be added up."""

    tenant_id = models.UUIDField()
    device_id = models.UUIDField()
    build_id = models.UUIDField()
    class_name = models.CharField(max_length=63)
    at = models.DateTimeField()
    window_s = models.FloatField()
    provider = models.CharField(max_length=64)
    emulated = models.BooleanField()
    requests = models.PositiveBigIntegerField()
    errors = models.PositiveBigIntegerField()
    latency_buckets = models.JSONField()
    latency_sum_ms = models.FloatField()

    class Meta:
        indexes = [models.Index(fields=["tenant_id", "build_id", "at"], name="inference_build")]


class DeviceRow(models.Model):
    """A sample of how a device is doing."""

    tenant_id = models.UUIDField()
    device_id = models.UUIDField()
    at = models.DateTimeField()
    agent_rss_bytes = models.BigIntegerField()
    cpu_seconds = models.FloatField()
    storage_free_mb = models.BigIntegerField()
    battery_percent = models.SmallIntegerField(null=True)
    charging = models.BooleanField(null=True)
    temperature_c = models.FloatField(null=True)

    class Meta:
        indexes = [models.Index(fields=["tenant_id", "device_id", "at"], name="device_sample")]


class InferenceHour(models.Model):
    """Rollup per build, class and hour, rebuilt from rows (never counted up)."""

    tenant_id = models.UUIDField()
    build_id = models.UUIDField()
    class_name = models.CharField(max_length=63)
    hour = models.DateTimeField()
    devices = models.PositiveIntegerField()
    requests = models.PositiveBigIntegerField()
    errors = models.PositiveBigIntegerField()
    latency_buckets = models.JSONField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["tenant_id", "build_id", "class_name", "hour"], name="inference_hour"
            )
        ]


class StaleHour(models.Model):
    """An hour of a tenant that got rows since its rollup was built: work for the next one."""

    tenant_id = models.UUIDField()
    hour = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["tenant_id", "hour"], name="stale_hour")]
