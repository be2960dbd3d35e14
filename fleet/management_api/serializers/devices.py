"""Devices, their classes, provisioning keys and the capability database."""

from __future__ import annotations

from datetime import datetime
from typing import Any, get_args

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from fleet.devices.models import Device, DeviceClass, ProvisioningKey
from fleet.management_api.serializers.strict import NamedChoiceField, NameField, RequestSerializer
from quantize_worker.contract import PRECISIONS, Objective

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
TAG_FORMAT = 'Write a tag of at most 63 lower-case letters, digits, ".", "_" and "-".'


class DeviceClassSerializer(serializers.ModelSerializer):
    precisions = serializers.ListField(child=serializers.CharField())

    class Meta:
        model = DeviceClass
        fields = [
            "id", "name", "title", "version", "rank", "filter", "accelerator", "execution_provider", "emulated",
            "precisions", "memory_bytes", "storage_bytes", "quality_floor", "latency_ms", "energy_mwh",
            "objective", "active_power_mw", "created_at",
        ]  # fmt: skip


class BudgetsSerializer(RequestSerializer):
    """What a class's accelerator accepts and what it can afford: all that planning needs."""

    accelerator = NamedChoiceField(("cpu", "gpu", "npu"))
    execution_provider = serializers.CharField(max_length=64)
    emulated = serializers.BooleanField(required=False, default=False)
    precisions = serializers.ListField(
        child=NamedChoiceField(PRECISIONS),
        allow_empty=False,
        help_text="Those that the accelerator accepts, the preferred one first. A build may mix them, layer by "
        "layer.",
    )
    memory_bytes = serializers.IntegerField(min_value=1)
    storage_bytes = serializers.IntegerField(min_value=1)
    quality_floor = serializers.FloatField(min_value=0.0, max_value=1.0)
    latency_ms = serializers.FloatField(
        min_value=0.0, required=False, allow_null=True, default=None, help_text="Budget per inference."
    )
    energy_mwh = serializers.FloatField(
        min_value=0.0, required=False, allow_null=True, default=None, help_text="Budget per inference."
    )
    objective = NamedChoiceField(
        get_args(Objective),
        required=False,
        default="size",
        help_text="What is best among what holds the floor and fits: the smallest (`size`), the fastest "
        "(`latency`), or, within the budgets, the most accurate (`quality`).",
    )
    active_power_mw = serializers.FloatField(
        min_value=0.0,
        required=False,
        allow_null=True,
        default=None,
        help_text="Of the accelerator at work, from a data sheet; with it, latency gives energy.",
    )


class DeviceClassUpdateSerializer(BudgetsSerializer):
    """Everything but the name, which is in the address."""

    title = serializers.CharField(max_length=100, required=False, default="", allow_blank=True)
    rank = serializers.IntegerField(
        min_value=0,
        max_value=10_000,
        required=False,
        help_text="Lower is asked first; default: after the last.",
    )
    filter = serializers.CharField(
        max_length=2000, help_text="In the filter language, e.g. `ram_mb >= 8192`."
    )


class DeviceClassRequestSerializer(DeviceClassUpdateSerializer):
    name = NameField(max_length=63)


class DeviceSerializer(serializers.ModelSerializer):
    last_seen_at = serializers.SerializerMethodField()
    accelerators = serializers.ListField(child=serializers.CharField())
    tags = serializers.ListField(child=serializers.CharField())

    class Meta:
        model = Device
        fields = [
            "id", "name", "state", "class_name", "soc", "ram_mb", "storage_free_mb", "os", "os_version",
            "runtime_version", "agent_version", "accelerators", "emulated", "tags", "time_zone", "enrolled_at",
            "last_seen_at",
        ]  # fmt: skip

    def get_last_seen_at(self, device: Device) -> datetime | None:
        seen = getattr(device, "seen", None)
        return seen.last_seen_at if seen else None


