"""Planning without building: what a class would get, in milliseconds."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import msgspec
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from fleet import tailoring
from fleet.devices.models import DeviceClass
from fleet.devices.services import draft_device_class
from fleet.management_api.serializers import plans as serializers
from fleet.management_api.views.versions import VersionScoped
from models_registry import planning
from models_registry.models import ModelVersion
from models_registry.planning import Planned


class VersionPreviewView(VersionScoped):
    scopes: ClassVar = {"POST": "builds:read"}

    @extend_schema(
        tags=["builds"],
        summary="Plan classes for a version without building anything",
        description="Nothing is stored. Name stored classes, or describe one in `target` to see what it would "
        "get before you save it.",
        request=serializers.PreviewRequestSerializer,
        responses=serializers.PreviewsSerializer,
    )
    def post(self, request: Request, version_id: uuid.UUID) -> Response:
        version, asked = self.version(version_id), self.parsed(serializers.PreviewRequestSerializer)
        planned = tailoring.preview(version=version, classes=self._classes(asked))
        rows = [_row(version, each, front=asked["front"]) for each in planned]
        return Response(serializers.PreviewsSerializer({"plans": rows}).data)

    def _classes(self, asked: dict[str, Any]) -> list[DeviceClass]:
        if "target" not in asked:
            return tailoring.classes_named(self.tenant, asked["classes"])
        fields = dict(asked["target"])
        return [draft_device_class(tenant=self.tenant, name=fields.pop("name"), fields=fields)]


def _row(version: ModelVersion, planned: Planned, *, front: bool) -> dict[str, Any]:
    outcome = planned.outcome
    candidates = msgspec.to_builtins(outcome.candidates)
    points = planning.front(planning.facts_of(version), planned.target) if front else None
    return {
        "class_name": planned.target.name,
        "took_ms": planned.took_ms,
        "candidates": [
            {**candidate, "description": text}
            for candidate, text in zip(candidates, planned.descriptions, strict=True)
        ],
        "left_out": msgspec.to_builtins(outcome.rejections),
        "impossible": outcome.impossible,
        "nearest": msgspec.to_builtins(outcome.nearest),
        "front": msgspec.to_builtins(points),
    }
