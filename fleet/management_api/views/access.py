"""Who calls, apps, tokens and the audit log."""

from __future__ import annotations

import uuid
from typing import ClassVar

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.management_api.idempotency import idempotent
from fleet.management_api.permissions import READ_ALL
from fleet.management_api.serializers import access as serializers
from fleet.management_api.views.base import ApiView, found
from tenancy import selectors, services
from tenancy.errors import ScopeMissing


class MeView(ApiView):
    scopes: ClassVar = {"GET": ()}

    @extend_schema(tags=["access"], summary="Who the caller is", responses=serializers.MeSerializer)
    def get(self, request: Request) -> Response:
        me = {
            "tenant": self.tenant.slug,
            "actor_kind": self.actor.kind,
            "actor": self.actor.name,
            "app": self.caller.app.slug if self.caller.app else None,
            "scopes": sorted(self.caller.scopes),
        }
        return Response(serializers.MeSerializer(me).data)


class AppsView(ApiView):
    scopes: ClassVar = {"GET": "models:read", "POST": "tokens:write"}

    @extend_schema(tags=["access"], summary="List apps", responses=serializers.AppSerializer(many=True))
    def get(self, request: Request) -> Response:
        return self.page(selectors.apps_of(self.tenant), serializers.AppSerializer)

    @extend_schema(
        tags=["access"],
        summary="Create an app",
        request=serializers.AppSerializer,
        responses={201: serializers.AppSerializer},
    )
    @idempotent()
    def post(self, request: Request) -> Response:
        app = services.create_app(
            tenant=self.tenant, actor=self.actor, **self.parsed(serializers.AppSerializer)
        )
        return Response(serializers.AppSerializer(app).data, status=201)


class TokensView(ApiView):
    scopes: ClassVar = {"GET": "tokens:write", "POST": "tokens:write"}

    @extend_schema(
        tags=["access"], summary="List API tokens", responses=serializers.TokenSerializer(many=True)
    )
    def get(self, request: Request) -> Response:
        return self.page(selectors.tokens_of(self.tenant), serializers.TokenSerializer)

    @extend_schema(
        tags=["access"],
        summary="Create an API token",
        description="The plaintext is in this answer only. A token cannot grant scopes that it lacks.",
        request=serializers.TokenRequestSerializer,
        responses={201: serializers.TokenCreatedSerializer},
    )
    @idempotent(secret="token")  # noqa: S106 - the field's name
    def post(self, request: Request) -> Response:
        asked = self.parsed(serializers.TokenRequestSerializer)
        app = self.app(asked.pop("app", None))
        self._check_grant(asked["scopes"])
        token, plaintext = services.create_api_token(app=app, actor=self.actor, **asked)
        return Response({**serializers.TokenSerializer(token).data, "token": plaintext}, status=201)

    def _check_grant(self, scopes: list[str]) -> None:
        beyond = sorted(set(scopes) - self.caller.scopes)
        if beyond:
            raise ScopeMissing(f"A caller cannot grant what it lacks: {', '.join(beyond)}.", scopes=beyond)


class TokenView(ApiView):
    scopes: ClassVar = {"DELETE": "tokens:write"}

    @extend_schema(tags=["access"], summary="Revoke an API token", responses={204: None})
    def delete(self, request: Request, token_id: uuid.UUID) -> Response:
        token = found(selectors.tokens_of(self.tenant).filter(pk=token_id), "such token")
        services.revoke_api_token(token=token, actor=self.actor)
        return Response(status=204)


class AuditView(ApiView):
    scopes: ClassVar = {"GET": READ_ALL}
    ordering = ("-id",)

    @extend_schema(
        tags=["access"],
        summary="Read the audit log",
        parameters=[
            OpenApiParameter("action", str, description="E.g. rollout.start"),
            OpenApiParameter("subject", str, description="Id of what was changed"),
        ],
        responses=serializers.AuditEntrySerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        entries = selectors.audit_entries(self.tenant)
        for name in ("action", "subject"):
            if value := request.query_params.get(name):
                entries = entries.filter(**{name: value})
        return self.page(entries, serializers.AuditEntrySerializer)
