"""Plans: what a class would get, what it is expected to cost, and why."""

from __future__ import annotations

from rest_framework import serializers

from fleet.management_api.serializers.devices import BudgetsSerializer
from fleet.management_api.serializers.strict import NameField, RequestSerializer


class PredictedSerializer(serializers.Serializer):
    """Of a plan, as it stores it. Latency: one sample, on a device of the class where it is known."""

    size_bytes = serializers.IntegerField(source="predicted_size_bytes", allow_null=True, default=None)
    memory_bytes = serializers.IntegerField(source="predicted_memory_bytes", allow_null=True, default=None)
    latency_ms = serializers.FloatField(source="predicted_latency_ms", allow_null=True, default=None)
    quality = serializers.FloatField(source="predicted_quality", allow_null=True, default=None)
    cosine = serializers.FloatField(source="predicted_cosine", allow_null=True, default=None)
    energy_mwh = serializers.FloatField(source="predicted_energy_mwh", allow_null=True, default=None)


class LayerChoiceSerializer(serializers.Serializer):
    layer = serializers.CharField()
    operator = serializers.CharField()
    format = serializers.CharField()
    size_bytes = serializers.IntegerField()
    loss = serializers.FloatField(help_text="Of quality, predicted if this layer alone took the format.")
    reason = serializers.CharField()


class PlanSerializer(serializers.Serializer):
    precision = serializers.CharField(source="recipe.precision", help_text="Of most weights.")
    predicted = PredictedSerializer(source="*")
    bound = serializers.CharField(default="", help_text="What kept it from being better.")
    reasons = serializers.ListField(child=serializers.CharField())
    layers = LayerChoiceSerializer(source="choices", many=True, default=list)


class FrontPointSerializer(serializers.Serializer):
    """The best that can be had at a size."""

    size_bytes = serializers.IntegerField()
    memory_bytes = serializers.IntegerField()
    latency_ms = serializers.FloatField()
    quality = serializers.FloatField()
    formats = serializers.DictField(child=serializers.FloatField(), help_text="Share of weights per format.")


class PreviewTargetSerializer(BudgetsSerializer):
    """A class that need not exist. With the name of one that does, its devices' figures count."""

    name = NameField(max_length=63, required=False, default="preview")


class PreviewRequestSerializer(RequestSerializer):
    classes = serializers.ListField(
        child=NameField(),
        required=False,
        default=list,
        help_text="Names of device classes; left out or empty: all of them.",
    )
    target = PreviewTargetSerializer(required=False, help_text="Plan this one instead of stored classes.")
    front = serializers.BooleanField(
        required=False, default=False, help_text="The Pareto front too (up to half a second per class)."
    )


class PreviewCandidateSerializer(PlanSerializer):
    description = serializers.CharField(help_text="The mix of formats in words.")


class LeftOutSerializer(serializers.Serializer):
    precision = serializers.CharField()
    code = serializers.CharField()
    reason = serializers.CharField()


class PreviewSerializer(serializers.Serializer):
    class_name = serializers.CharField()
    took_ms = serializers.FloatField(help_text="What planning this class took.")
    candidates = PreviewCandidateSerializer(many=True, help_text="In the order in which they would be built.")
    left_out = LeftOutSerializer(many=True)
    impossible = serializers.CharField(help_text="Why there is no candidate; empty if there is one.")
    nearest = serializers.JSONField(help_text="What would fit, where nothing does.")
    front = FrontPointSerializer(many=True, allow_null=True)


class PreviewsSerializer(serializers.Serializer):
    plans = PreviewSerializer(many=True)


class BuildLayersSerializer(serializers.Serializer):
    layers = LayerChoiceSerializer(many=True)
