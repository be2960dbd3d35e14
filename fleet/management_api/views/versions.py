"""Versions of models and their uploads."""

from __future__ import annotations

import re
import uuid
from typing import ClassVar

from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.management_api.idempotency import idempotent
from fleet.management_api.parsers import RawParser, raw_chunks
from fleet.management_api.serializers import registry as serializers
from fleet.management_api.views.base import ApiView, choice
from fleet.management_api.views.models import ModelScoped
from models_registry import selectors
from models_registry.models import ModelVersion
from models_registry.services import versions as services
from models_registry.services.versions import FileSpec
from tenancy.errors import Invalid

RAW_BODY = {"application/octet-stream": OpenApiTypes.BINARY}


class LengthRequired(Invalid):
    code = "length_required"
    title = "The length of the body is not known"
    status = 411


class VersionScoped(ApiView):
    """A view below ``versions/<id>``."""

    def version(self, version_id: uuid.UUID) -> ModelVersion:
        return selectors.version(self.tenant, version_id)


def body_length(request: Request) -> int:
    """The announced length of the body in bytes.

    Raises:
        LengthRequired: there is no ``Content-Length``.
    """
    length = request.headers.get("Content-Length", "")
    if not length.isdigit():
        raise LengthRequired("Send Content-Length; chunked transfer encoding is not read.")
    return int(length)


