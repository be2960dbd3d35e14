"""Releases: the signed set of a version's builds."""

from __future__ import annotations

import uuid
from typing import ClassVar

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.management_api.idempotency import idempotent
from fleet.management_api.serializers import registry as serializers
from fleet.management_api.views.base import ApiView, choice
from fleet.management_api.views.versions import VersionScoped
from models_registry import selectors
from models_registry.models import Release
from models_registry.services import releases as services


class ReleasesView(ApiView):
    scopes: ClassVar = {"GET": "builds:read"}

    @extend_schema(
        tags=["releases"],
        summary="List releases",
        parameters=[
            OpenApiParameter("state", str, enum=Release.State.values),
            OpenApiParameter("model", str, description="Name of a model"),
        ],
        responses=serializers.ReleaseSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        rows = selectors.releases_of(self.tenant)
        if state := choice(request, "state", Release.State.values):
            rows = rows.filter(state=state)
        if model := request.query_params.get("model"):
            rows = rows.filter(version__model__name=model)
        return self.page(rows, serializers.ReleaseSerializer)


class ReleaseView(ApiView):
    scopes: ClassVar = {"GET": "builds:read"}

    @extend_schema(tags=["releases"], summary="Read a release", responses=serializers.ReleaseSerializer)
    def get(self, request: Request, release_id: uuid.UUID) -> Response:
        release = selectors.release(self.tenant, release_id)
        return Response(serializers.ReleaseSerializer(release).data)


class ReleaseRetryView(ApiView):
    scopes: ClassVar = {"POST": "builds:write"}

    @extend_schema(
        tags=["releases"],
        summary="Sign a release whose signing failed",
        request=None,
        responses={202: serializers.ReleaseSerializer},
    )
    def post(self, request: Request, release_id: uuid.UUID) -> Response:
        release = selectors.release(self.tenant, release_id)
        release = services.retry_release(release=release, actor=self.actor)
        return Response(serializers.ReleaseSerializer(release).data, status=202)


class VersionReleasesView(VersionScoped):
    scopes: ClassVar = {"GET": "builds:read", "POST": "builds:write"}

    @extend_schema(
        tags=["releases"],
        summary="List a version's releases",
        responses=serializers.ReleaseSerializer(many=True),
    )
    def get(self, request: Request, version_id: uuid.UUID) -> Response:
        rows = selectors.releases_of(self.tenant, version=self.version(version_id))
        return self.page(rows, serializers.ReleaseSerializer)

    @extend_schema(
        tags=["releases"],
        summary="Release a version's builds",
        description="Needs every class settled. A worker signs it: poll until its state is `published`.",
        request=None,
        responses={202: serializers.ReleaseSerializer},
    )
    @idempotent()
    def post(self, request: Request, version_id: uuid.UUID) -> Response:
        release = services.create_release(version=self.version(version_id), actor=self.actor)
        return Response(serializers.ReleaseSerializer(release).data, status=202)
