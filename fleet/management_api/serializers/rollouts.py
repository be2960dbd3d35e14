"""Rollouts, their progress and decisions."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from fleet.management_api.serializers.strict import RequestSerializer
from fleet.rollouts.models import Assignment, Rollout, RolloutDecision
from fleet.rollouts.selectors import TrackProgress


class RolloutSerializer(serializers.ModelSerializer):
    release = serializers.UUIDField(source="release_id")
    model = serializers.CharField(source="model_name")
    version_number = serializers.IntegerField(source="release.version.number")
    release_number = serializers.IntegerField(source="release.number")
    policy = serializers.JSONField(read_only=True)

    class Meta:
        model = Rollout
        fields = [
            "id", "name", "model", "version_number", "release", "release_number", "filter", "policy", "state",
            "reason", "created_by", "created_at", "started_at", "finished_at",
        ]  # fmt: skip


class TrackSerializer(serializers.Serializer):
    class_name = serializers.CharField(help_text="Empty for the devices that are in no class.")
    state = serializers.CharField(help_text="A track's state, or `excluded` where the release has no build.")
    reason = serializers.CharField()
    build = serializers.UUIDField(source="build.pk", allow_null=True, default=None)
    precision = serializers.CharField(source="build.precision", allow_null=True, default=None)
    group_index = serializers.IntegerField(help_text="Of the open group; -1 before the first.")
    groups = serializers.IntegerField()
    share = serializers.FloatField(help_text="Share of the class's devices that may have the release.")
    eligible = serializers.IntegerField(help_text="Accepted devices of the class that match the filter.")
    admitted = serializers.IntegerField(help_text="Those of them that may have the release now.")
    active = serializers.IntegerField()
    failed = serializers.IntegerField()
    pending = serializers.IntegerField()
    counts = serializers.SerializerMethodField()

    @extend_schema_field(serializers.DictField(child=serializers.IntegerField()))
    def get_counts(self, track: TrackProgress) -> dict[str, int]:
        """Assignments by state."""
        return track.counts or {}


class RolloutDetailSerializer(RolloutSerializer):
    tracks = serializers.SerializerMethodField()

    class Meta(RolloutSerializer.Meta):
        fields = [*RolloutSerializer.Meta.fields, "tracks"]

    @extend_schema_field(TrackSerializer(many=True))
    def get_tracks(self, rollout: Rollout) -> Any:
        """Per class; classes that the release has nothing for are listed with the reason."""
        return TrackSerializer(self.context["progress"], many=True).data


class RolloutRequestSerializer(RequestSerializer):
    name = serializers.CharField(max_length=100)
    release = serializers.UUIDField()
    filter = serializers.CharField(max_length=2000, required=False, default="", allow_blank=True)
    policy = serializers.DictField(
        required=False,
        allow_null=True,
        default=None,
        help_text="groups, minimum_per_group, success_ratio, failure_ratio, soak_s, device_timeout_s; "
        "what is left out keeps its default.",
    )


class DecisionSerializer(serializers.ModelSerializer):
    evidence = serializers.JSONField(read_only=True)

    class Meta:
        model = RolloutDecision
        fields = ["id", "class_name", "action", "reason", "evidence", "at"]


class AssignmentSerializer(serializers.ModelSerializer):
    device = serializers.UUIDField(source="device_id")
    device_name = serializers.CharField(source="device.name")
    build = serializers.UUIDField(source="build_id")
    self_test = serializers.JSONField(read_only=True)

    class Meta:
        model = Assignment
        fields = [
            "device", "device_name", "class_name", "build", "state", "waiting", "failure", "self_test",
            "downloaded_bytes", "reused_bytes", "offered_at", "changed_at",
        ]  # fmt: skip
