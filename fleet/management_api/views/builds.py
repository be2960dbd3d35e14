"""Tailoring a version for device classes: builds and what became of them."""

from __future__ import annotations

import json
import uuid
from typing import ClassVar

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from fleet import tailoring
from fleet.management_api.idempotency import idempotent
from fleet.management_api.serializers import registry as serializers
from fleet.management_api.serializers.plans import BuildLayersSerializer
from fleet.management_api.views.base import ApiView, choice
from fleet.management_api.views.versions import VersionScoped
from models_registry import selectors
from models_registry.models import Build
from models_registry.services import builds as services
from tenancy.errors import NotFound


class VersionBuildsView(VersionScoped):
    scopes: ClassVar = {"GET": "builds:read", "POST": "builds:write"}

    @extend_schema(
        tags=["builds"], summary="List a version's builds", responses=serializers.BuildSerializer(many=True)
    )
    def get(self, request: Request, version_id: uuid.UUID) -> Response:
        rows = selectors.builds_of(self.tenant, version=self.version(version_id))
        return self.page(rows, serializers.BuildSerializer)

    @extend_schema(
        tags=["builds"],
        summary="Tailor a version for device classes",
        description="Plans each class at once and builds what is not there yet; equal plans share a build. "
        "A class that has not changed keeps its plan, unless `replan` asks for a new one.",
        request=serializers.BuildsRequestSerializer,
        responses={202: serializers.TailoringsSerializer},
    )
    @idempotent()
    def post(self, request: Request, version_id: uuid.UUID) -> Response:
        version, asked = self.version(version_id), self.parsed(serializers.BuildsRequestSerializer)
        tailoring.tailor(
            version=version,
            names=asked["classes"],
            replan=asked["replan"],
            learned=asked["learned"],
            actor=self.actor,
        )
        rows = selectors.tailorings_of(version)
        body = {"tailorings": serializers.TailoringSerializer(rows, many=True).data}
        return Response(body, status=202)


class VersionTailoringsView(VersionScoped):
    scopes: ClassVar = {"GET": "builds:read"}
    ordering = ("class_name",)

    @extend_schema(
        tags=["builds"],
        summary="List how a version fares per device class",
        responses=serializers.TailoringSerializer(many=True),
    )
    def get(self, request: Request, version_id: uuid.UUID) -> Response:
        return self.page(selectors.tailorings_of(self.version(version_id)), serializers.TailoringSerializer)


class TailoringView(ApiView):
    scopes: ClassVar = {"GET": "builds:read"}

    @extend_schema(
        tags=["builds"],
        summary="Read how a version fares for one device class",
        description="The current plan with every layer's choice and its reason, what bound it, what was "
        "rejected with figures (`history`), and the Pareto front.",
        responses=serializers.TailoringDetailSerializer,
    )
    def get(self, request: Request, tailoring_id: uuid.UUID) -> Response:
        row = selectors.tailoring(self.tenant, tailoring_id)
        return Response(serializers.TailoringDetailSerializer(row).data)


class BuildScoped(ApiView):
    """A view below ``builds/<id>``."""

    def build(self, build_id: uuid.UUID) -> Build:
        return selectors.build(self.tenant, build_id)


class BuildsView(ApiView):
    scopes: ClassVar = {"GET": "builds:read"}

    @extend_schema(
        tags=["builds"],
        summary="List builds",
        parameters=[
            OpenApiParameter("state", str, enum=Build.State.values),
            OpenApiParameter("model", str, description="Name of a model"),
            OpenApiParameter("class", str, description="Name of a device class"),
        ],
        responses=serializers.BuildSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        rows = selectors.builds_of(self.tenant, state=choice(request, "state", Build.State.values))
        if model := request.query_params.get("model"):
            rows = rows.filter(version__model__name=model)
        if class_name := request.query_params.get("class"):
            rows = rows.filter(tailorings__class_name=class_name)
        return self.page(rows, serializers.BuildSerializer)


class BuildView(BuildScoped):
    scopes: ClassVar = {"GET": "builds:read"}

    @extend_schema(tags=["builds"], summary="Read a build", responses=serializers.BuildSerializer)
    def get(self, request: Request, build_id: uuid.UUID) -> Response:
        return Response(serializers.BuildSerializer(self.build(build_id)).data)


class BuildLayersView(BuildScoped):
    scopes: ClassVar = {"GET": "builds:read"}

    @extend_schema(
        tags=["builds"],
        summary="List the layers of a build: format, size, predicted loss and why",
        description="In the order of the model, all at once.",
        responses=BuildLayersSerializer,
    )
    def get(self, request: Request, build_id: uuid.UUID) -> Response:
        choices = self.build(build_id).plan.get("choices", [])
        return Response(BuildLayersSerializer({"layers": choices}).data)


class BuildManifestView(BuildScoped):
    scopes: ClassVar = {"GET": "builds:read"}

    @extend_schema(tags=["builds"], summary="Read a build's manifest", responses={200: OpenApiTypes.OBJECT})
    def get(self, request: Request, build_id: uuid.UUID) -> Response:
        artifact = getattr(self.build(build_id), "artifact", None)
        if artifact is None:
            raise NotFound("The build has no artifact; wait until it is ready.", code="no_artifact")
        return Response(json.loads(bytes(artifact.manifest)))


class BuildCancelView(BuildScoped):
    scopes: ClassVar = {"POST": "builds:write"}

    @extend_schema(
        tags=["builds"], summary="Cancel a build", request=None, responses=serializers.BuildSerializer
    )
    def post(self, request: Request, build_id: uuid.UUID) -> Response:
        services.cancel_build(build=self.build(build_id), actor=self.actor)
        return Response(serializers.BuildSerializer(self.build(build_id)).data)


class BuildRetryView(BuildScoped):
    scopes: ClassVar = {"POST": "builds:write"}

    @extend_schema(
        tags=["builds"],
        summary="Try a failed or cancelled build again",
        request=None,
        responses=serializers.BuildSerializer,
    )
    def post(self, request: Request, build_id: uuid.UUID) -> Response:
        services.retry_build(build=self.build(build_id), actor=self.actor)
        return Response(serializers.BuildSerializer(self.build(build_id)).data)
