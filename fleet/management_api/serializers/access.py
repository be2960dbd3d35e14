"""Who calls, apps, tokens and the audit log."""

from __future__ import annotations

from rest_framework import serializers

from fleet.management_api.serializers.strict import NameField, RequestSerializer
from tenancy.models import ApiToken, App, AuditEntry
from tenancy.scopes import SCOPES


class ProblemSerializer(serializers.Serializer):
    """RFC 9457 problem details. ``code`` is stable; ``detail`` says what to do next."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    code = serializers.CharField()
    detail = serializers.CharField()
    errors = serializers.DictField(  # type: ignore[assignment]
        child=serializers.ListField(child=serializers.CharField()),
        required=False,
        help_text="Only with the code validation_failed: what is wrong, by field.",
    )


class MeSerializer(serializers.Serializer):
    tenant = serializers.CharField()
    actor_kind = serializers.CharField()
    actor = serializers.CharField()
    app = serializers.CharField(allow_null=True)
    scopes = serializers.ListField(child=serializers.CharField())


class AppSerializer(RequestSerializer, serializers.ModelSerializer):
    slug = NameField(max_length=63)

    class Meta:
        model = App
        fields = ["id", "slug", "name", "created_at"]
        read_only_fields = ["id", "created_at"]
        validators: list[object] = []


class TokenSerializer(serializers.ModelSerializer):
    app = serializers.CharField(source="app.slug")
    scopes = serializers.ListField(child=serializers.CharField())

    class Meta:
        model = ApiToken
        fields = [
            "id", "app", "name", "prefix", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at",
        ]  # fmt: skip


class TokenCreatedSerializer(TokenSerializer):
    token = serializers.CharField(
        allow_null=True, help_text="Shown this once; null when the answer is replayed by idempotency key."
    )

    class Meta(TokenSerializer.Meta):
        fields = [*TokenSerializer.Meta.fields, "token"]


class TokenRequestSerializer(RequestSerializer):
    app = NameField(required=False, help_text="Slug of the app; not needed when there is one app.")
    name = serializers.CharField(max_length=100)
    scopes = serializers.ListField(
        child=serializers.CharField(max_length=40), help_text=f"Of {', '.join(SCOPES)}."
    )
    expires_at = serializers.DateTimeField(required=False, allow_null=True)


class AuditEntrySerializer(serializers.ModelSerializer):
    class Meta:
        model = AuditEntry
        fields = ["id", "at", "actor_kind", "actor", "action", "subject_type", "subject", "before", "after"]
