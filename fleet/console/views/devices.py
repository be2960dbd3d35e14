"""Devices: the list with its filter, one device, letting it in or out."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render

from fleet.console.access import ConsoleRequest, action, page
from fleet.console.paging import Page, keyset
from fleet.devices import lifecycle, selectors, services
from fleet.devices.errors import FilterError
from fleet.devices.models import Device
from fleet.rollouts.models import Assignment, Rollout
from fleet.rollouts.selectors import assignments_of_device, why_not_yet
from fleet.telemetry.selectors import device_samples

DECISIONS = {
    "accept": (services.accept_device, "accepted"),
    "reject": (services.reject_device, "rejected"),
    "decommission": (services.decommission_device, "decommissioned for good"),
}


@page("devices", "devices:read")
def devices(request: ConsoleRequest) -> HttpResponse:
    asked = {name: request.GET.get(name, "").strip() for name in ("filter", "state", "class", "search")}
    error = None
    shown = Page([], "", "")
    try:
        rows = selectors.devices_of(
            request.tenant,
            filter=asked["filter"],
            class_name=asked["class"] or None,
            state=asked["state"] if asked["state"] in Device.State.values else None,
            search=asked["search"],
        )
        shown = keyset(request, rows, "id")
    except FilterError as refusal:
        error = refusal
    context = {
        "page": shown,
        "asked": asked,
        "error": error,
        "states": Device.State.values,
        "classes": selectors.classes_of(request.tenant),
        "narrowed": any(asked.values()),
    }
    return render(request, "console/devices.html", context)


@page("devices", "devices:read")
def device(request: ConsoleRequest, device_id: uuid.UUID) -> HttpResponse:
    row = selectors.device(request.tenant, device_id)
    report = selectors.capabilities_of(row) or {}
    assignments = list(assignments_of_device(row))
    context = {
        "device": row,
        "accelerators": report.get("accelerators", []),
        "declared": selectors.declared_figures(request.tenant, row.soc),
        "assignments": _current(assignments),
        "events": _timeline(assignments),
        "why_not_yet": why_not_yet(row),
        "sample": next(iter(device_samples(request.tenant, row.pk, limit=1)), None),
        "possible": lifecycle.possible_events(row.state),
    }
    return render(request, "console/device.html", context)


def _current(assignments: list[Assignment]) -> list[Assignment]:
    """Without what a newer rollout of the same model has replaced; an attempt replaces nothing."""

    def rank(row: Assignment) -> tuple[bool, int]:
        return row.rollout.state != Rollout.State.ROLLED_BACK, row.rollout.order

    replaced: set[str] = set()
    current = []
    for row in sorted(assignments, key=rank, reverse=True):
        if row.rollout.model_name not in replaced:
            current.append(row)
            if row.state == Assignment.State.ACTIVE:
                replaced.add(row.rollout.model_name)
    return current


def _timeline(assignments: list[Any]) -> list[Any]:
    """Events of all assignments, the newest first, each with its assignment."""
    events = []
    for assignment in assignments:
        for event in assignment.events.all():
            event.of = assignment
            events.append(event)
    return sorted(events, key=lambda event: (event.at, event.pk), reverse=True)[:60]


@action("devices:write")
def decide(request: ConsoleRequest, device_id: uuid.UUID, event: str) -> HttpResponse:
    service, done = DECISIONS[event]
    row = service(device=selectors.device(request.tenant, device_id), actor=request.actor)
    messages.success(request, f"{row} is {done}.")
    return redirect("console:device", device_id=device_id)
