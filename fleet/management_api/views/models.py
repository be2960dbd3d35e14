"""Models and their aliases."""

from __future__ import annotations

from typing import ClassVar

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.management_api.idempotency import idempotent
from fleet.management_api.serializers import registry as serializers
from fleet.management_api.views.base import ApiView, found
from models_registry import selectors
from models_registry.models import Model
from models_registry.services import models as services


class ModelScoped(ApiView):
    """A view below ``models/<name>``."""

    def model(self, name: str) -> Model:
        return selectors.model(self.tenant, name)


class ModelsView(ApiView):
    scopes: ClassVar = {"GET": "models:read", "POST": "models:write"}

    @extend_schema(tags=["models"], summary="List models", responses=serializers.ModelSerializer(many=True))
    def get(self, request: Request) -> Response:
        rows = selectors.models_of(self.tenant).prefetch_related("aliases__version")
        return self.page(rows, serializers.ModelSerializer)

    @extend_schema(
        tags=["models"],
        summary="Create a model",
        request=serializers.ModelRequestSerializer,
        responses={201: serializers.ModelSerializer},
    )
    @idempotent()
    def post(self, request: Request) -> Response:
        asked = self.parsed(serializers.ModelRequestSerializer)
        app = self.app(asked.pop("app", None))
        model = services.create_model(app=app, actor=self.actor, **asked)
        return Response(serializers.ModelSerializer(model).data, status=201)


class ModelView(ModelScoped):
    scopes: ClassVar = {"GET": "models:read"}

    @extend_schema(tags=["models"], summary="Read a model", responses=serializers.ModelSerializer)
    def get(self, request: Request, name: str) -> Response:
        return Response(serializers.ModelSerializer(self.model(name)).data)


class AliasesView(ModelScoped):
    scopes: ClassVar = {"GET": "models:read"}
    ordering = ("name",)

    @extend_schema(
        tags=["models"], summary="List a model's aliases", responses=serializers.AliasSerializer(many=True)
    )
    def get(self, request: Request, name: str) -> Response:
        rows = self.model(name).aliases.select_related("version")
        return self.page(rows, serializers.AliasSerializer)


class AliasView(ModelScoped):
    scopes: ClassVar = {"PUT": "models:write", "DELETE": "models:write"}

    @extend_schema(
        tags=["models"],
        summary="Point an alias at a version",
        request=serializers.AliasRequestSerializer,
        responses=serializers.AliasSerializer,
    )
    def put(self, request: Request, name: str, alias: str) -> Response:
        model = self.model(name)
        number = self.parsed(serializers.AliasRequestSerializer)["version"]
        version = found(
            selectors.versions_of(self.tenant, model).filter(number=number), f"version {number} of {name}"
        )
        row = services.set_alias(model=model, name=alias, version=version, actor=self.actor)
        return Response(serializers.AliasSerializer(row).data)

    @extend_schema(tags=["models"], summary="Delete an alias", responses={204: None})
    def delete(self, request: Request, name: str, alias: str) -> Response:
        services.delete_alias(model=self.model(name), name=alias, actor=self.actor)
        return Response(status=204)
