"""Devices, their classes and the capability database."""

from __future__ import annotations

import uuid

from django.db import models

from tenancy.models import App, TenantOwned


class DeviceClass(TenantOwned):
    """A filter over attributes, what its accelerator accepts, and budgets. Versioned.

    A device is in the first class (by ``rank``) whose filter matches. Editing a class makes a
    new version; only the newest is ``current``.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.SlugField(max_length=63)
    title = models.CharField(max_length=100, blank=True)
    version = models.PositiveIntegerField(default=1)
    current = models.BooleanField(default=True)
    rank = models.PositiveIntegerField()
    filter = models.TextField()
    accelerator = models.CharField(max_length=8)  # cpu, gpu, npu
    execution_provider = models.CharField(max_length=64)
    emulated = models.BooleanField(default=False)
    precisions = models.JSONField()  # preferred first
    memory_bytes = models.BigIntegerField()
    storage_bytes = models.BigIntegerField()
    quality_floor = models.FloatField()
    latency_ms = models.FloatField(null=True)
    energy_mwh = models.FloatField(null=True)
    objective = models.CharField(max_length=8, default="size", db_default="size")  # size, latency, quality
    active_power_mw = models.FloatField(null=True)  # of the accelerator at work, declared
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["tenant", "name", "version"], name="class_version"),
            models.UniqueConstraint(
                fields=["tenant", "name"], condition=models.Q(current=True), name="class_current"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class Device(TenantOwned):
    """A phone, named by its Ed25519 public key. Transitions: :mod:`fleet.devices.lifecycle`."""

    class State(models.TextChoices):
        PENDING = "pending"
        ACCEPTED = "accepted"
        REJECTED = "rejected"
        DECOMMISSIONED = "decommissioned"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=100, blank=True)
    public_key = models.CharField(max_length=64, unique=True)
    state = models.CharField(max_length=16, choices=State.choices)
    class_name = models.SlugField(max_length=63, blank=True)  # "" = in no class
    # attributes of the current capability report, promoted to columns for filters and lists
    soc = models.CharField(max_length=100, blank=True)
    ram_mb = models.PositiveIntegerField(default=0)
    storage_free_mb = models.PositiveIntegerField(default=0)
    os = models.CharField(max_length=100, blank=True)
    os_version = models.CharField(max_length=100, blank=True)
    runtime_version = models.CharField(max_length=100, blank=True)
    agent_version = models.CharField(max_length=100, blank=True)
    accelerators = models.JSONField(default=list)  # kinds, e.g. ["cpu", "npu"]
    emulated = models.BooleanField(default=False)  # any accelerator is emulated
    tags = models.JSONField(default=list)  # granted and reported ones together
    granted_tags = models.JSONField(default=list)  # by its provisioning key
    time_zone = models.CharField(max_length=100, default="UTC")
    token_epoch = models.PositiveIntegerField(default=1)  # raising it revokes its tokens
    enrolled_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [
            models.Index(fields=["tenant", "id"], name="device_page"),
            models.Index(fields=["tenant", "class_name", "id"], name="device_class"),
        ]

    def __str__(self) -> str:
        return self.name or str(self.id)


class DeviceSeen(TenantOwned):
    """When a device was last heard of: apart from the wide row, for it changes at every poll."""

    device = models.OneToOneField(Device, on_delete=models.CASCADE, primary_key=True, related_name="seen")
    last_seen_at = models.DateTimeField()


class CapabilityReport(TenantOwned):
    """What a device said of itself, as sent; ``digest`` tells whether it changed."""

    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="capability_reports")
    digest = models.CharField(max_length=64)
    report = models.JSONField()  # device_agent.protocol.messages.CapabilityReport
    current = models.BooleanField(default=True)
    received_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["device"], condition=models.Q(current=True), name="capability_current"
            )
        ]


class AcceleratorFigure(TenantOwned):
    """A figure of one accelerator of one device, measured by its agent."""

    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="figures")
    soc = models.CharField(max_length=100)
    accelerator = models.CharField(max_length=8)
    execution_provider = models.CharField(max_length=64)
    emulated = models.BooleanField()
    metric = models.CharField(max_length=32)  # fp32_gflops, int8_gops, bandwidth_gb_per_s, session_start_ms
    value = models.FloatField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["device", "accelerator", "execution_provider", "metric"], name="figure_metric"
            )
        ]
        indexes = [models.Index(fields=["tenant", "soc", "accelerator"], name="figure_soc")]


class SocDeclaration(TenantOwned):
    """A declared figure of a SoC (a data sheet's word), to stand beside the measured ones."""

    soc = models.CharField(max_length=100)
    accelerator = models.CharField(max_length=8)
    metric = models.CharField(max_length=32)
    value = models.FloatField()
    source = models.CharField(max_length=300)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["tenant", "soc", "accelerator", "metric"], name="declared_metric")
        ]


class ProvisioningKey(TenantOwned):
    """Lets devices join a tenant. Only its SHA-256 is kept."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    app = models.ForeignKey(App, null=True, on_delete=models.CASCADE)
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=16)
    digest = models.CharField(max_length=64, unique=True)
    accept = models.BooleanField(default=True)  # False: devices wait as pending
    tags = models.JSONField(default=list)  # given to every device that joins with it
    expires_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)


class Nonce(models.Model):
    """A single-use nonce. It belongs to no tenant: it is given out before one is known."""

    digest = models.CharField(max_length=64, primary_key=True)
    expires_at = models.DateTimeField(db_index=True)
