"""Every error as RFC 9457 ``application/problem+json`` with a stable ``code``."""

from __future__ import annotations

import logging
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions
from rest_framework.response import Response

from tenancy.errors import ProblemError

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
CODES = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "body_too_large",
    415: "unsupported_media_type",
    429: "throttled",
}


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's hook: the answer to ``error``; a bug is logged and answered with 500 ``internal``."""
    if isinstance(error, ProblemError):
        return _response(error.as_problem(), headers=_challenge(error.status))
    if isinstance(error, exceptions.ValidationError):
        return _response(_validation(error))
    if isinstance(error, Http404):
        error = exceptions.NotFound()
    elif isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied()
    elif isinstance(error, RequestDataTooBig):
        return _response(_problem(413, "The body is too large", "Send less at once."))
    elif isinstance(error, exceptions.UnsupportedMediaType):
        detail = f"{error.detail} Send Content-Type: application/json."
        return _response(_problem(415, "Unsupported media type", detail))
    elif isinstance(error, exceptions.MethodNotAllowed):
        return _response(_problem(405, "Method not allowed", str(error.detail)))
    if isinstance(error, exceptions.APIException):
        return _response(
            _problem(error.status_code, str(error.default_detail), str(error.detail)),
            headers=_challenge(error.status_code),
        )
    if settings.DEBUG:
        return None
    log.exception("a bug in %s", context.get("view"), exc_info=error)
    return _response(ProblemError("It was logged. Try again; if it stays, tell the operator.").as_problem())


def unknown_address(request: HttpRequest) -> JsonResponse:
    """What is below ``/api/v1/`` and is no address of ours."""
    problem = _problem(404, "Not found", "There is no such address; see /api/docs.")
    return JsonResponse(problem, status=404, content_type=CONTENT_TYPE)


def _validation(error: exceptions.ValidationError) -> dict[str, Any]:
    errors = _by_field(error.detail)
    fields = ", ".join(sorted(errors))
    problem = _problem(400, "The request is not valid", f"Correct these fields and send it again: {fields}.")
    return {**problem, "code": "validation_failed", "errors": errors}


def _by_field(detail: Any, prefix: str = "") -> dict[str, list[str]]:
    """Nested validation errors flattened to ``{"files.0.sha256": ["…"]}``."""
    if isinstance(detail, dict):
        found: dict[str, list[str]] = {}
        for key, value in detail.items():
            found.update(_by_field(value, f"{prefix}.{key}" if prefix else str(key)))
        return found
    if isinstance(detail, list) and any(isinstance(item, dict | list) for item in detail):
        return _by_field({str(i): item for i, item in enumerate(detail) if item}, prefix)
    return {prefix or "body": [str(item) for item in (detail if isinstance(detail, list) else [detail])]}


def _problem(status: int, title: str, detail: str) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": title.rstrip("."),
        "status": status,
        "code": CODES.get(status, "error"),
        "detail": detail,
    }


def _challenge(status: int) -> dict[str, str]:
    return {"WWW-Authenticate": "Bearer"} if status == 401 else {}


def _response(problem: dict[str, Any], *, headers: dict[str, str] | None = None) -> Response:
    return Response(problem, status=problem["status"], headers=headers, content_type=CONTENT_TYPE)
