"""Device classes: which devices, what they accept, what they can afford."""

from __future__ import annotations

from typing import ClassVar

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.devices import selectors, services
from fleet.management_api.idempotency import idempotent
from fleet.management_api.serializers import devices as serializers
from fleet.management_api.views.base import ApiView
from tenancy.errors import AlreadyExists


class DeviceClassesView(ApiView):
    scopes: ClassVar = {"GET": "devices:read", "POST": "devices:write"}
    ordering = ("rank", "name")

    @extend_schema(
        tags=["device classes"],
        summary="List device classes by rank",
        responses=serializers.DeviceClassSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        return self.page(selectors.classes_of(self.tenant), serializers.DeviceClassSerializer)

    @extend_schema(
        tags=["device classes"],
        summary="Create a device class",
        description="Devices are sorted anew at once: each is in the first class whose filter matches.",
        request=serializers.DeviceClassRequestSerializer,
        responses={201: serializers.DeviceClassSerializer},
    )
    @idempotent()
    def post(self, request: Request) -> Response:
        asked = self.parsed(serializers.DeviceClassRequestSerializer)
        if selectors.classes_of(self.tenant).filter(name=asked["name"]).exists():
            raise AlreadyExists(
                f"There is a class {asked['name']!r}; change it with PUT.", code="device_class_exists"
            )
        row = services.save_device_class(tenant=self.tenant, actor=self.actor, **asked)
        return Response(serializers.DeviceClassSerializer(row).data, status=201)


class DeviceClassView(ApiView):
    scopes: ClassVar = {"GET": "devices:read", "PUT": "devices:write", "DELETE": "devices:write"}

    @extend_schema(
        tags=["device classes"], summary="Read a device class", responses=serializers.DeviceClassSerializer
    )
    def get(self, request: Request, name: str) -> Response:
        return Response(serializers.DeviceClassSerializer(selectors.device_class(self.tenant, name)).data)

    @extend_schema(
        tags=["device classes"],
        summary="Change a device class",
        description="Makes a new version of the class; earlier ones stay as they were for their builds.",
        request=serializers.DeviceClassUpdateSerializer,
        responses=serializers.DeviceClassSerializer,
    )
    def put(self, request: Request, name: str) -> Response:
        selectors.device_class(self.tenant, name)
        asked = self.parsed(serializers.DeviceClassUpdateSerializer)
        row = services.save_device_class(tenant=self.tenant, name=name, actor=self.actor, **asked)
        return Response(serializers.DeviceClassSerializer(row).data)

    @extend_schema(tags=["device classes"], summary="Delete a device class", responses={204: None})
    def delete(self, request: Request, name: str) -> Response:
        row = selectors.device_class(self.tenant, name)
        services.delete_device_class(device_class=row, actor=self.actor)
        return Response(status=204)