class VersionsView(ApiView):
    scopes: ClassVar = {"GET": "models:read"}

    @extend_schema(
        tags=["versions"],
        summary="List versions of all models",
        description="Uploads that are not complete are left out unless asked for with `?state=uploading`.",
        parameters=[
            OpenApiParameter("model", str, description="Name of a model"),
            OpenApiParameter("state", str, enum=ModelVersion.State.values),
        ],
        responses=serializers.VersionSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        state = choice(request, "state", ModelVersion.State.values)
        rows = selectors.versions_of(self.tenant, uploading=state == ModelVersion.State.UPLOADING)
        if model := request.query_params.get("model"):
            rows = rows.filter(model__name=model)
        if state:
            rows = rows.filter(state=state)
        return self.page(_loaded(rows), serializers.VersionSerializer)


def _loaded(rows: QuerySet[ModelVersion]) -> QuerySet[ModelVersion]:
    return rows.prefetch_related("files", "aliases")


class ModelVersionsView(ModelScoped):
    scopes: ClassVar = {"GET": "models:read", "POST": "models:write"}

    @extend_schema(
        tags=["versions"],
        summary="List a model's versions",
        description="Uploads that are not complete are left out; `GET /versions?state=uploading` lists them.",
        responses=serializers.VersionSerializer(many=True),
    )
    def get(self, request: Request, name: str) -> Response:
        rows = selectors.versions_of(self.tenant, self.model(name))
        return self.page(_loaded(rows), serializers.VersionSerializer)

    @extend_schema(
        tags=["versions"],
        summary="Announce a version and its files",
        description="Then send each file with PUT, in parts if you like, and complete the version.",
        request=serializers.VersionRequestSerializer,
        responses={201: serializers.VersionSerializer},
    )
    @idempotent()
    def post(self, request: Request, name: str) -> Response:
        files = [FileSpec(**spec) for spec in self.parsed(serializers.VersionRequestSerializer)["files"]]
        version = services.create_version(model=self.model(name), files=files, actor=self.actor)
        return Response(serializers.VersionSerializer(version).data, status=201)


class SinglePutView(ModelScoped):
    scopes: ClassVar = {"PUT": "models:write"}
    parser_classes = [RawParser]

    @extend_schema(
        tags=["versions"],
        summary="Upload a small model in one call",
        description="Creates a version of the one ONNX file in the body and hands it to the checks.",
        parameters=[OpenApiParameter("sha256", str, description="Of the body; refused if it differs")],
        request=RAW_BODY,
        responses={202: serializers.VersionSerializer},
    )
    def put(self, request: Request, name: str) -> Response:
        sha256 = request.query_params.get("sha256") or None
        if sha256 and not re.fullmatch(serializers.SHA256, sha256):
            raise Invalid("`sha256` takes 64 lower-case hexadecimal digits.", code="invalid_parameter")
        version = services.put_single(
            model=self.model(name),
            data=raw_chunks(request),
            size=body_length(request),
            sha256=sha256,
            actor=self.actor,
        )
        return Response(serializers.VersionSerializer(version).data, status=202)


class VersionView(VersionScoped):
    scopes: ClassVar = {"GET": "models:read", "DELETE": "models:write"}

    @extend_schema(
        tags=["versions"],
        summary="Read a version",
        description="`files[].received_bytes` says where to go on with an interrupted upload; `step`, "
        "`share`, `since` and `worker` how far a check is, `batches` how far each part of a large one.",
        responses=serializers.VersionDetailSerializer,
    )
    def get(self, request: Request, version_id: uuid.UUID) -> Response:
        return Response(serializers.VersionDetailSerializer(self.version(version_id)).data)

    @extend_schema(tags=["versions"], summary="Discard an upload", responses={204: None})
    def delete(self, request: Request, version_id: uuid.UUID) -> Response:
        services.discard_version(version=self.version(version_id), actor=self.actor)
        return Response(status=204)


class VersionFileView(VersionScoped):
    scopes: ClassVar = {"PUT": "models:write"}
    parser_classes = [RawParser]

    @extend_schema(
        tags=["versions"],
        summary="Send a part of a file",
        description="The part is appended. `offset` must be what has been received so far; "
        "otherwise the answer is 409 `offset_mismatch` with `expected_offset`.",
        parameters=[OpenApiParameter("offset", int, description="In bytes; 0 if left out")],
        request=RAW_BODY,
        responses=serializers.VersionFileSerializer,
    )
    def put(self, request: Request, version_id: uuid.UUID, path: str) -> Response:
        offset = request.query_params.get("offset", "0")
        if not offset.isascii() or not offset.isdigit() or len(offset) > 18:
            raise Invalid("`offset` takes a number of bytes.", code="invalid_parameter")
        body_length(request)
        file = services.receive_part(
            version=self.version(version_id),
            path=path,
            offset=int(offset),
            stream=raw_chunks(request),
            actor=self.actor,
        )
        return Response(serializers.VersionFileSerializer(file).data)


class VersionCompleteView(VersionScoped):
    scopes: ClassVar = {"POST": "models:write"}

    @extend_schema(
        tags=["versions"],
        summary="Complete an upload",
        description="All files are there; a worker checks them. Poll the version: its state becomes "
        "`ready` or `refused`, the latter with a code and what to do. Repeating the call changes nothing.",
        request=None,
        responses={202: serializers.VersionSerializer},
    )
    def post(self, request: Request, version_id: uuid.UUID) -> Response:
        version = services.complete_version(version=self.version(version_id), actor=self.actor)
        return Response(serializers.VersionSerializer(version).data, status=202)


class VersionRecheckView(VersionScoped):
    scopes: ClassVar = {"POST": "models:write"}

    @extend_schema(
        tags=["versions"],
        summary="Check a version again whose check failed on our side or was cancelled",
        request=None,
        responses={202: serializers.VersionSerializer},
    )
    def post(self, request: Request, version_id: uuid.UUID) -> Response:
        version = services.recheck_version(version=self.version(version_id), actor=self.actor)
        return Response(serializers.VersionSerializer(version).data, status=202)


class VersionCancelView(VersionScoped):
    scopes: ClassVar = {"POST": "models:write"}

    @extend_schema(
        tags=["versions"],
        summary="Cancel the check of a version",
        description="The version becomes `refused` with the code `cancelled`; `recheck` goes on.",
        request=None,
        responses=serializers.VersionSerializer,
    )
    def post(self, request: Request, version_id: uuid.UUID) -> Response:
        version = services.cancel_inspection(version=self.version(version_id), actor=self.actor)
        return Response(serializers.VersionSerializer(version).data)
