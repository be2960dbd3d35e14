"""Rollouts: the list, the form, and one rollout's live progress."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render

from fleet.console.access import ConsoleRequest, action, form_page, page
from fleet.console.forms import RolloutForm, sent
from fleet.console.paging import keyset
from fleet.rollouts import lifecycle, selectors, services
from fleet.rollouts.models import Assignment, Rollout
from models_registry.models import Release
from models_registry.selectors import release as release_of
from models_registry.selectors import releases_of
from tenancy.errors import NotFound, ProblemError

STEERING = {
    "start": services.start_rollout,
    "pause": services.pause_rollout,
    "resume": services.resume_rollout,
    "cancel": services.cancel_rollout,
    "roll_back": services.roll_back_rollout,
}
MAX_RELEASES = 100
FIELDS = {
    "groups": "groups_percent",
    "success_ratio": "success_percent",
    "failure_ratio": "failure_percent",
    "soak_s": "soak_min",
    "device_timeout_s": "device_timeout_h",
}


@page("rollouts", "rollouts:read")
def rollouts(request: ConsoleRequest) -> HttpResponse:
    rows = selectors.rollouts_of(request.tenant)
    state = request.GET.get("state", "")
    if state in Rollout.State.values:
        rows = rows.filter(state=state)
    context = {
        "page": keyset(request, rows, "-created_at"),
        "state": state,
        "states": Rollout.State.values,
        "released": releases_of(request.tenant).filter(state=Release.State.PUBLISHED).exists(),
    }
    return render(request, "console/rollouts.html", context)


@form_page("rollouts", "rollouts:write")
def create(request: ConsoleRequest) -> HttpResponse:
    published = releases_of(request.tenant).filter(state=Release.State.PUBLISHED)
    releases = list(published.order_by("-published_at")[:MAX_RELEASES])
    chosen = next((r for r in releases if str(r.pk) == request.GET.get("release")), None) or next(
        iter(releases), None
    )
    initial = {"release": str(chosen.pk), "name": str(chosen)} if chosen else {}
    form = RolloutForm(sent(request), releases=releases, initial=initial)
    if request.method == "POST" and form.is_valid():
        rollout = _created(request, form)
        if rollout is not None:
            return redirect("console:rollout", rollout_id=rollout.pk)
    return render(request, "console/rollout_form.html", {"form": form, "releases": releases})


def _created(request: ConsoleRequest, form: RolloutForm) -> Rollout | None:
    data = form.cleaned_data
    try:
        return services.create_rollout(
            release=release_of(request.tenant, data["release"]),
            name=data["name"],
            filter=data["filter"],
            policy=form.policy(),
            actor=request.actor,
        )
    except ProblemError as refusal:
        field = refusal.extensions.get("field", "filter" if refusal.code == "invalid_filter" else "")
        form.add_problem(refusal.detail, FIELDS.get(field, field))
        return None


def _rollout(request: ConsoleRequest, rollout_id: uuid.UUID) -> Rollout:
    return selectors.rollout(request.tenant, rollout_id)


@page("rollouts", "rollouts:read")
def rollout(request: ConsoleRequest, rollout_id: uuid.UUID) -> HttpResponse:
    return render(request, "console/rollout.html", _live(_rollout(request, rollout_id)))


@page("rollouts", "rollouts:read")
def rollout_live(request: ConsoleRequest, rollout_id: uuid.UUID) -> HttpResponse:
    """The part of the page that follows the fleet."""
    return render(request, "console/_rollout_live.html", _live(_rollout(request, rollout_id)))


def _live(row: Rollout) -> dict[str, Any]:
    failed = (Assignment.State.FAILED, Assignment.State.ROLLED_BACK)
    tracks = selectors.progress(row)
    return {
        "rollout": row,
        "tracks": tracks,
        "matching": sum(each.eligible for each in tracks if each.track),
        "decisions": selectors.decisions_of(row)[:20],
        "failures": selectors.assignments_of(row).filter(state__in=failed).select_related("device")[:10],
        "possible": lifecycle.possible_events(lifecycle.ROLLOUT, row.state),
        "busy": row.state == Rollout.State.RUNNING,
    }


@action("rollouts:write")
def steer(request: ConsoleRequest, rollout_id: uuid.UUID, event: str) -> HttpResponse:
    STEERING[event](rollout=_rollout(request, rollout_id), actor=request.actor)
    return redirect("console:rollout", rollout_id=rollout_id)


@action("rollouts:write")
def delete(request: ConsoleRequest, rollout_id: uuid.UUID) -> HttpResponse:
    row = _rollout(request, rollout_id)
    services.delete_rollout(rollout=row, actor=request.actor)
    messages.success(request, f"The draft {row.name} is deleted.")
    return redirect("console:rollouts")


@action("rollouts:write")
def resume_track(request: ConsoleRequest, rollout_id: uuid.UUID, class_name: str) -> HttpResponse:
    row = _rollout(request, rollout_id)
    track = row.tracks.filter(class_name=class_name).first()
    if track is None:
        raise NotFound("The rollout has no track for this class.")
    services.resume_track(track=track, actor=request.actor)
    return redirect("console:rollout", rollout_id=rollout_id)
