"""Models, versions, builds and releases."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

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
    Model,
    ModelVersion,
    Release,
    ReleaseEntry,
    Tailoring,
    VersionFile,
)

SHA256 = r"^[0-9a-f]{64}$"


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
    facts = serializers.JSONField(
        read_only=True, help_text="What the inspection found; null before it ended."
    )
    lineage = serializers.JSONField(read_only=True)

    class Meta:
        model = ModelVersion
        fields = [
            "id", "model", "number", "state", "refusal_code", "refusal_message", "source_digest", "aliases",
            "files", "facts", "lineage", "step", "share", "created_by", "created_at", "completed_at",
        ]  # fmt: skip


class FileSpecSerializer(RequestSerializer):
    role = NamedChoiceField(VersionFile.Role.values)
    path = serializers.CharField(max_length=255, help_text="Relative, with forward slashes.")
    size_bytes = serializers.IntegerField(min_value=1)
    sha256 = serializers.RegexField(
        SHA256,
        error_messages={"invalid": SHA256_FORMAT},
        help_text="Of the file's content, 64 lower-case hex digits.",
    )


class VersionRequestSerializer(RequestSerializer):
    files = FileSpecSerializer(many=True, allow_empty=False)


class BuildSerializer(serializers.ModelSerializer):
    model = serializers.CharField(source="version.model.name")
    version = serializers.UUIDField(source="version_id")
    version_number = serializers.IntegerField(source="version.number")
    execution_provider = serializers.SerializerMethodField()
    emulated = serializers.SerializerMethodField()
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
            "id", "model", "version", "version_number", "precision", "execution_provider", "emulated", "state",
            "classes", "attempt", "step", "share", "worker", "quality", "size_bytes", "download_bytes",
            "memory_bytes", "latency_p50_ms", "manifest_sha256", "recipe_digest", "error_code",
            "error_message", "fault", "created_at", "started_at", "finished_at",
        ]  # fmt: skip

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

    class Meta:
        model = Tailoring
        fields = [
            "id", "version", "class_name", "state", "reason", "position", "candidates", "target", "history",
            "build", "created_at",
        ]  # fmt: skip

    def get_candidates(self, tailoring: Tailoring) -> list[str]:
        """Precisions in the order in which they are tried."""
        return [str(plan["recipe"]["precision"]) for plan in tailoring.candidates]


class BuildsRequestSerializer(RequestSerializer):
    classes = serializers.ListField(
        child=NameField(),
        required=False,
        default=list,
        help_text="Names of device classes; left out or empty: all of them.",
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
