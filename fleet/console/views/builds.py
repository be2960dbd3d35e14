"""A build: what it is, how good it is, how fast it is on devices."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect, render

from fleet.console.access import ConsoleRequest, action, page
from fleet.console.comparison import comparison
from fleet.console.layers import by_format
from fleet.console.views.tailorings import measured_figures
from fleet.telemetry.selectors import build_latency_series, build_summary
from models_registry import lifecycle, selectors
from models_registry.models import Build
from models_registry.services import builds as services

SHORTEST_WINDOW_S = 3600


@page("models", "builds:read", "telemetry:read")
def build(request: ConsoleRequest, build_id: uuid.UUID) -> HttpResponse:
    row = selectors.build(request.tenant, build_id)
    summary = build_summary(request.tenant, [row])[row.pk]
    context = _live(row) | {
        "manifest": _manifest(row),
        "summary": summary,
        "recipe": row.plan.get("recipe", {}),
        "formats": by_format(row.plan.get("choices", [])),
        "figures": comparison(row.plan, measured_figures(row), device_ms=summary.p50_ms),
    }
    return render(request, "console/build.html", context)


@page("models", "builds:read")
def build_live(request: ConsoleRequest, build_id: uuid.UUID) -> HttpResponse:
    """The head of the page, while it builds; once it has ended the whole page is asked for anew."""
    row = selectors.build(request.tenant, build_id)
    context = _live(row)
    response = render(request, "console/_build_live.html", context)
    if not context["busy"]:
        response["HX-Refresh"] = "true"
    return response


def _live(row: Build) -> dict[str, Any]:
    return {
        "build": row,
        "busy": row.state in (Build.State.PLANNED, Build.State.BUILDING),
        "can_cancel": row.state in lifecycle.sources("build", "cancel"),
        "can_retry": row.state in (Build.State.FAILED, Build.State.CANCELLED),
    }


def _manifest(row: Build) -> dict[str, Any] | None:
    artifact = getattr(row, "artifact", None)
    return json.loads(bytes(artifact.manifest)) if artifact else None


@page("models", "telemetry:read")
def build_latency(request: ConsoleRequest, build_id: uuid.UUID) -> HttpResponse:
    """The series of the page's plot, as uPlot takes it."""
    row = selectors.build(request.tenant, build_id)
    points = build_latency_series(request.tenant, row)
    series = [
        {"label": "p50", "values": [point.p50_ms for point in points]},
        {"label": "p95", "values": [point.p95_ms for point in points]},
    ]
    at = [int(point.at.timestamp()) for point in points]
    return JsonResponse({"at": at, "window": _window(at, int(time.time())), "series": series})


def _window(at: list[int], now: int) -> list[int]:
    """What the plot shows: all of the data and at least the last hour, up to now. Unix seconds."""
    return [min([now - SHORTEST_WINDOW_S, *at]), max([now, *at])]


@action("builds:write")
def cancel(request: ConsoleRequest, build_id: uuid.UUID) -> HttpResponse:
    services.cancel_build(build=selectors.build(request.tenant, build_id), actor=request.actor)
    return redirect("console:build", build_id=build_id)


@action("builds:write")
def retry(request: ConsoleRequest, build_id: uuid.UUID) -> HttpResponse:
    services.retry_build(build=selectors.build(request.tenant, build_id), actor=request.actor)
    return redirect("console:build", build_id=build_id)
