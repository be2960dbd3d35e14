"""OpenAPI: how callers authenticate, the problem that any call may answer, idempotency keys."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse

from fleet.management_api.idempotency import HEADER
from fleet.management_api.problems import CONTENT_TYPE
from fleet.management_api.serializers.access import ProblemSerializer


class TokenScheme(OpenApiAuthenticationExtension):
    target_class = "fleet.management_api.authentication.TokenAuthentication"
    name = "token"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, Any]:
        return {"type": "http", "scheme": "bearer", "description": "An app's token, `pf_…`."}


class SessionScheme(OpenApiAuthenticationExtension):
    target_class = "fleet.management_api.authentication.SessionAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, Any]:
        return {
            "type": "apiKey",
            "in": "cookie",
            "name": "sessionid",
            "description": "The console's session.",
        }


class ProblemAutoSchema(AutoSchema):
    """Adds the problem answer to every operation, and ``Idempotency-Key`` where it is honoured."""

    def get_description(self) -> str:
        """The method's own docstring; the base class's is not about the call."""
        method = getattr(self.view, self.method.lower(), None)
        return str(getattr(method, "__doc__", None) or "")

    def get_override_parameters(self) -> list[OpenApiParameter]:
        parameters = list(super().get_override_parameters())
        if getattr(getattr(self.view, "post", None), "idempotent", False) and self.method == "POST":
            parameters.append(
                OpenApiParameter(
                    HEADER,
                    location=OpenApiParameter.HEADER,
                    description="Any unique text; repeating the call with it creates nothing twice.",
                )
            )
        return parameters

    def _get_response_bodies(self, direction: Any = "response") -> dict[str, Any]:
        bodies: dict[str, Any] = super()._get_response_bodies(direction)
        problem = OpenApiResponse(ProblemSerializer, description="A problem with a stable code.")
        bodies["default"] = self._get_response_for_code(problem, "default", media_types=[CONTENT_TYPE])
        return bodies
