"""A version: its facts, how it fares per device class, its releases."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render

from fleet.console.access import ConsoleRequest, action, page
from fleet.devices.selectors import classes_of
from fleet.tailoring import tailor
from models_registry import selectors
from models_registry.models import CandidateBatch, ModelVersion, Release, Tailoring
from models_registry.services import releases as releases_services
from models_registry.services.checks import CHECKED_AGAIN


@page("models", "models:read", "builds:read")
def version(request: ConsoleRequest, version_id: uuid.UUID) -> HttpResponse:
    row = selectors.version(request.tenant, version_id)
    context = _live(request, row) | {
        "aliases": row.aliases.order_by("name"),
        "operators": _operators(row),
        "classes": classes_of(request.tenant),
        "can_recheck": row.refusal_code in CHECKED_AGAIN,
    }
    context["tailored"] = bool(context["tailorings"])
    return render(request, "console/version.html", context)


@page("models", "models:read", "builds:read")
def version_live(request: ConsoleRequest, version_id: uuid.UUID) -> HttpResponse:
    """The part of the page that changes while workers work; with the state the whole page changes."""
    row = selectors.version(request.tenant, version_id)
    response = render(request, "console/_version_live.html", _live(request, row))
    if request.GET.get("was", row.state) != row.state:
        response["HX-Refresh"] = "true"
    return response


def _live(request: ConsoleRequest, row: ModelVersion) -> dict[str, Any]:
    tailorings = list(selectors.tailorings_of(row))
    releases = list(selectors.releases_of(request.tenant, version=row))
    batches = list(selectors.batches_of(row)) if row.state == ModelVersion.State.CHECKING else []
    building = any(each.state == Tailoring.State.BUILDING for each in tailorings)
    signing = any(each.state == Release.State.SIGNING for each in releases)
    return {
        "version": row,
        "tailorings": tailorings,
        "rejected": [
            {"class_name": each.class_name, **entry}
            for each in tailorings
            for entry in each.history
            if entry["outcome"] not in ("accepted", "replanned", "left_out")
        ],
        "batches": batches,
        "batches_ready": sum(batch.state == CandidateBatch.State.READY for batch in batches),
        "releases": releases,
        "releasable": not building and any(each.state == Tailoring.State.READY for each in tailorings),
        "busy": building or signing or row.state == ModelVersion.State.CHECKING,
    }


def _operators(row: ModelVersion) -> list[tuple[str, int]]:
    counts: dict[str, int] = (row.facts or {}).get("operators", {})
    return sorted(counts.items(), key=lambda pair: -pair[1])[:12]


@action("builds:write")
def build(request: ConsoleRequest, version_id: uuid.UUID) -> HttpResponse:
    if not classes_of(request.tenant).exists():
        messages.error(request, "There is no device class yet; make one first.")
        return redirect("console:class-create")
    tailor(
        version=selectors.version(request.tenant, version_id),
        names=request.POST.getlist("class"),
        replan="replan" in request.POST,
        learned="learned" in request.POST or None,
        actor=request.actor,
    )
    return redirect("console:version", version_id=version_id)


@action("builds:write")
def release(request: ConsoleRequest, version_id: uuid.UUID) -> HttpResponse:
    row = releases_services.create_release(
        version=selectors.version(request.tenant, version_id), actor=request.actor
    )
    messages.success(request, f"Release {row} is being signed.")
    return redirect("console:version", version_id=version_id)


@action("builds:write")
def retry_release(request: ConsoleRequest, release_id: uuid.UUID) -> HttpResponse:
    row = selectors.release(request.tenant, release_id)
    releases_services.retry_release(release=row, actor=request.actor)
    return redirect("console:version", version_id=row.version_id)