class FigureSerializer(serializers.Serializer):
    accelerator = serializers.CharField()
    execution_provider = serializers.CharField()
    emulated = serializers.BooleanField()
    metric = serializers.CharField()
    value = serializers.FloatField()


class DeviceAssignmentSerializer(serializers.Serializer):
    rollout = serializers.UUIDField(source="rollout_id")
    rollout_name = serializers.CharField(source="rollout.name")
    model = serializers.CharField(source="rollout.model_name")
    version = serializers.IntegerField(source="version.number")
    build = serializers.UUIDField(source="build_id")
    precision = serializers.CharField(source="build.precision")
    state = serializers.CharField()
    waiting = serializers.CharField()
    failure = serializers.CharField()
    self_test = serializers.JSONField(allow_null=True)
    downloaded_bytes = serializers.IntegerField()
    reused_bytes = serializers.IntegerField()
    offered_at = serializers.DateTimeField()
    changed_at = serializers.DateTimeField()


class StandpointSerializer(serializers.Serializer):
    rollout = serializers.UUIDField(source="rollout.pk")
    rollout_name = serializers.CharField(source="rollout.name")
    state = serializers.CharField(help_text="Of its assignment; empty where the device has not acted.")
    reason = serializers.CharField(help_text="Empty where the device runs it.")


class DeviceDetailSerializer(DeviceSerializer):
    capabilities = serializers.SerializerMethodField()
    figures = FigureSerializer(many=True)
    assignments = serializers.SerializerMethodField()
    why_not_yet = serializers.SerializerMethodField()

    class Meta(DeviceSerializer.Meta):
        fields = [*DeviceSerializer.Meta.fields, "capabilities", "figures", "assignments", "why_not_yet"]

    @extend_schema_field(serializers.JSONField(allow_null=True))
    def get_capabilities(self, device: Device) -> Any:
        """The current capability report as the device sent it."""
        return self.context["capabilities"]

    @extend_schema_field(DeviceAssignmentSerializer(many=True))
    def get_assignments(self, device: Device) -> Any:
        return DeviceAssignmentSerializer(self.context["assignments"], many=True).data

    @extend_schema_field(StandpointSerializer(many=True))
    def get_why_not_yet(self, device: Device) -> Any:
        """Per rollout that could concern it, the newest first: its state and why it has not got it."""
        return StandpointSerializer(self.context["why_not_yet"], many=True).data


class ProvisioningKeySerializer(serializers.ModelSerializer):
    tags = serializers.ListField(child=serializers.CharField())

    class Meta:
        model = ProvisioningKey
        fields = ["id", "name", "prefix", "accept", "tags", "expires_at", "revoked_at", "created_at"]


class ProvisioningKeyCreatedSerializer(ProvisioningKeySerializer):
    key = serializers.CharField(
        allow_null=True, help_text="Shown this once; null when the answer is replayed by idempotency key."
    )

    class Meta(ProvisioningKeySerializer.Meta):
        fields = [*ProvisioningKeySerializer.Meta.fields, "key"]


class ProvisioningKeyRequestSerializer(RequestSerializer):
    name = serializers.CharField(max_length=100)
    accept = serializers.BooleanField(
        required=False, default=True, help_text="False: devices that join with it wait as pending."
    )
    tags = serializers.ListField(
        child=serializers.RegexField(NAME, error_messages={"invalid": TAG_FORMAT}),
        required=False,
        default=list,
        max_length=32,
    )


class CapabilityFigureSerializer(serializers.Serializer):
    soc = serializers.CharField()
    accelerator = serializers.CharField()
    metric = serializers.CharField()
    emulated = serializers.BooleanField()
    measured = serializers.FloatField(allow_null=True)
    devices = serializers.IntegerField(help_text="How many devices measured it.")
    declared = serializers.FloatField(allow_null=True)
    source = serializers.CharField()  # type: ignore[assignment]


class CapabilityFiguresSerializer(serializers.Serializer):
    figures = CapabilityFigureSerializer(many=True)
