"""A version for one class: what was planned, what came of it, what else could be had; its layers."""

from __future__ import annotations

import uuid
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from fleet.console.access import ConsoleRequest, page
from fleet.console.charts import Chart, Mark, front_chart
from fleet.console.comparison import Figure, comparison
from fleet.console.layers import by_format, page_of
from fleet.devices.selectors import classes_of
from fleet.rollouts.selectors import reported_latencies
from fleet.tailoring import preview as plan_all
from models_registry import selectors
from models_registry.models import Artifact, Build, Tailoring

SIZES = {"wide": (960, 360), "narrow": (340, 300)}  # of the chart, in pixels
TABLE_POINTS = 8  # of the front, before one asks for all


@page("models", "models:read", "builds:read")
def tailoring(request: ConsoleRequest, tailoring_id: uuid.UUID) -> HttpResponse:
    row = selectors.tailoring(request.tenant, tailoring_id)
    context = _live(row) | _front(request, row) | {"formats": by_format((row.plan or {}).get("choices", []))}
    context["figures"] = _figures(row)
    return render(request, "console/tailoring.html", context)


@page("models", "models:read", "builds:read")
def tailoring_live(request: ConsoleRequest, tailoring_id: uuid.UUID) -> HttpResponse:
    """The part that changes while it is built; once all is settled the whole page is asked for anew."""
    context = _live(selectors.tailoring(request.tenant, tailoring_id))
    response = render(request, "console/_tailoring_live.html", context)
    if not context["busy"]:
        response["HX-Refresh"] = "true"
    return response


def _live(row: Tailoring) -> dict[str, Any]:
    building = row.state == Tailoring.State.BUILDING
    return {
        "row": row,
        "version": row.version,
        "plan": row.plan,
        "busy": building or row.front is None,
        "building": building,
    }


def _figures(row: Tailoring) -> list[Figure]:
    if row.plan is None:
        return []
    classes = classes_of(row.tenant).filter(name=row.class_name)
    reported = reported_latencies(row.version, classes).get(row.class_name, {})
    return comparison(
        row.plan, measured_figures(row.build), row.target, device_ms=reported.get(str(row.build_id))
    )


def measured_figures(build: Build | None) -> dict[str, Any]:
    """What a build has measured, as the comparison takes it."""
    artifact: Artifact | None = getattr(build, "artifact", None)
    if build is None or artifact is None:
        return {}
    return {
        "size_bytes": artifact.size_bytes,
        "memory_bytes": artifact.memory_bytes,
        "latency_ms": artifact.latency_p50_ms,
        "quality": (build.quality or {}).get("value"),
    }


def _front(request: ConsoleRequest, row: Tailoring) -> dict[str, Any]:
    points = row.front or []
    marks = _marks(request, row)
    stride = max(1, -(-len(points) // TABLE_POINTS))
    return {
        "charts": {name: _chart(row, marks, *measure) for name, measure in SIZES.items()},
        "points": points,
        "few_points": points[::stride] if len(points) > TABLE_POINTS else points,
        "kinds": {mark.kind for mark in marks},
    }


def _chart(row: Tailoring, marks: list[Mark], width: int, height: int) -> Chart | None:
    if not row.front:
        return None
    return front_chart(
        row.front,
        marks,
        floor=row.target["quality_floor"],
        storage_bytes=row.target["storage_bytes"],
        width=width,
        height=height,
    )


def _marks(request: ConsoleRequest, row: Tailoring) -> list[Mark]:
    """The class's build, what its plan expects, and the version's other measured builds."""
    marks = []
    if row.plan is not None:
        size, value = row.plan["predicted_size_bytes"], row.plan["predicted_quality"]
        marks.append(Mark("planned", size, value, f"Planned: {size / 1e6:.2f} MB, quality {value:.4f}"))
    for build in selectors.builds_of(request.tenant, version=row.version):
        artifact: Artifact | None = getattr(build, "artifact", None)
        if artifact is None or build.quality is None:
            continue
        mine = build.pk == row.build_id
        kind: Any = "chosen" if mine else "ready" if build.state == Build.State.READY else "rejected"
        title = f"{build.description or build.precision}: {artifact.size_bytes / 1e6:.2f} MB, "
        title += f"quality {build.quality['value']:.4f}"
        marks.append(Mark(kind, artifact.size_bytes, build.quality["value"], title))
    return marks


@page("models", "models:read", "builds:read")
def tailoring_layers(request: ConsoleRequest, tailoring_id: uuid.UUID) -> HttpResponse:
    row = selectors.tailoring(request.tenant, tailoring_id)
    above = {"tailoring": row, "version": row.version, "emulated": row.target.get("emulated", False)}
    return render(request, "console/layers.html", above | _layers(request, row.plan or {}))


@page("models", "models:read", "builds:read")
def build_layers(request: ConsoleRequest, build_id: uuid.UUID) -> HttpResponse:
    row = selectors.build(request.tenant, build_id)
    emulated = row.plan.get("recipe", {}).get("emulated", False)
    above = {"build": row, "version": row.version, "emulated": emulated}
    return render(request, "console/layers.html", above | _layers(request, row.plan))


def _layers(request: HttpRequest, plan: dict[str, Any]) -> dict[str, Any]:
    choices = plan.get("choices", [])
    asked = {name: request.GET.get(name, "") for name in ("format", "operator", "search")}
    start = request.GET.get("from", "")
    query = request.GET.copy()
    query.pop("from", None)
    return {
        "formats": by_format(choices),
        "operators": sorted({choice["operator"] for choice in choices}),
        "asked": asked,
        "query": query.urlencode(),
        "page": page_of(choices, **asked, start=int(start) if start.isdecimal() and len(start) < 9 else 0),
        "total": len(choices),
    }


@page("models", "models:read", "builds:read", "devices:read")
def preview(request: ConsoleRequest, version_id: uuid.UUID) -> HttpResponse:
    """What each class would get by now, without building anything."""
    version = selectors.version(request.tenant, version_id)
    classes = list(classes_of(request.tenant))
    planned = plan_all(version=version, classes=classes) if classes else []
    context = {"version": version, "planned": planned, "took_ms": sum(each.took_ms for each in planned)}
    return render(request, "console/preview.html", context)
