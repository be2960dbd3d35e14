"""Rollouts: creating and steering them, watching them."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.management_api.idempotency import idempotent
from fleet.management_api.serializers import rollouts as serializers
from fleet.management_api.views.base import ApiView, choice, found
from fleet.rollouts import selectors, services
from fleet.rollouts.models import Assignment, Rollout
from models_registry.selectors import release as release_of


class RolloutsView(ApiView):
    scopes: ClassVar = {"GET": "rollouts:read", "POST": "rollouts:write"}

    @extend_schema(
        tags=["rollouts"],
        summary="List rollouts",
        parameters=[
            OpenApiParameter("state", str, enum=Rollout.State.values),
            OpenApiParameter("model", str, description="Name of a model"),
        ],
        responses=serializers.RolloutSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        rows = selectors.rollouts_of(self.tenant, state=choice(request, "state", Rollout.State.values))
        if model := request.query_params.get("model"):
            rows = rows.filter(model_name=model)
        return self.page(rows, serializers.RolloutSerializer)

    @extend_schema(
        tags=["rollouts"],
        summary="Draft a rollout of a release",
        request=serializers.RolloutRequestSerializer,
        responses={201: serializers.RolloutDetailSerializer},
    )
    @idempotent()
    def post(self, request: Request) -> Response:
        asked = self.parsed(serializers.RolloutRequestSerializer)
        release = release_of(self.tenant, asked.pop("release"))
        rollout = services.create_rollout(release=release, actor=self.actor, **asked)
        return Response(rendered(rollout), status=201)


def rendered(rollout: Rollout) -> Any:
    """A rollout with its tracks."""
    context = {"progress": selectors.progress(rollout)}
    return serializers.RolloutDetailSerializer(rollout, context=context).data


class RolloutScoped(ApiView):
    """A view below ``rollouts/<id>``."""

    def rollout(self, rollout_id: uuid.UUID) -> Rollout:
        return selectors.rollout(self.tenant, rollout_id)


class RolloutView(RolloutScoped):
    scopes: ClassVar = {"GET": "rollouts:read", "DELETE": "rollouts:write"}

    @extend_schema(
        tags=["rollouts"], summary="Read a rollout's progress", responses=serializers.RolloutDetailSerializer
    )
    def get(self, request: Request, rollout_id: uuid.UUID) -> Response:
        return Response(rendered(self.rollout(rollout_id)))

    @extend_schema(tags=["rollouts"], summary="Delete a draft", responses={204: None})
    def delete(self, request: Request, rollout_id: uuid.UUID) -> Response:
        services.delete_rollout(rollout=self.rollout(rollout_id), actor=self.actor)
        return Response(status=204)


class RolloutActionView(RolloutScoped):
    """Base of the ways to steer a rollout."""

    scopes: ClassVar = {"POST": "rollouts:write"}
    act: ClassVar[Any]

    def carry_out(self, rollout_id: uuid.UUID) -> Response:
        type(self).act(rollout=self.rollout(rollout_id), actor=self.actor)
        return Response(rendered(self.rollout(rollout_id)))


class RolloutStartView(RolloutActionView):
    act = staticmethod(services.start_rollout)

    @extend_schema(
        tags=["rollouts"],
        summary="Start a draft",
        request=None,
        responses=serializers.RolloutDetailSerializer,
    )
    def post(self, request: Request, rollout_id: uuid.UUID) -> Response:
        return self.carry_out(rollout_id)


class RolloutPauseView(RolloutActionView):
    act = staticmethod(services.pause_rollout)

    @extend_schema(
        tags=["rollouts"],
        summary="Pause all tracks",
        request=None,
        responses=serializers.RolloutDetailSerializer,
    )
    def post(self, request: Request, rollout_id: uuid.UUID) -> Response:
        return self.carry_out(rollout_id)


class RolloutResumeView(RolloutActionView):
    act = staticmethod(services.resume_rollout)

    @extend_schema(
        tags=["rollouts"],
        summary="Resume a paused rollout",
        request=None,
        responses=serializers.RolloutDetailSerializer,
    )
    def post(self, request: Request, rollout_id: uuid.UUID) -> Response:
        return self.carry_out(rollout_id)


class RolloutCancelView(RolloutActionView):
    act = staticmethod(services.cancel_rollout)

    @extend_schema(
        tags=["rollouts"],
        summary="Cancel a rollout",
        request=None,
        responses=serializers.RolloutDetailSerializer,
    )
    def post(self, request: Request, rollout_id: uuid.UUID) -> Response:
        return self.carry_out(rollout_id)


class RolloutRollBackView(RolloutActionView):
    act = staticmethod(services.roll_back_rollout)

    @extend_schema(
        tags=["rollouts"],
        summary="Roll back: devices return to what they ran before",
        request=None,
        responses=serializers.RolloutDetailSerializer,
    )
    def post(self, request: Request, rollout_id: uuid.UUID) -> Response:
        return self.carry_out(rollout_id)


class TrackResumeView(RolloutScoped):
    scopes: ClassVar = {"POST": "rollouts:write"}

    @extend_schema(
        tags=["rollouts"],
        summary="Resume one class's track",
        request=None,
        responses=serializers.RolloutDetailSerializer,
    )
    def post(self, request: Request, rollout_id: uuid.UUID, class_name: str) -> Response:
        rollout = self.rollout(rollout_id)
        track = found(rollout.tracks.filter(class_name=class_name), f"track of class {class_name!r}")
        services.resume_track(track=track, actor=self.actor)
        return Response(rendered(self.rollout(rollout_id)))


class DecisionsView(RolloutScoped):
    scopes: ClassVar = {"GET": "rollouts:read"}
    ordering = ("-id",)

    @extend_schema(
        tags=["rollouts"],
        summary="List what was decided and why",
        responses=serializers.DecisionSerializer(many=True),
    )
    def get(self, request: Request, rollout_id: uuid.UUID) -> Response:
        return self.page(selectors.decisions_of(self.rollout(rollout_id)), serializers.DecisionSerializer)


class AssignmentsView(RolloutScoped):
    scopes: ClassVar = {"GET": "rollouts:read"}
    ordering = ("id",)

    @extend_schema(
        tags=["rollouts"],
        summary="List the devices that took part",
        parameters=[
            OpenApiParameter("state", str, enum=Assignment.State.values),
            OpenApiParameter("class", str, description="Name of a device class"),
        ],
        responses=serializers.AssignmentSerializer(many=True),
    )
    def get(self, request: Request, rollout_id: uuid.UUID) -> Response:
        rows = selectors.assignments_of(
            self.rollout(rollout_id),
            class_name=request.query_params.get("class"),
            state=choice(request, "state", Assignment.State.values),
        )
        return self.page(rows, serializers.AssignmentSerializer)
