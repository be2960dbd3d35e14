"""Devices: the inventory, what each runs, and letting them in or out."""

from __future__ import annotations

import json
import uuid
from typing import Any, ClassVar

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.devices import selectors, services
from fleet.devices.models import Device
from fleet.management_api.idempotency import idempotent
from fleet.management_api.serializers import devices as serializers
from fleet.management_api.views.base import ApiView, choice, found
from fleet.rollouts.selectors import assignments_of_device, why_not_yet
from models_registry.selectors import tuf_metadata
from tenancy.errors import NotFound


class DevicesView(ApiView):
    scopes: ClassVar = {"GET": "devices:read"}
    ordering = ("id",)

    @extend_schema(
        tags=["devices"],
        summary="List devices",
        parameters=[
            OpenApiParameter(
                "filter", str, description='In the filter language, e.g. `accelerator == "npu"`'
            ),
            OpenApiParameter("state", str, enum=Device.State.values),
            OpenApiParameter("class", str, description="Name of a device class"),
            OpenApiParameter("search", str, description="Part of a name or SoC, or an id"),
        ],
        responses=serializers.DeviceSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        rows = selectors.devices_of(
            self.tenant,
            filter=request.query_params.get("filter", ""),
            class_name=request.query_params.get("class"),
            state=choice(request, "state", Device.State.values),
            search=request.query_params.get("search", ""),
        )
        return self.page(rows, serializers.DeviceSerializer)


class DeviceScoped(ApiView):
    """A view below ``devices/<id>``."""

    def detail(self, device_id: uuid.UUID) -> Response:
        device = selectors.device(self.tenant, device_id)
        context: dict[str, Any] = {
            "capabilities": selectors.capabilities_of(device),
            "assignments": assignments_of_device(device),
            "why_not_yet": why_not_yet(device),
        }
        return Response(serializers.DeviceDetailSerializer(device, context=context).data)


class DeviceView(DeviceScoped):
    scopes: ClassVar = {"GET": "devices:read"}

    @extend_schema(
        tags=["devices"],
        summary="Read a device: capabilities, what it runs, and why not yet",
        responses=serializers.DeviceDetailSerializer,
    )
    def get(self, request: Request, device_id: uuid.UUID) -> Response:
        return self.detail(device_id)


class DeviceActionView(DeviceScoped):
    """Base of the three decisions about a device."""

    scopes: ClassVar = {"POST": "devices:write"}
    decide: ClassVar[Any]

    def carry_out(self, device_id: uuid.UUID) -> Response:
        device = selectors.device(self.tenant, device_id)
        type(self).decide(device=device, actor=self.actor)
        return self.detail(device_id)


class DeviceAcceptView(DeviceActionView):
    decide = staticmethod(services.accept_device)

    @extend_schema(
        tags=["devices"],
        summary="Accept a device",
        request=None,
        responses=serializers.DeviceDetailSerializer,
    )
    def post(self, request: Request, device_id: uuid.UUID) -> Response:
        return self.carry_out(device_id)


class DeviceRejectView(DeviceActionView):
    decide = staticmethod(services.reject_device)

    @extend_schema(
        tags=["devices"],
        summary="Reject a pending device",
        request=None,
        responses=serializers.DeviceDetailSerializer,
    )
    def post(self, request: Request, device_id: uuid.UUID) -> Response:
        return self.carry_out(device_id)


class DeviceDecommissionView(DeviceActionView):
    decide = staticmethod(services.decommission_device)

    @extend_schema(
        tags=["devices"],
        summary="Decommission a device for good",
        request=None,
        responses=serializers.DeviceDetailSerializer,
    )
    def post(self, request: Request, device_id: uuid.UUID) -> Response:
        return self.carry_out(device_id)


class CapabilityFiguresView(ApiView):
    scopes: ClassVar = {"GET": "devices:read"}

    @extend_schema(
        tags=["devices"],
        summary="Read the capability database",
        description="Declared figures of a SoC and measured ones of devices, side by side; figures of "
        "emulated accelerators stand apart.",
        responses=serializers.CapabilityFiguresSerializer,
    )
    def get(self, request: Request) -> Response:
        body = {"figures": selectors.capability_figures(self.tenant)}
        return Response(serializers.CapabilityFiguresSerializer(body).data)


class TrustRootView(ApiView):
    scopes: ClassVar = {"GET": "devices:read"}

    @extend_schema(
        tags=["devices"],
        summary="Read the tenant's TUF root, which an agent is set up with",
        responses={200: OpenApiTypes.OBJECT},
    )
    def get(self, request: Request) -> Response:
        body = tuf_metadata(self.tenant, "root.json")
        if body is None:
            raise NotFound("The tenant has no signing keys yet; the operator's guide says how to make them.")
        return Response(json.loads(body))


class ProvisioningKeysView(ApiView):
    scopes: ClassVar = {"GET": "devices:read", "POST": "devices:write"}

    @extend_schema(
        tags=["devices"],
        summary="List provisioning keys",
        responses=serializers.ProvisioningKeySerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        return self.page(selectors.provisioning_keys_of(self.tenant), serializers.ProvisioningKeySerializer)

    @extend_schema(
        tags=["devices"],
        summary="Create a provisioning key",
        description="Agents join with it. The plaintext is in this answer only.",
        request=serializers.ProvisioningKeyRequestSerializer,
        responses={201: serializers.ProvisioningKeyCreatedSerializer},
    )
    @idempotent(secret="key")  # noqa: S106 - the field's name
    def post(self, request: Request) -> Response:
        asked = self.parsed(serializers.ProvisioningKeyRequestSerializer)
        row, plaintext = services.create_provisioning_key(tenant=self.tenant, actor=self.actor, **asked)
        return Response({**serializers.ProvisioningKeySerializer(row).data, "key": plaintext}, status=201)


class ProvisioningKeyView(ApiView):
    scopes: ClassVar = {"DELETE": "devices:write"}

    @extend_schema(tags=["devices"], summary="Revoke a provisioning key", responses={204: None})
    def delete(self, request: Request, key_id: uuid.UUID) -> Response:
        row = found(selectors.provisioning_keys_of(self.tenant).filter(pk=key_id), "such provisioning key")
        services.revoke_provisioning_key(key=row, actor=self.actor)
        return Response(status=204)
