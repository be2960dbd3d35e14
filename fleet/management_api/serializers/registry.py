"""Models, versions, builds and releases."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from fleet.management_api.serializers.plans import FrontPointSerializer, PlanSerializer, PredictedSerializer
from fleet.management_api.serializers.strict import (
    SHA256_FORMAT,
    NamedChoiceField,
    NameField,
    RequestSerializer,
)
from models_registry.models import (
    Alias,
    Artifact,
    Build,
    CandidateBatch,
    Model,
    ModelVersion,
    Release,
    ReleaseEntry,
    Tailoring,
    VersionFile,
)

SHA256 = r"^[0-9a-f]{64}$"
LONG_FACTS = ("layers", "costs", "analysis", "interaction", "products")
SINCE = "When the step began; null while it waits for a worker."


class AliasSerializer(serializers.ModelSerializer):
    version = serializers.IntegerField(source="version.number")

    class Meta:
        model = Alias
        fields = ["name", "version", "updated_at"]


class AliasRequestSerializer(RequestSerializer):
    version = serializers.IntegerField(min_value=1, help_text="Number of the version to point at.")


class ModelSerializer(serializers.ModelSerializer):
    app = serializers.CharField(source="app.slug")
    aliases = AliasSerializer(many=True, read_only=True)

    class Meta:
        model = Model
        fields = ["id", "name", "app", "description", "aliases", "created_at"]


class ModelRequestSerializer(RequestSerializer):
    name = NameField(max_length=63)
    app = NameField(required=False, help_text="Slug of the owning app; the token's own if left out.")
    description = serializers.CharField(required=False, default="", allow_blank=True, max_length=2000)


class VersionFileSerializer(serializers.ModelSerializer):
    class Meta:
        model = VersionFile
        fields = ["role", "path", "size_bytes", "sha256", "received_bytes", "complete"]


class VersionSerializer(serializers.ModelSerializer):
    model = serializers.CharField(source="model.name")
    files = VersionFileSerializer(many=True, read_only=True)
    aliases: serializers.SlugRelatedField[Any] = serializers.SlugRelatedField(
        slug_field="name", many=True, read_only=True
    )
    facts = serializers.SerializerMethodField()
    lineage = serializers.JSONField(read_only=True)
    since = serializers.DateTimeField(source="step_began_at", read_only=True, help_text=SINCE)

    class Meta:
        model = ModelVersion
        fields = [
            "id", "model", "number", "state", "refusal_code", "refusal_message", "source_digest", "aliases",
            "files", "facts", "lineage", "step", "share", "since", "worker", "queue", "created_by", "created_at",
            "completed_at",
        ]  # fmt: skip

    @extend_schema_field(serializers.JSONField(allow_null=True))
    def get_facts(self, version: ModelVersion) -> Any:
        """What the inspection found; null before it ended. Lists leave out what is long (layers, costs)."""
        if version.facts is None:
            return None
        return {name: value for name, value in version.facts.items() if name not in LONG_FACTS}


class BatchSerializer(serializers.ModelSerializer):
    layers = serializers.SerializerMethodField()
    since = serializers.DateTimeField(source="step_began_at", read_only=True, help_text=SINCE)

    class Meta:
        model = CandidateBatch
        fields = ["number", "state", "layers", "attempt", "step", "share", "since", "worker", "error_message"]

    def get_layers(self, batch: CandidateBatch) -> int:
        """How many."""
        return len(batch.layers)


class VersionDetailSerializer(VersionSerializer):
    batches = BatchSerializer(
        many=True, read_only=True, help_text="Of a large model's layers, each checked by a task of its own."
    )

    class Meta(VersionSerializer.Meta):
        fields = [*VersionSerializer.Meta.fields, "batches"]

    @extend_schema_field(serializers.JSONField(allow_null=True))
    def get_facts(self, version: ModelVersion) -> Any:
        """What the inspection found, all of it; null before it ended, final when the version is ready."""
        return version.facts


class FileSpecSerializer(RequestSerializer):
    role = NamedChoiceField(VersionFile.Role.values)
    path = serializers.CharField(
        max_length=255, help_text="Relative, with forward slashes; external data as the graph names it."
    )
    size_bytes = serializers.IntegerField(min_value=1)
    sha256 = serializers.RegexField(
        SHA256,
        error_messages={"invalid": SHA256_FORMAT},
        help_text="Of the file's content, 64 lower-case hex digits.",
    )


class VersionRequestSerializer(RequestSerializer):
    files = FileSpecSerializer(
        many=True,
        allow_empty=False,
        help_text="A model is an `.onnx` file with its external data, or `config.json` and `*.safetensors` "
        "in one folder (with the tokenizer's files, if you like).",
    )


class BuildSerializer(serializers.ModelSerializer):
    model = serializers.CharField(source="version.model.name")
    version = serializers.UUIDField(source="version_id")
    version_number = serializers.IntegerField(source="version.number")
    description = serializers.CharField(read_only=True, help_text="The mix of formats in words.")
    execution_provider = serializers.SerializerMethodField()
    emulated = serializers.SerializerMethodField()
    unverified = serializers.BooleanField(
        read_only=True, help_text="Measured on generated inputs only: there was no evaluation set."
    )
    since = serializers.DateTimeField(source="step_began_at", read_only=True, help_text=SINCE)
    predicted = serializers.SerializerMethodField()
    quality = serializers.JSONField(read_only=True)
    size_bytes = serializers.SerializerMethodField()
    download_bytes = serializers.SerializerMethodField()
    memory_bytes = serializers.SerializerMethodField()
    latency_p50_ms = serializers.SerializerMethodField()
    manifest_sha256 = serializers.SerializerMethodField()
    classes: serializers.SlugRelatedField[Any] = serializers.SlugRelatedField(
        source="tailorings", slug_field="class_name", many=True, read_only=True
    )

    class Meta:
        model = Build
        fields = [
            "id", "model", "version", "version_number", "precision", "description", "execution_provider",
            "emulated", "state", "classes", "attempt", "step", "share", "since", "worker", "queue", "quality",
            "unverified", "size_bytes", "download_bytes", "memory_bytes", "latency_p50_ms", "predicted",
            "manifest_sha256", "recipe_digest", "error_code", "error_message", "fault", "created_at",
            "started_at", "finished_at",
        ]  # fmt: skip

    @extend_schema_field(PredictedSerializer)
    def get_predicted(self, build: Build) -> dict[str, Any]:
        """What the plan expected, to stand beside what was measured."""
        return PredictedSerializer(build.plan).data

    def _recipe(self, build: Build) -> dict[str, Any]:
        return build.plan.get("recipe", {})

    def _artifact(self, build: Build) -> Artifact | None:
        return getattr(build, "artifact", None)

    def get_execution_provider(self, build: Build) -> str:
        return str(self._recipe(build).get("execution_provider", ""))

    def get_emulated(self, build: Build) -> bool:
        return bool(self._recipe(build).get("emulated", False))

    def get_size_bytes(self, build: Build) -> int | None:
        artifact = self._artifact(build)
        return artifact.size_bytes if artifact else None

    def get_download_bytes(self, build: Build) -> int | None:
        artifact = self._artifact(build)
        return artifact.download_bytes if artifact else None

    def get_memory_bytes(self, build: Build) -> int | None:
        artifact = self._artifact(build)
        return artifact.memory_bytes if artifact else None

    def get_latency_p50_ms(self, build: Build) -> float | None:
        artifact = self._artifact(build)
        return artifact.latency_p50_ms if artifact else None

    def get_manifest_sha256(self, build: Build) -> str | None:
        artifact = self._artifact(build)
        return artifact.manifest_sha256 if artifact else None


class TailoringSerializer(serializers.ModelSerializer):
    version = serializers.UUIDField(source="version_id")
    target = serializers.JSONField(read_only=True)
    history = serializers.JSONField(read_only=True, help_text="Each candidate tried and what became of it.")
    build = BuildSerializer(read_only=True, allow_null=True)
    candidates = serializers.SerializerMethodField()
    predicted = serializers.SerializerMethodField()
    bound = serializers.SerializerMethodField()
    nearest = serializers.JSONField(read_only=True, help_text="What would fit, where nothing does.")

    class Meta:
        model = Tailoring
        fields = [
            "id", "version", "class_name", "state", "reason", "position", "candidates", "predicted", "bound",
            "nearest", "target", "history", "build", "replans", "learned", "planned_at", "planned_ms", "created_at",
        ]  # fmt: skip

    def get_candidates(self, tailoring: Tailoring) -> list[str]:
        """Precisions of most weights, in the order in which the plans are tried."""
        return [str(plan["recipe"]["precision"]) for plan in tailoring.candidates]

    @extend_schema_field(PredictedSerializer(allow_null=True))
    def get_predicted(self, tailoring: Tailoring) -> dict[str, Any] | None:
        """What the current plan expects; null where there is none."""
        plan = tailoring.plan
        return PredictedSerializer(plan).data if plan else None

    def get_bound(self, tailoring: Tailoring) -> str:
        """What keeps the current plan from being better: floor, storage, memory, latency, energy or nothing."""
        return str((tailoring.plan or {}).get("bound", ""))


class TailoringDetailSerializer(TailoringSerializer):
    plan = serializers.SerializerMethodField()
    front = serializers.SerializerMethodField()

    class Meta(TailoringSerializer.Meta):
        fields = [*TailoringSerializer.Meta.fields, "plan", "front"]

    @extend_schema_field(PlanSerializer(allow_null=True))
    def get_plan(self, tailoring: Tailoring) -> dict[str, Any] | None:
        """The current plan: every layer's choice with its reason; null where there is none."""
        return PlanSerializer(tailoring.plan).data if tailoring.plan else None

    @extend_schema_field(FrontPointSerializer(many=True, allow_null=True))
    def get_front(self, tailoring: Tailoring) -> Any:
        """The best quality at each size for this class (Pareto front); null until it is drawn."""
        return tailoring.front


class BuildsRequestSerializer(RequestSerializer):
    classes = serializers.ListField(
        child=NameField(),
        required=False,
        default=list,
        help_text="Names of device classes; left out or empty: all of them.",
    )
    replan = serializers.BooleanField(
        required=False,
        default=False,
        help_text="Plan unchanged classes anew too, with what devices and builds have measured since.",
    )
    learned = serializers.BooleanField(
        required=False,
        allow_null=True,
        default=None,
        help_text="Have the rounding of INT4 weights learned by distillation: builds take longer and come closer "
        "to FP32. Null: as it was asked for before.",
    )


class TailoringsSerializer(serializers.Serializer):
    tailorings = TailoringSerializer(many=True)


class ReleaseEntrySerializer(serializers.ModelSerializer):
    build = serializers.UUIDField(source="build_id", allow_null=True)
    precision = serializers.SerializerMethodField()

    class Meta:
        model = ReleaseEntry
        fields = ["class_name", "build", "precision", "reason", "target_path", "manifest_sha256"]

    def get_precision(self, entry: ReleaseEntry) -> str | None:
        return entry.build.precision if entry.build else None


class ReleaseSerializer(serializers.ModelSerializer):
    model = serializers.CharField(source="version.model.name")
    version = serializers.UUIDField(source="version_id")
    version_number = serializers.IntegerField(source="version.number")
    entries = ReleaseEntrySerializer(many=True, read_only=True)

    class Meta:
        model = Release
        fields = [
            "id", "model", "version", "version_number", "number", "state", "error", "entries", "created_by",
            "created_at", "published_at",
        ]  # fmt: skip
